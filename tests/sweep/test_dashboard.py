import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip('optuna')

from tests.sweep.fake_runs import FakeRuns

DASHBOARD = shutil.which('optuna-dashboard', path=str(pathlib.Path(sys.executable).parent))


def fetch(url: str, process: subprocess.Popen) -> bytes:
    """Returns the answer of a server that is starting."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.read()
        except urllib.error.URLError:
            assert process.poll() is None, 'it has ended'
            time.sleep(0.1)
    raise TimeoutError(url)


@pytest.mark.slow
@pytest.mark.skipif(DASHBOARD is None, reason='optuna-dashboard is not installed')
@pytest.mark.parametrize('storage', ['', 'journal.log'])
def test_the_dashboard_shows_the_study(monkeypatch, tmp_path, storage):
    runs = FakeRuns(monkeypatch, tmp_path / 'sweep')
    runs.storage = storage and str(tmp_path / storage)
    runs.sweep(2)
    where = runs.storage or f'sqlite:///{runs.folder}/sweep.db'
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([DASHBOARD, where, '--port', str(port)]) as process:
        try:
            root = f'http://127.0.0.1:{port}'
            [study] = json.loads(fetch(f'{root}/api/studies', process))['study_summaries']
            assert study['study_name'] == 'fake'
            found = json.loads(fetch(f'{root}/api/studies/{study["study_id"]}', process))
            assert len(found['trials']) == 2 and 'eval/loss' in json.dumps(found), sorted(found)
            assert b'<html' in fetch(f'{root}/dashboard', process).lower()
        finally:
            process.terminate()
