"""The modes of the command line, one per file: `define_flags(flags)`, `run(command)`."""

from types import ModuleType

from absl import flags as absl_flags

from gpt_jax.modes import (
    benchmark,
    compile_check,
    coordinate_check,
    doctor,
    evaluate,
    explain,
    export,
    generate,
    help,
    import_weights,
    inspect,
    prepare,
    replay,
    report,
    serve,
    train,
    verify_resume,
)

MODES: dict[str, ModuleType] = {
    'train': train,
    'prepare': prepare,
    'evaluate': evaluate,
    'generate': generate,
    'serve': serve,
    'explain': explain,
    'inspect': inspect,
    'replay': replay,
    'report': report,
    'import_weights': import_weights,
    'export': export,
    'benchmark': benchmark,
    'compile_check': compile_check,
    'coordinate_check': coordinate_check,
    'doctor': doctor,
    'verify_resume': verify_resume,
}


def describe(name: str) -> str:
    """Returns a mode's text for `--help`: the first line of its docstring, and its flags."""
    flags = absl_flags.FlagValues()
    MODES[name].define_flags(flags)
    title = help.describe_mode(name, MODES[name].__doc__.splitlines()[0])
    return '\n'.join(filter(None, [title, help.describe_flags(flags)]))
