"""Starting runs as a user does, and reading what they leave."""

import json
import pathlib
import subprocess
import sys

from gpt_jax.checkpoint.manifest import read_document
from tests.template import ROOT, Command

TINY = 'tests/tiny_config.py'
# What depends on the clock and not on the numbers.
TIMED = {'train/tokens_per_second', 'train/data_wait_seconds', 'train/mfu', 'train/memory_gib'}


def run(*arguments: str, status: int = 0, stderr: int = subprocess.STDOUT) -> str:
    """Runs a command to its end, checks the exit status, returns the output.

    With `stderr=PIPE` standard error comes after standard output, not between its lines.
    """
    with Command(*arguments, stderr=stderr) as command:
        command.wait(300)
        assert command.returncode == status, command.output()
        return command.output()


def run_anew(*arguments: str, status: int = 0, **options) -> str:
    """Does that in an interpreter of its own, as a shell does."""
    done = subprocess.run(
        [sys.executable, '-m', 'gpt_jax.main', *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        **options,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl without what the clock decides."""
    lines = (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMED}
        for line in lines
    ]


def fingerprints(workdir: pathlib.Path, step: int) -> dict:
    """The fingerprint of every array of a checkpoint."""
    return read_document(workdir / 'checkpoints', step)['leaves']
