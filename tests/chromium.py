"""HTML pages in a real browser; their tests are skipped without one."""

import contextlib
import functools
import http.server
import pathlib
import shutil
import threading

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


@contextlib.contextmanager
def launch(*flags):
    """Starts Chromium; skips the test without one."""
    library = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if CHROMIUM is None:
        pytest.skip('chromium is not installed')
    with library.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', *flags])


@pytest.fixture(scope='module')
def browser():
    with launch() as browser:
        yield browser


@pytest.fixture
def opened(browser, tmp_path):
    """Opens an HTML text; at the end, no page had an error or asked for anything."""
    complaints, contexts = [], []

    def open_page(html, **options):
        path = pathlib.Path(tmp_path / 'page.html')
        path.write_text(html, encoding='utf-8')
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on('console', lambda message: complaints.append(message.text))
        page.on('pageerror', lambda error: complaints.append(str(error)))
        page.on('request', lambda request: complaints.append(request.url))
        page.goto(path.as_uri())
        complaints.remove(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints, complaints


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder):
    """Serves a folder as `python -m http.server` does; yields its address."""
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()
        thread.join()


@pytest.fixture(scope='module')
def browse(browser):
    """Opens addresses; at the end, no page had an error or asked anyone else."""
    complaints = []
    with contextlib.ExitStack() as stack:

        def open_page(address, *, path='', **options):
            context = stack.enter_context(contextlib.closing(browser.new_context(**options)))

            def look(request):
                if not request.url.startswith((address, 'data:', f'blob:{address}')):
                    complaints.append(request.url)

            context.on('request', look)
            context.on('console', lambda message: complaints.append(message.text))
            page = context.new_page()
            page.on('pageerror', lambda error: complaints.append(str(error)))
            page.goto(address + path)
            return page

        yield open_page
    assert not complaints, complaints


@pytest.fixture(scope='module')
def visit(browse):
    """Opens folders through a server; see `browse`."""
    with contextlib.ExitStack() as stack:
        yield lambda folder, **options: browse(stack.enter_context(serve(folder)), **options)
