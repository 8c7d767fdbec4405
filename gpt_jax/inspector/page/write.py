"""Writing the page of analyses."""

import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

from gpt_jax import page

FOLDER = pathlib.Path(__file__).parent


class Shown(Protocol):
    """An analysis, as the page sees it."""

    name: str
    title: str
    about: str
    source: str
    pitfall: str
    tokens: tuple[int, ...]
    texts: tuple[str, ...]

    def data(self) -> dict[str, Any]:
        """Returns JSON and arrays with `values` and `dims`."""
        ...

    def rows(self) -> list[tuple[str, ...]]:
        """Returns a table, headings first."""
        ...


def render(
    analyses: Sequence[Shown],
    *,
    title: str = 'Inside a GPT',
    subtitle: str = '',
    skipped: Sequence[str] = (),
) -> str:
    """Returns the page of analyses of one text, which needs no other file and no network.

    Args:
      analyses: in the order of their views; of the same text.
      title: of the page.
      subtitle: describes the model.
      skipped: a sentence for each analysis that does not apply.
    """
    data = {
        'title': title,
        'subtitle': subtitle,
        'tokens': analyses[0].tokens,
        'texts': analyses[0].texts,
        'skipped': skipped,
        'analyses': [
            {
                **{key: getattr(each, key) for key in ('name', 'title', 'about')},
                **{key: getattr(each, key) for key in ('source', 'pitfall')},
                'data': {
                    key: value
                    for key, value in each.data().items()
                    if key not in ('tokens', 'texts')
                },
                'rows': each.rows(),
            }
            for each in analyses
        ],
    }
    return page.assemble(FOLDER, data, title=title)


def frame(analyses: Sequence[Shown], *, height: int = 560) -> str:
    """Returns the page as an element for a notebook."""
    return page.frame(render(analyses), title=analyses[0].title, height=height)
