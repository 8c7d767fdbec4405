"""Decoding ids as they arrive, without ever showing half of a character."""

import codecs
from collections.abc import Callable
from typing import Any


class StreamDecoder:
    """Text of ids pushed a few at a time; what was pushed and flushed equals `decode(all ids)`.

    Bytes that may still become a character are held back until the next push. To decode the
    continuation of a prompt, push the prompt first and ignore its text: some SentencePiece
    models write a space before the first word, which belongs to the beginning only.
    """

    def __init__(self, to_bytes: Callable[[Any], bytes], *, leading_spaces: int = 0):
        """Decodes what `to_bytes(ids)` gives, less up to `leading_spaces` spaces at the start."""
        self._to_bytes = to_bytes
        self._leading_spaces = leading_spaces
        self._utf8 = codecs.getincrementaldecoder('utf-8')('replace')

    def push(self, ids: Any) -> str:
        """The characters that `ids` (a sequence, an array or one id) complete.

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
        """The rest: U+FFFD when the ids ended in the middle of a character, else nothing."""
        return self._utf8.decode(b'', final=True)
