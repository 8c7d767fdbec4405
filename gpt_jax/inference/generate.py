"""Generation of text: prompts in, text out as it appears, cut exactly at stop strings."""

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.decode import Decoder, DecodeStatistics
from gpt_jax.model.config import ModelConfig
from gpt_jax.tokenizer import Tokenizer

Prompt = str | list[int]  # a text, or the ids of one


class Ended(enum.StrEnum):
    """Why a text ended."""

    LENGTH = 'length'  # max_new_tokens were drawn
    END_OF_TEXT = 'end_of_text'  # the model drew the end-of-text token
    STOP = 'stop'  # a stop string appeared


@dataclasses.dataclass(kw_only=True)
class Generation:
    """One generated text; it grows while it is streamed."""

    prompt: str
    text: str = ''  # after the prompt
    tokens: list[int] = dataclasses.field(default_factory=list)  # drawn, without end of text
    ended: Ended | None = None  # None: not yet


class Generator:
    """Writes text with a model's parameters (stored layout) and its tokenizer."""

    def __init__(self, config: ModelConfig, params: Any, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        vocab_size = tokenizer.vocab_size
        never = vocab_size  # an id that is not drawn
        eot_id = never if tokenizer.eot_id is None else tokenizer.eot_id
        self._decoder = Decoder(config, params, vocab_size=vocab_size, eot_id=eot_id)

    @property
    def statistics(self) -> DecodeStatistics:
        """Of the latest generation, as far as it has come."""
        return self._decoder.statistics

    def generate(self, prompts: Sequence[Prompt], sampling: SampleConfig) -> list[Generation]:
        """`num_samples` texts for each prompt, those of the first prompt first.

        Raises:
            UserError: a prompt is longer than the context.
        """
        rows = self._rows(prompts, sampling)
        # With nothing to look for, one call draws all.
        chunk = sampling.chunk if sampling.stop or self._tokenizer.more_ends else 0
        for _ in self._advance(rows, sampling, chunk=chunk):
            pass
        return [row.generation for row in rows]

    def stream(
        self, prompts: Sequence[Prompt], sampling: SampleConfig
    ) -> Iterator[list[tuple[str, Generation]]]:
        """Yields, chunk after chunk, the new text of each row and the row as it stands.

        A piece never ends in half a character, nor in what may be the start of a stop string.
        """
        rows = self._rows(prompts, sampling)
        for pieces in self._advance(rows, sampling, chunk=sampling.chunk):
            yield list(zip(pieces, [row.generation for row in rows], strict=True))

    def _rows(self, prompts: Sequence[Prompt], sampling: SampleConfig) -> list['_Row']:
        return [
            _Row(prompt, self._tokenizer, sampling.stop)
            for prompt in prompts
            for _ in range(sampling.num_samples)
        ]

    def _advance(
        self, rows: list['_Row'], sampling: SampleConfig, *, chunk: int
    ) -> Iterator[list[str]]:
        """Draws chunk after chunk into the rows until all have ended; yields the new texts."""
        encoded = [row.prompt_tokens for row in rows]
        drawn = 0
        for tokens in self._decoder.generate(encoded, sampling, chunk=chunk):
            drawn += tokens.shape[1]
            last = drawn >= sampling.max_new_tokens
            yield [row.push(new.tolist(), last) for row, new in zip(rows, tokens, strict=True)]
            if all(row.generation.ended for row in rows):
                return


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids that a text begins with: at least one, since the model must have something to see.

    Raises:
        UserError: the prompt is empty, and the vocabulary has no token that stands at a start.
    """
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = begin + tokenizer.encode(prompt)
    if ids:
        return ids
    if tokenizer.eot_id is None:
        raise UserError('this vocabulary has no token to begin with; give a prompt')
    return [tokenizer.eot_id]  # where a document begins


class _Row:
    """One text on its way from ids to characters."""

    def __init__(self, prompt: Prompt, tokenizer: Tokenizer, stop: Sequence[str]):
        is_text = isinstance(prompt, str)
        self.generation = Generation(prompt=prompt if is_text else tokenizer.decode(prompt))
        self.prompt_tokens = encode_prompt(tokenizer, prompt) if is_text else prompt
        self._ends = {*tokenizer.more_ends, tokenizer.eot_id}
        special = tokenizer.special_tokens
        self._stop_ids = {special[name] for name in stop if name in special}  # they have no text
        self._decoder = tokenizer.stream()
        self._decoder.push(self.prompt_tokens)  # so that the text goes on inside a sentence
        self._stop = stop
        self._held = ''  # decoded, but perhaps the start of a stop string

    def push(self, tokens: list[int], last: bool) -> str:
        """Takes drawn ids, returns the text that is certain now. `last`: no more will come."""
        result = self.generation
        shown = len(result.text)
        for token in tokens:  # one by one, so that the result does not depend on the chunks
            if result.ended:
                break
            if token in self._ends or token in self._stop_ids:
                is_stop = token in self._stop_ids - self._ends
                self._release(Ended.STOP if is_stop else Ended.END_OF_TEXT)
            else:
                result.tokens.append(token)
                self._held += self._decoder.push([token])
                self._release()
        if last and not result.ended:
            self._release(Ended.LENGTH)
        return result.text[shown:]

    def _release(self, ended: Ended | None = None) -> None:
        """Shows what is certain of the held text; of stop strings the first that is complete."""
        if ended:
            self._held += self._decoder.flush()
        starts = {stop: self._held.find(stop) for stop in self._stop}
        stops = [(at + len(stop), at) for stop, at in starts.items() if at >= 0]
        if stops:
            (_, cut), ended = min(stops), Ended.STOP
        else:
            cut = len(self._held) - (0 if ended else self._possible_stop())
        self.generation.text += self._held[:cut]
        self._held = self._held[cut:]
        self.generation.ended = ended

    def _possible_stop(self) -> int:
        """How many characters at the end of the held text may begin a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
