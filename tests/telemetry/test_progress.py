"""The progress line on a terminal and in a log."""

import contextlib
import io
import os
import pty

import pytest

from gpt_jax.telemetry import progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, 'time', clock)
    return clock


def lines_of(clock, seconds_per_step, *, steps=100, every_seconds=10.0, **options) -> list[str]:
    stream = io.StringIO()
    with progress.Progress(
        steps,
        unit='steps',
        description='train',
        every_seconds=every_seconds,
        stream=stream,
        **options,
    ) as shown:
        for step in range(1, steps + 1):
            clock.now += seconds_per_step
            shown.update(step, loss=2.0 - step / 1000, **{'tok/s': 45_200.0})
    return stream.getvalue().splitlines()


def test_a_log_gets_the_first_line_one_per_interval_and_the_last(clock):
    lines = lines_of(clock, 1.0)
    assert [line.split()[1] for line in lines] == [
        *(f'{1 + 10 * index}/100' for index in range(10)),
        '100/100',
    ]
    assert lines[6] == 'train  61/100 steps  61%  loss 1.9390  45.2 k tok/s  eta 0:00:39'
    assert lines[-1] == 'train  100/100 steps  100%  loss 1.9000  45.2 k tok/s  took 0:01:40'


def test_the_last_line_comes_once_also_when_it_was_due(clock):
    assert [line.split()[1] for line in lines_of(clock, 10.0, steps=3)] == ['1/3', '2/3', '3/3']


def test_an_interrupted_task_still_ends_with_its_last_state(clock):
    stream = io.StringIO()
    with (
        pytest.raises(KeyboardInterrupt),
        progress.Progress(9, unit='steps', description='train', stream=stream) as shown,
    ):
        shown.update(1)
        shown.update(2)
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines()[-1].startswith('train  2/9 steps  22%')


def test_the_rate_forgets_the_compilation_and_the_work_of_an_earlier_process(clock):
    stream = io.StringIO()
    with progress.Progress(
        2000, unit='steps', description='train', start=1000, every_seconds=0.0, stream=stream
    ) as shown:
        clock.now += 60  # compiles
        shown.update(1001)
        for step in range(1002, 1012):
            clock.now += 0.5
            shown.update(step)
    assert stream.getvalue().splitlines()[-1].endswith('2.00 steps/s  eta 0:08:14')


def test_the_eta_waits_for_a_rate_and_leaves_out_what_is_skipped(clock):
    stream = io.StringIO()
    with progress.Progress(
        100, unit='steps', description='train', every_seconds=0.0, stream=stream
    ) as shown:
        shown.announce('compiling the training step')
        clock.now += 20
        shown.update(1)
        for step in range(2, 12):
            clock.now += 1
            shown.update(step)
        clock.now += 50
        shown.skip(50)
        clock.now += 1
        shown.update(12)
    lines = stream.getvalue().splitlines()
    assert lines[0] == 'train  compiling the training step'
    assert lines[1].endswith('eta -:--:--')
    assert lines[2].endswith('eta 0:01:38')
    assert lines[-1].endswith('eta 0:01:28')


def test_the_rate_follows_a_slow_down(clock):
    stream = io.StringIO()
    with progress.Progress(
        10_000, unit='steps', description='train', every_seconds=0.0, stream=stream
    ) as shown:
        for step in range(1, 1001):
            clock.now += 0.01 if step <= 500 else 1.0
            shown.update(step)
    assert '  1.00 steps/s  ' in stream.getvalue().splitlines()[-1]


def test_an_unknown_total_has_neither_percentage_nor_eta(clock):
    stream = io.StringIO()
    with progress.Progress(0, unit='B', description='download', stream=stream) as shown:
        clock.now += 2
        shown.update(4_200_000)
    assert stream.getvalue() == 'download  4.2 MB  2.10 MB/s\n'


def test_quiet_shows_nothing(clock, capsys):
    assert lines_of(clock, 1.0, quiet=True) == []
    shown = progress.Progress(1, unit='steps', description='train', quiet=True)
    shown.print('hidden')
    assert capsys.readouterr().out == ''


def test_print_goes_to_standard_output_by_default(capsys):
    with progress.Progress(1, unit='steps', description='train') as shown:
        shown.print('eval/loss [1.5]')
    assert capsys.readouterr().out == 'eval/loss [1.5]\n'


def _everything_on(screen: int) -> str:
    """Returns the text written to the closed end of a terminal; closes this end."""
    written = b''
    # One read may return less than everything; Linux ends a terminal with EIO instead of b''.
    with os.fdopen(screen, 'rb', buffering=0) as reader, contextlib.suppress(OSError):
        while piece := reader.read(1 << 16):
            written += piece
    return written.decode()


def test_a_terminal_gets_a_live_line_and_prints_above_it(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '100')
    reader, writer = pty.openpty()
    with (
        os.fdopen(writer, 'w') as stream,
        progress.Progress(2, unit='steps', description='train', stream=stream) as shown,
    ):
        shown.update(1, loss=1.5)
        shown.print('a sample [bold]')
        shown.update(2, loss=1.25)
    written = _everything_on(reader)
    assert 'a sample [bold]\r\n' in written
    assert '2/2 steps  100%  loss 1.2500' in written
    assert '━' in written
    assert written.index('a sample') < written.index('loss 1.2500')


@pytest.mark.parametrize(
    ('done', 'total', 'unit', 'expected'),
    [
        (5, 10, 'steps', '5/10 steps'),
        (5, 0, 'documents', '5 documents'),
        (999_999, 999_999, 'tokens', '999999/999999 tokens'),
        (3_200_000, 11_440_000, 'tokens', '3.2/11.4 M tokens'),
        (512, 900, 'B', '512/900 B'),
        (1_500, 90_000, 'B', '1.5/90.0 kB'),
    ],
)
def test_format_amount(done, total, unit, expected):
    assert progress.format_amount(done, total, unit) == expected


@pytest.mark.parametrize(
    ('rate', 'name', 'expected'),
    [
        (0.25, 'steps/s', '0.25 steps/s'),
        (45_210, 'tok/s', '45.2 k tok/s'),
        (503_000, 'tok/s', '503 k tok/s'),
        (2.1e6, 'B/s', '2.10 MB/s'),
        (0.0, 'steps/s', '0.00 steps/s'),
    ],
)
def test_format_rate(rate, name, expected):
    assert progress.format_rate(rate, name) == expected


@pytest.mark.parametrize(
    ('seconds', 'expected'),
    [(None, '-:--:--'), (59.6, '0:01:00'), (72, '0:01:12'), (180_000, '50:00:00')],
)
def test_format_duration(seconds, expected):
    assert progress.format_duration(seconds) == expected


def test_what_is_finished_has_its_mean_rate(clock):
    stream = io.StringIO()
    with progress.Progress(100, unit='B', description='prepare', stream=stream, start=20) as shown:
        clock.now += 4
        shown.update(100)
        clock.now += 4
        shown.update(100, tokens=7)  # nothing more was read since
    assert '  10.0 B/s  took 0:00:08' in stream.getvalue().splitlines()[-1]
