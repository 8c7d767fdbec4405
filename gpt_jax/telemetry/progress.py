"""Progress display: amount done, rate and ETA, as a live line on a terminal or lines in a log."""

import collections
import sys
import time
from typing import Self, TextIO

RATE_WINDOW_SECONDS = 60.0  # the window of the displayed rate, short enough to show slow-downs
PREFIXES = ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k'), (1.0, ''))


class Progress:
    """The progress display of one task; a context manager.

    On a terminal it is a live line with a bar. Elsewhere it prints a line at the first update,
    every `every_seconds`, and at the end:

        train  1200/2000 steps  60%  loss 1.9123  45.2 k tok/s  eta 0:01:12
    """

    def __init__(
        self,
        total: float,
        *,
        unit: str,
        description: str,
        start: float = 0.0,
        every_seconds: float = 10.0,
        quiet: bool = False,
        stream: TextIO | None = None,
    ):
        """Stores the settings; nothing is shown before the first `update`, `print` or `with`.

        Args:
          total: the amount of work in `unit`s; 0 if unknown (no percentage, no ETA).
          unit: the unit of work: 'steps', 'tokens', 'B' for bytes.
          description: the first word of the line.
          start: work done before this process started, as in a resumed run.
          every_seconds: the minimum time between two plain lines.
          quiet: show nothing, as on all processes but the first.
          stream: the output stream; standard output if None.
        """
        self.total, self.unit, self.description = total, unit, description
        self._done, self._every_seconds, self._quiet = start, every_seconds, quiet
        self._stream = stream or sys.stdout
        self._fields: dict[str, float | str] = {}
        self._began, self._start = time.monotonic(), start
        self._marks = collections.deque([(self._began, start)])  # (seconds, done), oldest first
        self._updates = 0
        self._next_line = -float('inf')
        self._unshown = False
        self._bar = None

    def __enter__(self) -> Self:
        if not self._quiet and self._stream.isatty():
            self._bar = _make_bar(self._stream)
            self._bar.add_task(
                self.description, total=self.total or None, completed=self._done, status=''
            )
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._unshown:
            self._write_line()

    def update(self, done: float, **fields: float | str) -> None:
        """Sets the amount of finished work, `start` included, to `done` units.

        Fields are shown as `name value` and kept until replaced. A field whose name ends in '/s' is
        shown as a rate, `45.2 k tok/s`, instead of the rate of the unit.
        """
        now = time.monotonic()
        self._done = done
        self._fields.update(fields)
        self._mark(now)
        self._unshown = not self._quiet
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, status=self._status())
        elif self._unshown and now >= self._next_line:
            self._write_line()
            self._next_line = now + self._every_seconds

    def announce(self, what: str, *, log: bool = True) -> None:
        """Shows the current activity until the next `update`, or until `announce('')`.

        `log=False` shows it on live lines only.
        """
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], status=what or self._status())
        elif log:
            self.print(f'{self.description}  {what}')

    def skip(self, seconds: float) -> None:
        """Excludes the last `seconds`, in which no work was done, from the rate and the ETA."""
        self._marks = collections.deque((at + seconds, done) for at, done in self._marks)

    def print(self, line: str) -> None:
        """Prints a separate line, above the live bar if there is one."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)

    def _mark(self, now: float) -> None:
        """Records the time and the amount done, for the rate of the last minute."""
        self._updates += 1
        if self._updates == 1:
            # The first update includes compilation and other warm-up: measure after it.
            self._marks.append((now, self._done))
            return
        if self._updates == 2:
            self._marks.popleft()
        if len(self._marks) > 2 and now - self._marks[-2][0] < 0.2:
            self._marks.pop()
        self._marks.append((now, self._done))
        while len(self._marks) > 2 and now - self._marks[1][0] > RATE_WINDOW_SECONDS:
            self._marks.popleft()

    def _rate(self) -> float:
        """Computes units per second over the last minute; 0 if unknown."""
        (before, done_before), (after, done_after) = self._marks[0], self._marks[-1]
        return (done_after - done_before) / (after - before) if after > before else 0.0

    def _status(self) -> str:
        finished = bool(self.total) and self._done >= self.total
        elapsed = time.monotonic() - self._began
        rate = (self._done - self._start) / max(elapsed, 1e-9) if finished else self._rate()
        parts = [format_amount(self._done, self.total, self.unit)]
        if self.total:
            # Rounded down, so that 100% means that everything is done.
            parts.append(f'{int(100 * min(self._done / self.total, 1.0))}%')
        rates = {name: value for name, value in self._fields.items() if name.endswith('/s')}
        for name, value in self._fields.items():
            if name not in rates:
                parts.append(
                    f'{name} {value:.4f}' if isinstance(value, float) else f'{name} {value}'
                )
        for name, value in (rates or {f'{self.unit}/s': rate}).items():
            parts.append(format_rate(value, name))
        if finished:
            parts.append(f'took {format_duration(elapsed)}')
        elif self.total:
            known = rate and self._updates > 1  # the first update includes warm-up
            parts.append(
                f'eta {format_duration((self.total - self._done) / rate if known else None)}'
            )
        return '  '.join(parts)

    def _write_line(self) -> None:
        print(f'{self.description}  {self._status()}', file=self._stream, flush=True)
        self._unshown = False


def _make_bar(stream: TextIO):
    from rich import console, progress

    screen = console.Console(file=stream)
    # A narrow window has no room for the bar.
    bar = [progress.BarColumn(bar_width=24)] if screen.width >= 100 else []
    return progress.Progress(
        progress.TextColumn('{task.description}', markup=False),
        *bar,
        progress.TextColumn('{task.fields[status]}', markup=False),
        console=screen,
        refresh_per_second=4,
    )


def format_amount(done: float, total: float, unit: str) -> str:
    """Formats as `1200/2000 steps`, `3.2/11.4 M tokens`, `3.2/11.4 MB`; omits a total of 0."""
    largest = max(done, total)
    scaled = largest >= (1e3 if unit == 'B' else 1e6)
    scale, prefix = _prefix_of(largest) if scaled else (1.0, '')
    digits = 1 if scaled else 0
    amount = f'{done / scale:.{digits}f}'
    if total:
        amount += f'/{total / scale:.{digits}f}'
    return f'{amount} {prefix}{unit}' if unit == 'B' or not prefix else f'{amount} {prefix} {unit}'


def format_rate(rate: float, name: str) -> str:
    """Formats as `45.2 k tok/s`, `11.4 MB/s`, `0.25 steps/s`: three digits."""
    scale, prefix = _prefix_of(rate)
    value = rate / scale
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    space = ' ' if prefix and not name.startswith('B/') else ''
    return f'{value:.{digits}f} {prefix}{space}{name}'


def format_duration(seconds: float | None) -> str:
    """Formats as `0:01:12`, with hours beyond 24 instead of days; `-:--:--` if unknown."""
    if seconds is None:
        return '-:--:--'
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f'{hours}:{minute:02d}:{second:02d}'


def _prefix_of(value: float) -> tuple[float, str]:
    return next((pair for pair in PREFIXES if value >= pair[0]), PREFIXES[-1])
