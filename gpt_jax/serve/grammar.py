"""Texts that must be JSON: llguidance says which tokens can come next, and all others are masked.

Its masks come from the bytes of the tokens alone, so they fit every tokenizer, and a text may be
written in any of its tokens.
"""

import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

NEEDED = b'{}[]":,-0123456789aeflnrstu'  # without one of them, a text may reach a dead end
# At most once in each place; without a bound, a small model may write blanks for ever.
WHITESPACE = r' |\n {0,16}'
# Words in errors of the library.
PLAIN = {
    'at 2(8): failed to compile JSON schema: ': '',
    '<non-verbose/>': '',
    'NoExtensionBias': 'no token can come next',
}
MOST_OF_SCHEMA = 100_000  # characters; each takes about 20 bytes of memory per text
MOST_OF_ERROR = 150  # characters


class JsonGrammars:
    """The grammars of one tokenizer; the table of its tokens is built at the first use."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def start(self, schema: Mapping[str, Any]) -> 'JsonText':
        """Returns a text without tokens that must follow a JSON schema.

        Raises:
            UserError: the schema cannot be followed, or the tokenizer cannot write JSON.
        """
        import llguidance

        if 'x-guidance' in schema:
            raise UserError('response_format=json_schema: leave x-guidance out of the schema')
        rule = json.dumps({**schema, 'x-guidance': {'whitespace_pattern': WHITESPACE}})
        if len(rule) > MOST_OF_SCHEMA:
            raise UserError(
                f'response_format=json_schema: the schema has more than {MOST_OF_SCHEMA:,} '
                f'characters; shorten it'
            )
        # Forced tokens would need the tokenizer's own ids of parts of texts.
        grammar = f'%llguidance {{"no_forcing": true}}\nstart: %json {rule}'
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        text = JsonText(matcher, vocab_size=self._tokenizer.vocab_size)
        if text.error:
            raise UserError(f'response_format=json_schema cannot be followed: {text.error}')
        return text

    @functools.cached_property
    def _vocabulary(self) -> 'llguidance.LLTokenizer':
        import llguidance

        vocabulary = _Vocabulary(self._tokenizer)
        missing = [chr(byte) for byte in NEEDED if bytes([byte]) not in vocabulary.tokens]
        if missing:
            raise UserError(
                f'response_format=json_object or json_schema needs tokens for '
                f'{" ".join(missing)}, which the {self._tokenizer.kind} tokenizer of this model '
                f'lacks; ask for text'
            )
        return llguidance.LLTokenizer(vocabulary, eos_token=vocabulary.ends or None)


class _Vocabulary:
    """The tokens as llguidance reads them: those without bytes are never allowed, but for ends."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids = ()

    def __init__(self, tokenizer: Tokenizer):
        self.eos_token_id = tokenizer.eot_id
        self.ends = [i for i in (tokenizer.eot_id, *tokenizer.more_ends) if i is not None]
        self.tokens = [tokenizer.id_to_bytes(i) for i in range(tokenizer.vocab_size)]
        for token in self.ends:
            self.tokens[token] = b''


class JsonText:
    """The drawn part of a text that must be JSON, and the tokens that may follow it.

    Attributes:
      bias_V: 0 for each token that may come next, -inf for all others.
    """

    def __init__(self, matcher: 'llguidance.LLMatcher', *, vocab_size: int):
        self._matcher = matcher
        self._vocab_size = vocab_size
        self.bias_V = self._find_bias()

    @property
    def error(self) -> str:
        """The reason why the text cannot go on; empty if it can."""
        reason = self._matcher.get_error().partition('\n   1 |')[0]  # a listing of the grammar
        for words, plain in PLAIN.items():
            reason = reason.replace(words, plain)
        return ' '.join(reason.split())[:MOST_OF_ERROR]

    def push(self, tokens: list[int]) -> bool:
        """Adds drawn ids; returns whether the JSON is whole, so that nothing may follow."""
        self._matcher.consume_tokens(tokens)
        if self._matcher.is_stopped():
            return not self._matcher.is_error()
        self.bias_V = self._find_bias()
        return False

    def _find_bias(self) -> np.ndarray:
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed_V = np.unpackbits(mask, count=self._vocab_size, bitorder='little')
        return np.where(allowed_V, np.float32(0), np.float32(-np.inf))
