"""A server under load writes every text as it should; benchmarks/serving.py is the load."""

import re
import subprocess
import sys

import pytest

from tests.command_line import TINY, run
from tests.template import ROOT

pytest.importorskip('uvicorn', reason='needs the extra serve')


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason='once, on Python 3.11')
def test_a_server_under_load(tmp_path):
    workdir = tmp_path / 'tiny'
    run('--config', TINY, '--workdir', str(workdir), '--config.model.max_seq_len=128')
    script = [sys.executable, 'benchmarks/serving.py', '--workdir', str(workdir)]
    done = subprocess.run(
        [*script, '--seconds', '12', '--clients', '64'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = dict(re.findall(r"'(\d+)': (\d+)", done.stdout))
    assert set(statuses) <= {'200', '429'}
    assert int(statuses['200']) > 100
    assert int(re.search(r'(\d+) hung up', done.stdout)[1]) > 20
