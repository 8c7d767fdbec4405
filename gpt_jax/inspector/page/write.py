"""Writing a page: the template with its style, its scripts as one module, and the data."""

import base64
import functools
import html
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

FOLDER = pathlib.Path(__file__).parent
_IMPORT = re.compile(r"^import \{[^}]*\} from '\./([\w]+\.js)';\n", re.MULTILINE)
_LARGEST_HALF = 65504  # of float16


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
    return assemble(data)


def assemble(
    data: Mapping[str, Any], *, script: str = 'app.js', styles: Sequence[str] = ('style.css',)
) -> str:
    """Returns the page that a script draws of data, which needs no other file and no network.

    Args:
      data: what `to_json` takes.
      script: one of `scripts/`.
      styles: files of CSS.
    """
    parts = {
        'style': '\n'.join(map(_read, styles)),
        'script': bundle(script),
        'data': to_json(data),
    }
    return re.sub(r'\{\{(\w+)\}\}', lambda match: parts[match[1]], _read('template.html'))


def frame(analyses: Sequence[Shown], *, height: int = 560) -> str:
    """Returns the page as an element for a notebook."""
    page = html.escape(render(analyses))
    return (
        f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-popups" title="{analyses[0].title}" '
        f'style="width: 100%; height: {height}px; border: 0"></iframe>'
    )


def to_json(value: Any) -> str:
    """Returns JSON that is safe within a script element, with arrays in base64."""
    text = json.dumps(_plain(value), separators=(',', ':'), allow_nan=False)
    return text.replace('<', '\\u003c')  # neither </script> nor <!-- begins


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it; a number that is not finite becomes null."""
    if hasattr(value, 'dims'):
        return _encode(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _encode(array: Any) -> dict[str, Any]:
    """Returns an array with named dimensions as JSON, in the smallest type that shows it well."""
    values = np.asarray(array.values)
    kind = _type(values, array.dims)
    stored = np.rint(values * 255) if kind == 'uint8' else values
    data = np.ascontiguousarray(stored, np.dtype(kind).newbyteorder('<')).tobytes()
    return {
        'dims': array.dims,
        'shape': values.shape,
        'type': kind,
        'base64': base64.b64encode(data).decode(),
    }


def _type(values: np.ndarray, dims: tuple[str, ...]) -> str:
    if values.dtype.kind in 'iu':
        return 'int32' if np.abs(values).max(initial=0) < 2**31 else 'float32'
    finite = values[np.isfinite(values)]
    if 'source' in dims and finite.size == values.size and ((finite >= 0) & (finite <= 1)).all():
        return 'uint8'  # weights, in steps of 0.4%
    return 'float16' if np.abs(finite).max(initial=0) < _LARGEST_HALF else 'float32'


@functools.cache
def bundle(script: str = 'app.js') -> str:
    """Returns a script as one module: each file after those it imports, without `import`s.

    They share one scope, so the browser refuses a name that two of them define.
    """
    sources, done = [], []

    def add(name: str) -> None:
        if name in done:
            return
        done.append(name)
        text = _read(f'scripts/{name}')
        for needed in _IMPORT.findall(text):
            add(needed)
        sources.append(re.sub('^export ', '', _IMPORT.sub('', text), flags=re.MULTILINE))

    add(script)
    return '\n'.join(sources)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding='utf-8')
