"""The attention of one token of a text, for pages that ask again and again."""

import threading
from collections.abc import Sequence

import numpy as np

from gpt_jax.inspector.analyses import ANALYSES
from gpt_jax.inspector.inspector import Inspector

LEAST = 32  # tokens that a text is padded to


class TokenAttention:
    """Attention weights by token; may be called from any thread.

    Texts are padded at their end to a power of two, which no token before sees, so that few
    programs are compiled. The weights of the latest text are kept.
    """

    def __init__(self, inspector: Inspector):
        """Takes an inspector of a model for which `has_weights` is true."""
        self._inspector = inspector
        self._lock = threading.Lock()
        self._tokens: list[int] = []
        self._weights: np.ndarray | None = None  # [layer, head, position, source]

    @staticmethod
    def has_weights(inspector: Inspector) -> bool:
        """Returns whether the model has attention weights to show."""
        return not ANALYSES['attention'].obstacle(inspector)

    def __call__(self, tokens: Sequence[int], position: int) -> tuple[int, np.ndarray]:
        """Returns a number and the weights `[layers, heads, tokens]` of the token at `position`.

        The weights are those to the tokens from that number on, which is above 0 where the text is
        longer than the context, and to the token itself.
        """
        context = self._inspector.config.max_seq_len
        start = max(0, position + 1 - context)
        seen = list(tokens[start : position + 1])
        with self._lock:
            if self._tokens[: len(seen)] != seen:
                whole = list(tokens[start : start + context])
                padded = pad_text(whole, context)
                found = self._inspector.inspect(padded, points=['attention.weights'])
                self._weights = np.asarray(found['attention.weights'].values, np.float32)
                self._tokens = whole
            return start, self._weights[:, :, len(seen) - 1, : len(seen)]


def pad_text(tokens: Sequence[int], context: int) -> list[int]:
    """Returns tokens, padded at their end to a power of two or to the context."""
    size = min(context, max(LEAST, 1 << (len(tokens) - 1).bit_length()))
    return [*tokens, *[0] * (size - len(tokens))]
