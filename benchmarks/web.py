"""Times generation in Chromium by a model that `--mode export --format web` wrote.

    python benchmarks/web.py FOLDER [--prompt TEXT] [--figure docs/figures/web.png]

Each round opens the page anew. Prints the medians of the time until the page is ready, of the time
from the click to the first token, and of tokens/s after it. `--figure` also takes a picture, with
the attention of one token. Needs playwright and Chromium.
"""

import argparse
import contextlib
import functools
import http.server
import re
import shutil
import statistics
import threading
import time

from playwright.sync_api import Page, sync_playwright

SIZE = {'width': 1160, 'height': 900}


class Handler(http.server.SimpleHTTPRequestHandler):
    """A file server without a log."""

    def log_message(self, *_) -> None:
        """Prints nothing."""


@contextlib.contextmanager
def serve(folder: str):
    """Serves a folder; yields its address."""
    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


def measure(page: Page, address: str, flags: argparse.Namespace) -> tuple[float, float, float]:
    """Returns the seconds until the page is ready, those to the first token, and tokens/s."""
    began = time.perf_counter()
    page.goto(address)
    page.get_by_role('button', name='Generate').wait_for()
    ready = time.perf_counter() - began
    page.get_by_role('textbox', name='Prompt').fill(flags.prompt)
    page.get_by_role('spinbutton', name='Tokens').fill(str(flags.new_tokens))
    page.get_by_role('spinbutton', name='Temperature').fill(str(flags.temperature))
    page.get_by_role('button', name='Generate').click()
    page.get_by_role('button', name='Continue', disabled=False).wait_for()
    said = page.get_by_role('status').inner_text().replace(',', '')
    rate, first = re.search(r'([\d.]+) per second; the first after (\d+) ms', said).groups()
    return ready, int(first) / 1e3, float(rate)


def main() -> None:
    """Measures, and takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder')
    parser.add_argument('--prompt', default='Once upon a time')
    parser.add_argument('--new_tokens', type=int, default=120)
    parser.add_argument('--temperature', type=float, default=0.0)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--figure', default='')
    flags = parser.parse_args()
    chromium = shutil.which('chromium') or shutil.which('chromium-browser')
    with serve(flags.folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        rounds = []
        for _ in range(flags.rounds):
            page = browser.new_page(viewport=SIZE)
            rounds.append(measure(page, address, flags))
        ready, first, rate = map(statistics.median, zip(*rounds, strict=True))
        print(f'Chromium {browser.version}, medians of {flags.rounds} rounds')
        print(f'ready after {ready:.2f} s; first token after {first * 1e3:.0f} ms; {rate:,.0f}/s')
        if flags.figure:
            page.locator('.piece').nth(40).click()
            page.screenshot(path=flags.figure)
        browser.close()


if __name__ == '__main__':
    main()
