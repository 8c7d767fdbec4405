"""Look inside a trained run: how it reads and predicts a text, as a table and an HTML page."""

import functools
import sys

from absl import flags as absl_flags

from gpt_jax import files, object_store
from gpt_jax import run as runs
from gpt_jax.inspector import Inspector
from gpt_jax.inspector.analyses import ANALYSES
from gpt_jax.inspector.survey import check_names, survey
from gpt_jax.inspector.terminal import print_report
from gpt_jax.modes import saved_weights
from gpt_jax.modes.command import Command
from gpt_jax.parallel import peers
from gpt_jax.telemetry.progress import Progress

PAGE = 'inspect.html'  # in the workdir


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the weights, the text and the page."""
    saved_weights.define_flags(flags)
    absl_flags.DEFINE_string(
        'prompt', '', 'the text (default: that of config.sample.prompt)', flag_values=flags
    )
    absl_flags.DEFINE_string(
        'against', '', 'a text of as many tokens, to patch from', flag_values=flags
    )
    absl_flags.DEFINE_list('analyses', [], f'only these: {", ".join(ANALYSES)}', flag_values=flags)
    absl_flags.DEFINE_string(
        'out', '', f'the page (default: {PAGE} in the workdir)', flag_values=flags
    )


def run(command: Command) -> int:
    """Prints the tokens, their alternatives and the heads that matter; writes the page."""
    flags, workdir = command.flags, command.workdir
    names = flags.analyses or [*ANALYSES]
    check_names(names, key='--analyses')
    path = object_store.to_path(flags.out, key='--out') if flags.out else workdir / PAGE
    opened = saved_weights.open_run(command.config, workdir, command.overrides)
    files.check_writable(path, key='--out')  # before the work
    step, params = runs.restore_weights(opened, step=flags.step, weights=flags.weights)
    inspector = Inspector(opened.config.model, params, opened.tokenizer)
    # The progress goes to standard error, as standard output is the report.
    progress = functools.partial(Progress, quiet=not peers.is_primary(), stream=sys.stderr)
    result = survey(
        inspector,
        flags.prompt or opened.config.sample.prompt,
        against=flags.against,
        names=names,
        progress=progress,
    )
    if not peers.is_primary():
        return 0
    print_report(result.analyses)
    for reason in result.skipped:
        print(reason)
    weights = f'{workdir}, {flags.weights} weights of step {step}'
    size = result.save(path, subtitle=f'{weights}: {result.subtitle}')
    print(f'wrote {path} ({size / 1e3:,.0f} kB); open it in a browser')
    return 0
