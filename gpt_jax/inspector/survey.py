"""All analyses of one text that apply to a model."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from gpt_jax import page
from gpt_jax.config_tree import suggest
from gpt_jax.errors import UserError
from gpt_jax.inspector.analyses import ANALYSES, Analysis, ShowProgress
from gpt_jax.inspector.analyses.base import QUIET
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.inspector.page import frame, render
from gpt_jax.model.config import ModelConfig

COMPARING = 'patching'  # needs a second text


@dataclasses.dataclass(frozen=True)
class Survey:
    """Analyses of one text by name, and why others do not apply; a page in a notebook."""

    analyses: Mapping[str, Analysis]
    skipped: Sequence[str]  # a sentence each
    subtitle: str

    def save(self, path: str | os.PathLike, *, subtitle: str = '') -> int:
        """Writes the page, an HTML file that needs no other; returns its size in bytes.

        Args:
          path: of the file.
          subtitle: of the page; '': a description of the model.

        Raises:
            UserError: the file cannot be written.
        """
        html = render(
            [*self.analyses.values()], subtitle=subtitle or self.subtitle, skipped=self.skipped
        )
        return page.save(html, path)

    def _repr_html_(self) -> str:
        return frame([*self.analyses.values()], height=800)


def survey(
    inspector: Inspector,
    text: Text,
    *,
    against: Text = '',
    names: Sequence[str] = tuple(ANALYSES),
    progress: ShowProgress = QUIET,
) -> Survey:
    """Runs the analyses that apply to a model, on one pass where they need no more.

    Args:
      inspector: of the model.
      text: a text, or its ids.
      against: a text of as many tokens, to patch from; '': no patching.
      names: of `ANALYSES`.
      progress: the display of those that run the model many times.

    Raises:
        UserError: the text is empty or too long, an analysis does not exist, or none applies.
    """
    check_names(names, key='names')
    inspection = inspector.inspect(text)
    found, skipped = {}, []
    for name in names:
        analysis = ANALYSES[name]
        if name == COMPARING and not against:
            continue
        if reason := analysis.obstacle(inspector):
            skipped.append(f'{analysis.title} is left out: {reason}')
            continue
        options = {'against': against} if name == COMPARING else {}
        found[name] = analysis.run(
            inspector, text, inspection=inspection, progress=progress, **options
        )
    if not found:
        raise UserError('; '.join(skipped) or f'{COMPARING} needs a second text (against)')
    return Survey(found, skipped, describe(inspector.config))


def check_names(names: Sequence[str], *, key: str) -> None:
    """Raises UserError if one is not the name of an analysis."""
    for name in names:
        if name not in ANALYSES:
            raise UserError(f'{key}={name} is not one; {suggest(name, [*ANALYSES])}')


def describe(config: ModelConfig) -> str:
    """Returns the sizes of a model in a line."""
    return (
        f'{config.num_layers} layers, {config.num_heads} heads, d_model {config.d_model}, '
        f'vocabulary {config.vocab_size:,}'
    )
