import os
import subprocess
import sys

import pytest

from gpt_jax.telemetry import streams
from tests.command_line import ROOT


def python(code: str, **options) -> subprocess.CompletedProcess:
    """Runs `code` with protected streams in a process of its own."""
    code = f'import sys; from gpt_jax.telemetry import streams; streams.protect(); {code}'
    return subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, stderr=subprocess.PIPE, timeout=60, **options
    )


def test_what_the_encoding_lacks_is_replaced():
    ascii_only = os.environ | {'PYTHONIOENCODING': 'ascii'}
    result = python("print('caf\\u00e9 \\u2603')", env=ascii_only, stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (0, b'caf? ?\n'), result.stderr


@pytest.fixture
def orphan():
    """A text stream to a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, 'w', encoding='utf-8') as file:
        yield streams.guarded(file)


def test_output_without_a_reader_is_discarded(orphan):
    streams.end_without_reader(orphan, ends=False)
    print('one', file=orphan, flush=True)
    print('two', file=orphan, flush=True)


def test_output_without_a_reader_ends_what_only_prints(orphan):
    streams.end_without_reader(orphan, ends=True)
    with pytest.raises(streams.ReaderGone):
        print('one', file=orphan, flush=True)
    orphan.flush()  # as the interpreter does when it ends


@pytest.mark.parametrize('closed', ['<&-', '>&-', '2>&-', '<&- >&- 2>&-'])
def test_a_closed_stream_reads_and_writes_nothing(closed, tmp_path):
    """A file that is opened later does not get the number of a closed stream."""
    code = (
        'from gpt_jax.telemetry import streams; import sys; streams.protect(); '
        f"file = open({str(tmp_path / 'file')!r}, 'w'); "
        'print(1, flush=True); print(2, file=sys.stderr, flush=True); '
        'assert file.fileno() > 2 and sys.stdin.read() == ""; sys.stdout.isatty()'
    )
    command = ['sh', '-c', f'exec "$@" {closed}', 'sh', sys.executable, '-c', code]
    result = subprocess.run(command, cwd=ROOT, input='', capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'file').read_text() == ''
