"""The files of the page that generates text: a template, a style and JavaScript modules.

`page/` talks to a backend, which tokenizes, generates and, where it can, returns attention;
`page/scripts/page.js` describes this interface. A folder of scripts with a backend has an `app.js`
that starts the page with it. `browser/` is the backend that runs the model in a web worker.
"""

import pathlib
import re

from gpt_jax.page import SHARED

_FOLDER = pathlib.Path(__file__).parent
_PAGE, _BROWSER = _FOLDER / 'page', _FOLDER / 'browser'
_MODULE = re.compile(r"'\./(\w+\.js)'")


def browser_files() -> dict[str, str]:
    """Returns the files of the page that runs a model itself: it reads model.json and model.bin."""
    return page_files(_BROWSER)


def page_files(backend: pathlib.Path) -> dict[str, str]:
    """Returns the files of the page with a backend, by name.

    Args:
      backend: a folder with `scripts/app.js`. Its scripts name others, of their own folder, of the
        page or of `gpt_jax.page`, as './name.js'.
    """
    folders = [folder / 'scripts' for folder in (backend, _PAGE, SHARED)]
    found: dict[str, str] = {}

    def add(name: str) -> None:
        if name in found:
            return
        path = next(folder / name for folder in folders if (folder / name).is_file())
        found[name] = path.read_text(encoding='utf-8')
        for needed in _MODULE.findall(found[name]):
            add(needed)

    add('start.js')
    style = [(folder / 'style.css').read_text(encoding='utf-8') for folder in (SHARED, _PAGE)]
    scripts = {f'scripts/{name}': text for name, text in found.items()}
    index = (_PAGE / 'index.html').read_text(encoding='utf-8')
    return {'index.html': index, 'style.css': ''.join(style), **scripts}
