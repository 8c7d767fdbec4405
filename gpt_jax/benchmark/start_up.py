"""The time from the start of the process to the first training step, by phase."""

import os
import pathlib
import time

_IMPORTED = time.perf_counter()


class StartUp:
    """Consecutive phases since the start of the process.

    Attributes:
      since: the event at which the first phase begins.
      seconds: the duration of each phase, in order.
    """

    def __init__(self):
        age = process_age()
        self.since = 'import of the benchmark' if age is None else 'start of the process'
        self.seconds: dict[str, float] = {}
        self._last = _IMPORTED if age is None else time.perf_counter() - age

    def mark(self, phase: str) -> None:
        """Ends `phase`, which began when the previous one ended."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """The seconds up to the last mark."""
        return sum(self.seconds.values())


def process_age() -> float | None:
    """Returns the seconds since this process started, to 0.01 s; None without /proc."""
    stat = pathlib.Path('/proc/self/stat')
    if not stat.is_file():
        return None
    # proc_pid_stat(5): the second field may contain spaces; `starttime` is the 22nd, in ticks since
    # the machine started.
    start_ticks = int(stat.read_text().rpartition(')')[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf('SC_CLK_TCK')
