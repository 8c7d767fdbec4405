"""What the command line can do, a file each: `define_flags(flags)` and `run(...) -> status`."""

from types import ModuleType

from absl import flags as absl_flags

from gpt_jax.modes import (
    benchmark,
    compile_check,
    doctor,
    evaluate,
    export,
    generate,
    import_weights,
    prepare,
    train,
    verify_resume,
)

MODES: dict[str, ModuleType] = {
    'train': train,
    'prepare': prepare,
    'evaluate': evaluate,
    'generate': generate,
    'import_weights': import_weights,
    'export': export,
    'benchmark': benchmark,
    'compile_check': compile_check,
    'doctor': doctor,
    'verify_resume': verify_resume,
}


def describe(name: str) -> str:
    """A mode for `--help`: the first line of its docstring, and its flags."""
    flags = absl_flags.FlagValues()
    MODES[name].define_flags(flags)
    lines = [f'  {name:<15}{MODES[name].__doc__.splitlines()[0]}']
    lines += [f'    --{flag:<20}{flags[flag].help.splitlines()[0]}' for flag in sorted(flags)]
    return '\n'.join(lines)
