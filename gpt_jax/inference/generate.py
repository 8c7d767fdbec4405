"""Generation of text from prompts, at once or streamed, cut exactly at stop strings."""

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig, WeightType
from gpt_jax.inference.decode import Decoder, DecodeStatistics
from gpt_jax.model.config import ModelConfig
from gpt_jax.tokenizer import Tokenizer

Prompt = str | list[int]  # a text, or its ids


class Ended(enum.StrEnum):
    """The reason why a text ended."""

    LENGTH = 'length'  # max_new_tokens were drawn
    END_OF_TEXT = 'end_of_text'  # the model drew the end-of-text token
    STOP = 'stop'  # a stop string appeared


@dataclasses.dataclass(kw_only=True)
class Generation:
    """One generated text; it grows during streaming."""

    prompt: str
    text: str = ''  # after the prompt
    tokens: list[int] = dataclasses.field(default_factory=list)  # drawn, without end of text
    ended: Ended | None = None  # None: not yet


class Generator:
    """A text generator, made of a model's parameters (stored layout) and its tokenizer."""

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        tokenizer: Tokenizer,
        *,
        weight_dtype: WeightType = WeightType.COMPUTE,
        consume: bool = False,
    ):
        """Takes parameters in the stored layout; with `consume`, `params` is empty afterwards."""
        self.weight_dtype = weight_dtype
        self._tokenizer = tokenizer
        self._decoder = make_decoder(
            config, params, tokenizer, weight_dtype=weight_dtype, consume=consume
        )

    @property
    def statistics(self) -> DecodeStatistics:
        """Statistics of the latest generation, updated after each chunk."""
        return self._decoder.statistics

    def generate(self, prompts: Sequence[Prompt], sampling: SampleConfig) -> list[Generation]:
        """Returns `num_samples` texts for each prompt, those of the first prompt first.

        Raises:
            UserError: a prompt is longer than the context.
        """
        rows = self._rows(prompts, sampling)
        # Without stop strings or further end tokens, a single call draws all tokens.
        chunk = sampling.chunk if sampling.stop or self._tokenizer.more_ends else 0
        for _ in self._advance(rows, sampling, chunk=chunk):
            pass
        return [row.generation for row in rows]

    def stream(
        self, prompts: Sequence[Prompt], sampling: SampleConfig
    ) -> Iterator[list[tuple[str, Generation]]]:
        """Yields, after each chunk, the new text of each row and the row's generation so far.

        A new text never ends inside a character, nor with a possible start of a stop string.
        """
        rows = self._rows(prompts, sampling)
        for pieces in self._advance(rows, sampling, chunk=sampling.chunk):
            yield list(zip(pieces, [row.generation for row in rows], strict=True))

    def _rows(self, prompts: Sequence[Prompt], sampling: SampleConfig) -> list['TextRow']:
        return [
            TextRow(prompt, self._tokenizer, sampling.stop)
            for prompt in prompts
            for _ in range(sampling.num_samples)
        ]

    def _advance(
        self, rows: list['TextRow'], sampling: SampleConfig, *, chunk: int
    ) -> Iterator[list[str]]:
        """Draws chunks until all rows have ended; yields the new text of each row."""
        encoded = [row.prompt_tokens for row in rows]
        drawn = [0] * len(rows)
        for tokens in self._decoder.generate(encoded, sampling, chunk=chunk):
            drawn = [count + len(new) for count, new in zip(drawn, tokens, strict=True)]
            yield [
                row.push(new, count >= sampling.max_new_tokens)
                for row, new, count in zip(rows, tokens, drawn, strict=True)
            ]
            if all(row.generation.ended for row in rows):
                return


def make_decoder(config: ModelConfig, params: Any, tokenizer: Tokenizer, **options: Any) -> Decoder:
    """Returns a decoder that draws the ids of the tokenizer; `options` are those of `Decoder`."""
    never = tokenizer.vocab_size  # an id that is never drawn
    eot_id = never if tokenizer.eot_id is None else tokenizer.eot_id
    return Decoder(config, params, vocab_size=tokenizer.vocab_size, eot_id=eot_id, **options)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Returns the ids of a prompt: at least one, since the model needs an input token.

    Raises:
        UserError: the prompt is empty, and the vocabulary has no token to begin a text with.
    """
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = begin + tokenizer.encode(prompt)
    if ids:
        return ids
    if tokenizer.eot_id is None:
        raise UserError('this vocabulary has no token to begin with; give a prompt')
    return [tokenizer.eot_id]  # documents begin after this token


class TextRow:
    """One row of a generation: turns drawn ids into text and finds stop strings."""

    def __init__(self, prompt: Prompt, tokenizer: Tokenizer, stop: Sequence[str]):
        is_text = isinstance(prompt, str)
        self.generation = Generation(prompt=prompt if is_text else tokenizer.decode(prompt))
        self.prompt_tokens = encode_prompt(tokenizer, prompt) if is_text else prompt
        self._ends = {*tokenizer.more_ends, tokenizer.eot_id}
        special = tokenizer.special_tokens
        self._stop_ids = {special[name] for name in stop if name in special}  # they have no text
        self._decoder = tokenizer.stream()
        self._decoder.push(self.prompt_tokens)  # so that the text continues the prompt
        self._stop = stop
        self._held = ''  # decoded, but possibly the start of a stop string

    def ends_at(self, tokens: list[int]) -> bool:
        """Returns whether one of the ids ends the text; a stop string may end it before."""
        return not (self._ends | self._stop_ids).isdisjoint(tokens)

    def push(self, tokens: list[int], last: bool, ended: Ended = Ended.LENGTH) -> str:
        """Adds drawn ids and returns the text that is now final.

        `last`: no more ids follow, for the reason `ended`.
        """
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
            self._release(ended)
        return result.text[shown:]

    def _release(self, ended: Ended | None = None) -> None:
        """Moves final text from the held text to the result; cuts at the first stop string."""
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
        """Returns the number of characters at the end of the held text that may begin one."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
