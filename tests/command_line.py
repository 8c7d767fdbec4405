"""Starting runs as a user does, and reading what they leave."""

import json
import pathlib
import subprocess
import sys

from gpt_jax.checkpoint.manifest import read_document

ROOT = pathlib.Path(__file__).parents[1]
TINY = 'tests/tiny_config.py'
# What depends on the clock and not on the numbers.
TIMED = {'train/tokens_per_second', 'train/data_wait_seconds', 'train/mfu', 'train/memory_gib'}


def start(*arguments: str, stderr: int = subprocess.STDOUT, **options) -> subprocess.Popen:
    """`python -m gpt_jax.main …` from the repository's root, output captured together."""
    return subprocess.Popen(
        [sys.executable, '-m', 'gpt_jax.main', *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=stderr,
        stdin=subprocess.DEVNULL,
        text=True,
        **options,
    )


def run(*arguments: str, status: int = 0, **options) -> str:
    """Runs to the end, checks the exit status, returns the output.

    With `stderr=PIPE` standard error comes after standard output, not between its lines.
    """
    process = start(*arguments, **options)
    output, errors = process.communicate(timeout=300)
    output += errors or ''
    assert process.returncode == status, output
    return output


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
