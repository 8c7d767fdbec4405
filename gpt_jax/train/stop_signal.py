"""Stop requests: SIGTERM from a scheduler, Ctrl-C from a person, SIGHUP from a closed terminal."""

import contextlib
import signal
from types import FrameType
from typing import Self

from jax.sharding import Mesh

from gpt_jax.train.agreement import Agreement


class StopSignal:
    """A context that stores the first SIGTERM, SIGHUP or Ctrl-C for the loop to poll.

    A second signal acts at once, as it would outside the context. A SIGHUP that was ignored before,
    as under nohup, stays ignored. Works in the main thread only.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def __init__(self, answer: str = 'saving'):
        """Takes `answer`, the action that the process prints at the signal."""
        self._answer = answer
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._previous = {
            number: signal.signal(number, self._remember)
            for number in self.SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(
            number, signal.SIG_DFL if number == signal.SIGTERM else self._previous[number]
        )
        with contextlib.suppress(OSError):  # the terminal may be closed
            print(f'\n{self.received.name}: {self._answer}; once more ends at once', flush=True)


class StopAgreement:
    """The signal that all processes of a run agree on, so that they stop after the same call.

    With several processes the stop comes one call after the signal, see `Agreement`.

    Attributes:
      received: the agreed signal; None before there is one.
    """

    def __init__(self, signals: StopSignal, mesh: Mesh):
        self.received: signal.Signals | None = None
        self._signals, self._agreement = signals, Agreement(mesh)

    def requested(self) -> bool:
        """Returns whether to save and end; all processes must call it after every device call."""
        agreed = self._agreement.maximum(int(self._signals.received or 0))
        self.received = signal.Signals(agreed) if agreed else None
        return self.received is not None
