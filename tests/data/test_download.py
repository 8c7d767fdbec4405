import functools
import hashlib
import http.server
import threading

import pytest

from gpt_jax.data.config import DataConfig
from gpt_jax.data.corpora import make_corpus
from gpt_jax.data.download import download
from gpt_jax.errors import UserError

TEXT = b'To be, or not to be\n' * 40_000
SHA256 = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture
def server(tmp_path):
    """A web server on this machine: its address, and the paths that were asked for."""
    folder = tmp_path / 'web'
    folder.mkdir()
    (folder / 'play.txt').write_bytes(TEXT)
    (folder / 'lines.jsonl').write_bytes(b'{"text": "one"}\n')
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

        def do_GET(self):
            if self.path != '/cut.txt':
                return super().do_GET()
            self.send_response(200)
            self.send_header('Content-Length', str(len(TEXT)))
            self.end_headers()
            self.wfile.write(TEXT[:1000])  # and the connection ends

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{web.server_port}', asked
        web.shutdown()
        thread.join()


def test_a_file_is_fetched_once_and_verified(server, tmp_path):
    address, asked = server
    path = download(f'{address}/play.txt?v=1', sha256=SHA256.upper(), folder=tmp_path / 'cache')
    assert path.read_bytes() == TEXT and path.name.endswith('play.txt')
    assert download(f'{address}/play.txt', sha256=SHA256, folder=tmp_path / 'cache') == path
    assert len(asked) == 1
    path.write_bytes(TEXT[:-1])  # damaged in the cache: fetched again
    assert download(f'{address}/play.txt', sha256=SHA256, folder=tmp_path / 'cache') == path
    assert path.read_bytes() == TEXT and len(asked) == 2


@pytest.mark.parametrize('name', ['play.txt', 'cut.txt', 'missing.txt'])
def test_what_cannot_be_verified_leaves_nothing(server, tmp_path, name):
    wrong = hashlib.sha256(b'something else').hexdigest()
    expected = wrong if name == 'play.txt' else SHA256
    with pytest.raises(UserError, match=f'{name}.*') as caught:
        download(f'{server[0]}/{name}', sha256=expected, folder=tmp_path / 'cache')
    assert '\n' not in str(caught.value)
    assert ('404' if name == 'missing.txt' else 'config.data.sha256') in str(caught.value)
    assert list((tmp_path / 'cache').iterdir()) == []


def test_no_network_is_one_line_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match='cannot download http://127.0.0.1:1/.*corpus=text'):
        download('http://127.0.0.1:1/x.txt', sha256=SHA256, folder=tmp_path)
    with pytest.raises(UserError, match='cannot download nonsense'):
        download('nonsense', sha256=SHA256, folder=tmp_path)


@pytest.mark.parametrize('sha256', ['', 'abc', 'g' * 64])
def test_a_download_is_never_unverified(tmp_path, sha256):
    with pytest.raises(UserError, match='config.data.sha256'):
        download('http://127.0.0.1:1/x.txt', sha256=sha256, folder=tmp_path)


def test_the_name_decides_how_a_file_is_read(server, tmp_path):
    def texts(name, data):
        config = DataConfig(
            corpus='url',
            source=f'{server[0]}/{name}',
            sha256=hashlib.sha256(data).hexdigest(),
            cache_dir=str(tmp_path / 'cache'),
        )
        return [piece.text for piece in make_corpus(config).pieces()]

    assert texts('lines.jsonl', b'{"text": "one"}\n') == ['one']
    assert texts('play.txt', TEXT) == [TEXT.decode()]
