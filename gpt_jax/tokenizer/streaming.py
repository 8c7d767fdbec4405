"""Incremental decoding of ids, which never emits part of a character."""

import codecs
from collections.abc import Callable
from typing import Any


class StreamDecoder:
    """An incremental decoder; the texts of all pushes and the flush join to `decode(all ids)`.

    Bytes of an incomplete character are held back until the next push. To decode the
    continuation of a prompt, push the prompt first and ignore its text: some SentencePiece
    models put a space before the first word of a text only.
    """

    def __init__(self, to_bytes: Callable[[Any], bytes], *, leading_spaces: int = 0):
        """Decodes `to_bytes(ids)`, without up to `leading_spaces` spaces at the start."""
        self._to_bytes = to_bytes
        self._leading_spaces = leading_spaces
        self._utf8 = codecs.getincrementaldecoder('utf-8')('replace')

    def push(self, ids: Any) -> str:
        """Returns the characters that `ids` (a sequence, an array or one id) complete.

        Raises:
            UserError: an id is outside the vocabulary; the stream is unchanged.
        """
        data = self._to_bytes(ids)
        if self._leading_spaces and data:
            spaces = min(len(data) - len(data.lstrip(b' ')), self._leading_spaces)
            data = data[spaces:]
            self._leading_spaces = 0 if data else self._leading_spaces - spaces
        return self._utf8.decode(data)

    def flush(self) -> str:
        """Returns the rest: U+FFFD if the ids ended inside a character, else ''."""
        return self._utf8.decode(b'', final=True)
