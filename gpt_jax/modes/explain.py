"""Explain one token's whole forward pass, with its numbers and the code of each step."""

import sys

from absl import flags as absl_flags
from rich.console import Console
from rich.text import Text

from gpt_jax import run as runs
from gpt_jax.config_tree import INT32_MAX
from gpt_jax.errors import UserError
from gpt_jax.inspector import Inspector
from gpt_jax.inspector.explain import WIDTH, explain
from gpt_jax.modes import saved_weights
from gpt_jax.modes.command import Command

STYLES = {'title': 'bold green', 'formula': 'cyan', 'place': 'dim', 'check': 'magenta'}


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines flags for the text, and for the token, the layer and the head that are shown."""
    saved_weights.define_flags(flags)
    absl_flags.DEFINE_string('prompt', None, 'the text', flag_values=flags)
    for name, default, text in (
        ('token', None, 'position of the token (default: the last)'),
        ('layer', 0, 'the layer shown in full'),
        ('head', 0, 'the head shown in full'),
    ):
        absl_flags.DEFINE_integer(
            name, default, text, lower_bound=0, upper_bound=INT32_MAX, flag_values=flags
        )


def run(command: Command) -> int:
    """Prints the steps."""
    flags, config = command.flags, command.config
    if not flags.prompt:
        raise UserError('--mode explain needs --prompt TEXT, the text to walk through')
    opened = saved_weights.open_run(config, command.workdir, command.overrides)
    _, params = runs.restore_weights(opened, step=flags.step, weights=flags.weights)
    explanation = explain(
        Inspector(opened.config.model, params, opened.tokenizer),
        flags.prompt,
        token=-1 if flags.token is None else flags.token,
        layer=flags.layer,
        head=flags.head,
        sampling=opened.config.sample,
    )
    console = Console(file=sys.stdout, width=WIDTH, highlight=False)
    for kind, line in explanation.lines():
        console.print(Text(line, style=STYLES.get(kind, '')), soft_wrap=True)
    return 0
