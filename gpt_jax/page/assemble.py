"""Assembling a page: the template with its styles, its scripts as one module, and the data.

A kind of page has a folder with `scripts/app.js`, which draws it, and a `style.css` of its own. Its
scripts import each other and those of this package as './name.js'.
"""

import base64
import functools
import html
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt_jax import files

SHARED = pathlib.Path(__file__).parent
_IMPORT = re.compile(r"^import \{[^}]*\} from '\./([\w]+\.js)';\n", re.MULTILINE)
_LARGEST_HALF = 65504  # of float16


def assemble(folder: pathlib.Path, data: Any, *, title: str) -> str:
    """Returns a page, which needs no other file and no network.

    Args:
      folder: of the kind of page.
      data: JSON and arrays, as `to_json` takes them; `app.js` reads it.
      title: of the document.
    """
    parts = {
        'title': html.escape(title),
        'style': _read(SHARED / 'style.css') + _read(folder / 'style.css'),
        'script': bundle(folder),
        'data': to_json(data),
    }
    template = _read(SHARED / 'template.html')
    return re.sub(r'\{\{(\w+)\}\}', lambda match: parts[match[1]], template)


def save(page: str, path: str | os.PathLike) -> int:
    """Writes a page; returns its size in bytes.

    Raises:
        UserError: the file cannot be written.
    """
    data = page.encode()
    with files.atomic_file(path) as file:
        file.write(data)
    return len(data)


def frame(page: str, *, title: str, height: int = 560) -> str:
    """Returns a page as an element for a notebook."""
    return (
        f'<iframe srcdoc="{html.escape(page)}" sandbox="allow-scripts allow-popups" '
        f'title="{html.escape(title)}" style="width: 100%; height: {height}px; border: 0"></iframe>'
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
def bundle(folder: pathlib.Path) -> str:
    """Returns the scripts of a page as one module: each after those it imports, without `import`s.

    They share one scope, so the browser refuses a name that two of them define.
    """
    sources, done = [], []

    def add(name: str) -> None:
        if name in done:
            return
        done.append(name)
        own = folder / 'scripts' / name
        text = _read(own if own.is_file() else SHARED / 'scripts' / name)
        for needed in _IMPORT.findall(text):
            add(needed)
        sources.append(re.sub('^export ', '', _IMPORT.sub('', text), flags=re.MULTILINE))

    add('app.js')
    return '\n'.join(sources)


def _read(path: pathlib.Path) -> str:
    return path.read_text(encoding='utf-8')
