"""HTML pages in a real browser; their tests are skipped without one."""

import pathlib
import shutil

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


@pytest.fixture(scope='module')
def browser():
    library = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if CHROMIUM is None:
        pytest.skip('chromium is not installed')
    with library.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])


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
