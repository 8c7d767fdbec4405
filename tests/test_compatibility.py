"""A run made by an older commit loads, resumes and exports.

`fixtures/run_of_e3202f0.tar.xz` is the workdir of `tests/tiny_config.py` with d_model=16 after 20
of 40 steps, and the losses that the same commit reached in the other 20 (`later_losses.json`).
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

from gpt_jax.api import GPT
from gpt_jax.checkpoint import manifest
from gpt_jax.fingerprint import fingerprint_leaves
from gpt_jax.main import main

ROOT = pathlib.Path(__file__).parents[1]
FIXTURE = ROOT / 'tests' / 'fixtures' / 'run_of_e3202f0.tar.xz'


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> pathlib.Path:
    """The old run, unpacked; its config names its text relative to the repository."""
    monkeypatch.chdir(ROOT)
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path / 'run'


@pytest.mark.parametrize('weights', ['raw', 'ema'])
def test_arrays_are_those_that_were_saved(workdir, weights):
    gpt = GPT.load(workdir, weights=weights)
    assert gpt.steps == 20
    stored = manifest.read_document(workdir / 'checkpoints', 20)['leaves']
    item = 'params' if weights == 'raw' else 'ema'
    for path, print_ in fingerprint_leaves(gpt.params).items():
        assert stored[f'{item}/{path}']['fingerprint'] == print_, path


def test_it_is_continued_to_the_losses_of_the_old_commit(workdir):
    expected = json.loads((workdir / 'later_losses.json').read_text())
    assert main(['--workdir', str(workdir)]) == 0
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    found = {f'{row["step"]} {name}': value for row in rows for name, value in row.items()}
    assert len(expected) == 14  # ten of training, two of evaluation for two weights
    # Equal bit for bit where both were compiled by the same flags on the same machine.
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=key)


def test_it_is_exported(workdir, tmp_path):
    out = tmp_path / 'out'
    arguments = ['--mode', 'export', '--format', 'safetensors', '--out', str(out)]
    assert main(['--workdir', str(workdir), *arguments]) == 0
    tokens = [[1, 5, 9, 2]]
    logits = GPT.load(workdir).apply(tokens)
    np.testing.assert_array_equal(GPT.from_pretrained(out).apply(tokens), logits)
