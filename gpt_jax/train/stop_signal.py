"""Being told to stop: SIGTERM from a scheduler, Ctrl-C from a person."""

import signal
from types import FrameType
from typing import Self


class StopSignal:
    """While active, the first SIGTERM or Ctrl-C is remembered for the loop to poll.

    A second one acts at once, as it would without this. Works in the main thread only.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether to save and end."""
        return self.received is not None

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(
            number, signal.SIG_DFL if number == signal.SIGTERM else self._previous[number]
        )
        print(f'\n{self.received.name}: saving; once more ends at once', flush=True)
