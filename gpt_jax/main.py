"""The command line: flags -> config -> mode. Wrong input gives one line and exit status 2."""

import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType

import jax
from absl import flags as absl_flags
from ml_collections import config_flags

from gpt_jax import moved_keys, object_store, pretrained, run
from gpt_jax.config import RunConfig, load_config, load_config_file, run_name
from gpt_jax.config_tree import check_key, choose, has_choice, suggest
from gpt_jax.errors import UserError
from gpt_jax.modes import MODES, describe
from gpt_jax.modes.command import Command
from gpt_jax.modes.help import describe_config
from gpt_jax.parallel import cluster, local_pod, peers, runtime
from gpt_jax.telemetry import streams

USAGE = """usage: python -m gpt_jax.main --config FILE.py[:variant] [--workdir DIR]
                              [--mode MODE] [--config.KEY=VALUE ...]

  --config    a file of configs/, and one of its variants
  --workdir   the run's folder, also gs:// or s3:// (default:
              runs/<config>[-<variant>]); without --config, its stored config
  --config.*  any knob of those below: --config.optimizer.learning_rate=3e-4
  --help      this; with --mode the flags of one mode, with --config its values
  --debug     show the traceback of an error

  --local_pod PxD     P processes of D CPU devices each, on this machine
  --coordinator HOST:PORT --num_processes N --process_id I
                      this is process I of N; process 0 listens at HOST:PORT
                      (found by itself on TPU pods, GKE, SLURM and Open MPI)

Modes:
"""
OWN_ERRORS = 'INVALID_ARGUMENT|RESOURCE_EXHAUSTED'  # XLA errors with a local cause
# Beginnings of others; some come as ValueError from jax.
FOREIGN_ERRORS = '(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): '


def main(argv: Sequence[str]) -> int:
    """Runs the command line (without the program's name); returns the exit status."""
    debug = any(re.fullmatch('--?debug', argument) for argument in argv)
    try:
        rest = [argument for argument in argv if not re.fullmatch('--?debug', argument)]
        return _main(rest, debug=debug)
    except streams.ReaderGone:
        return _end(streams.SIGPIPE_STATUS, 'nobody reads the output')
    except (UserError, OSError) as error:
        if debug and peers.num_processes() == 1:
            raise
        if debug:
            traceback.print_exc()
        line = ' '.join(str(error).split())
        who = f'process {peers.process_id()}: ' if peers.num_processes() > 1 else ''
        print(f'error: {who}{line}', file=sys.stderr)
        return _end(2, line)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return _end(130, 'interrupted')
    except Exception as error:
        reason = runtime.explain(error)
        if reason and not debug:
            print(f'error: {reason}', file=sys.stderr)
            return _end(2, reason)
        if peers.num_processes() == 1:
            raise
        status = 1
        if _is_of_another(error):
            peers.wait_for_termination()  # most likely another process is lost; the reason follows
            status = peers.LOST  # else a device or the network failed, perhaps temporarily
        traceback.print_exc()
        return _end(status, f'{type(error).__name__}: {error}'.partition('\n')[0])


def _is_of_another(error: Exception) -> bool:
    """Returns whether an error most likely comes from a lost process or the network."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return not re.match(OWN_ERRORS, str(error))
    return isinstance(error, ValueError) and bool(re.match(FOREIGN_ERRORS, str(error)))


def _end(status: int, reason: str) -> int:
    """Returns the exit status; with several processes, tells the others and ends this one."""
    if peers.num_processes() > 1:
        peers.fail(status, reason)
    return status


def _main(argv: list[str], *, debug: bool) -> int:
    for argument in argv:
        if '\0' in argument:
            raise UserError(f'the argument {argument!r} has a NUL byte; remove it')
    if any(re.fullmatch('--?(help|helpfull|h)', argument) for argument in argv):
        print(_help(argv))
        return 0
    runtime.allow_open_files()
    runtime.check_xla_flags()
    # Training goes on if the reader of the output is gone; other modes end.
    _, wanted = _take(argv, 'mode')
    streams.end_without_reader(sys.stdout, ends=wanted not in ('', 'train'))
    argv, pod = _take(argv, 'local_pod')
    if pod:
        return local_pod.launch(pod, [*argv, '--debug'] if debug else argv)
    processes = {}
    for flag in cluster.FLAGS:
        argv, processes[flag] = _take(argv, flag)
    mode, command = read_command(argv, processes=processes)
    with peers.only_primary_prints():
        status = mode.run(command)
        sys.stdout.flush()  # notice here if the reader is gone
    peers.leave(status)
    return status


def read_command(
    argv: list[str], *, processes: Mapping[str, str] | None = None
) -> tuple[ModuleType, Command]:
    """Returns the mode of a command line and what it gets; joins the other processes of the run.

    Raises:
        UserError: an argument is wrong.
    """
    argv, spec = _take(argv, 'config')
    argv, workdir = _take(argv, 'workdir')
    argv, name = _take(argv, 'mode')
    mode = MODES.get(name or 'train')
    if mode is None:
        raise UserError(f'--mode={name} is not a mode; {suggest(name, [*MODES])}')
    if not spec and not workdir:
        raise UserError('give --config FILE.py[:variant] or --workdir DIR; see --help')
    folder = object_store.to_path(workdir or f'runs/{run_name(spec)}', key='--workdir')
    object_store.check_reachable(folder, key='--workdir')
    evaluators = lambda config: []  # noqa: E731
    if spec:
        config, evaluators = load_config_file(spec)
    elif name == 'import_weights':  # creates the run, so there is none to read
        config = RunConfig()
    else:
        config = run.read_draft(folder)
    flags = absl_flags.FlagValues()
    mode.define_flags(flags)
    argv, chosen = _choose(config, argv)
    _parse(flags, config, argv)
    overrides = chosen | dict(config_flags.get_override_values(flags['config']))
    runtime.join(processes or {}, flags.config.runtime)
    if flags.config.train.init_from and name != 'import_weights':
        fresh = 'fresh' in flags and flags.fresh
        pretrained.adopt_run(flags.config, folder, overrides, fresh=fresh)
    command = Command(
        flags=flags,
        config=flags.config,
        workdir=folder,
        overrides=overrides,
        evaluators=evaluators,
    )
    return mode, command


def _help(argv: list[str]) -> str:
    """Returns the usage, the flags of --mode or of all modes, and the knobs of --config."""
    argv, name = _take(argv, 'mode')
    if name and name not in MODES:
        raise UserError(f'--mode={name} is not a mode; {suggest(name, [*MODES])}')
    _, spec = _take(argv, 'config')
    config = load_config(spec) if spec else RunConfig()
    knobs = f'Knobs, set by --config.KEY=VALUE, with the values of {spec or "a bare RunConfig()"}:'
    modes = '\n'.join(map(describe, [name] if name else MODES))
    return '\n\n'.join([USAGE + modes, knobs, describe_config(config)])


def _take(argv: list[str], name: str) -> tuple[list[str], str]:
    """Removes `--name VALUE` or `--name=VALUE`; returns the rest and the last such value."""
    rest, value, arguments = [], '', iter(argv)
    for argument in arguments:
        match = re.fullmatch(f'--?{name}(=(.*))?', argument, re.DOTALL)
        if match is None:
            rest.append(argument)
        elif (value := match[2] if match[1] else next(arguments, '')) == '':
            raise UserError(f'--{name} needs a value')
    return rest, value


def _choose(config: RunConfig, argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Sets the unions of `config` to the members that flags such as --config.model.mlp=swiglu name.

    Returns the other arguments, and the names by key below config. ml_collections, which parses
    the rest, has flags for the knobs of the chosen members only.
    """
    rest, chosen, arguments = [], {}, iter(argv)
    for argument in arguments:
        match = re.fullmatch(r'--?config\.([^=]*)(=(.*))?', argument, re.DOTALL)
        if match is None or not has_choice(config, match[1]):
            rest.append(argument)
            continue
        name = match[3] if match[2] else next(arguments, '')
        choose(config, match[1], name)
        chosen[match[1]] = name
    return rest, chosen


def _parse(flags: absl_flags.FlagValues, config: RunConfig, argv: list[str]) -> None:
    """Parses the mode's flags, and the `--config.*` overrides of `config`, into `flags`."""
    argv = [moved_keys.rename_flag(argument) for argument in argv]
    for argument in argv:
        if match := re.match(r'--?(?:no)?config\.([^=]*)', argument):
            check_key(config, match[1])
    try:
        config_flags.DEFINE_config_dataclass(
            'config', config, flag_values=flags, sys_argv=['', *argv]
        )
        extra = flags(['gpt_jax.main', *argv])[1:]
    except (AttributeError, KeyError, TypeError, ValueError, absl_flags.Error) as error:
        raise UserError(f'{error} (see --help)') from error
    if extra:
        raise UserError(f'unexpected argument {extra[0]!r}; options begin with --')


if __name__ == '__main__':
    streams.protect()
    sys.exit(main(sys.argv[1:]))
