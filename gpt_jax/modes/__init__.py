"""What the command line can do, a file each: `define_flags(flags)` and `run(...) -> status`."""

from types import ModuleType

from gpt_jax.modes import evaluate, generate, prepare, train

MODES: dict[str, ModuleType] = {
    'train': train,
    'prepare': prepare,
    'evaluate': evaluate,
    'generate': generate,
}
