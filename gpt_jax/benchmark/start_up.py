"""Where the time between the start of the process and the first training step goes."""

import os
import pathlib
import time

_IMPORTED = time.perf_counter()


class StartUp:
    """Consecutive phases from the start of the process on.

    Attributes:
      since: what the first phase begins with.
      seconds: how long each phase took, in order.
    """

    def __init__(self):
        age = process_age()
        self.since = 'import of the benchmark' if age is None else 'start of the process'
        self.seconds: dict[str, float] = {}
        self._last = _IMPORTED if age is None else time.perf_counter() - age

    def mark(self, phase: str) -> None:
        """Ends `phase`, which began where the one before it ended."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds up to the last mark."""
        return sum(self.seconds.values())


def process_age() -> float | None:
    """Seconds since this process started, to a hundredth; None where the system has no /proc."""
    stat = pathlib.Path('/proc/self/stat')
    if not stat.is_file():
        return None
    # proc_pid_stat(5): the second field may hold spaces; `starttime` is the 22nd, in ticks since
    # the machine started.
    start_ticks = int(stat.read_text().rpartition(')')[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf('SC_CLK_TCK')
