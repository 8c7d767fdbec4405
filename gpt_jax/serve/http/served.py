"""A model that is served: its engine, its tokenizer, and what its clients may know of it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.serve.engine import Engine
from gpt_jax.serve.http.bodies import Message, SamplingBody
from gpt_jax.serve.http.errors import ApiError
from gpt_jax.tokenizer import Tokenizer, chat_template


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Description of a model for the page."""

    about: str
    layers: int
    heads: int
    sampling: Mapping[str, Any]  # defaults, by the names of `SampleConfig`


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One model of the server."""

    name: str
    step: int  # of its checkpoint
    engine: Engine
    tokenizer: Tokenizer
    context: int  # most tokens that the model sees
    created: int  # seconds since 1970, of its checkpoint
    fingerprint: str  # of its weights
    card: ModelCard
    # Of ids and a position: the weights `[layers, heads, tokens]` with which it attends to the
    # tokens from the returned number on. None: the model is not inspected.
    attention: Callable[[Sequence[int], int], tuple[int, np.ndarray]] | None = None
    # Of ids, a position and names of analyses: what these say about the token there, as JSON.
    explanation: Callable[[Sequence[int], int, Sequence[str]], dict[str, Any]] | None = None

    @property
    def most_alternatives(self) -> int:
        """The most likeliest tokens that a request may ask for, per token."""
        return self.engine.config.best

    def describe(self) -> dict[str, object]:
        """Returns the entry of `/v1/models`."""
        return {
            'id': self.name,
            'object': 'model',
            'created': self.created,
            'owned_by': 'gpt_jax',
            'max_model_len': self.context,
            'gpt_jax': {
                **dataclasses.asdict(self.card),
                'vocab_size': self.tokenizer.vocab_size,
                'alternatives': self.most_alternatives,
                'inspects': self.attention is not None,
                'explains': self.explanation is not None,
            },
        }

    def check(self, body: SamplingBody) -> None:
        """Checks what depends on the model.

        Raises:
            ApiError: more likeliest tokens are asked for than the server gives, or a bias is of an
                id that is not in the vocabulary.
        """
        most = self.most_alternatives
        if body.best > most:
            field = body.best_field
            message = f'{field}={body.best}: this server gives at most {most} (config.serve.best)'
            raise ApiError(400, message, param=field)
        try:
            self.tokenizer.decode([*body.bias])
        except UserError as error:
            raise ApiError(400, f'logit_bias: {error}', param='logit_bias') from error

    def encode_chat(self, messages: list[Message]) -> list[int]:
        """Returns the ids of a conversation up to the next answer.

        Names of special tokens in messages stay text.

        Raises:
            UserError: the template refuses the messages.
        """
        given = [message.as_dict() for message in messages]
        return chat_template.encode_prompt(given, self.tokenizer, literal=True)

    def token_text(self, token: int) -> str:
        """Returns the name of a token: its text, `bytes:…` of a part of a character."""
        if token in self._special:
            return self._special[token]
        data = self.tokenizer.id_to_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return 'bytes:' + ''.join(f'\\x{byte:02x}' for byte in data)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Returns the name of each token."""
        names = {token: self.token_text(token) for token in set(ids)}
        return [names[token] for token in ids]

    @functools.cached_property
    def _special(self) -> dict[int, str]:
        return {number: name for name, number in self.tokenizer.special_tokens.items()}


class ServedModels:
    """The models of a server, by name; the first one answers requests that name none."""

    def __init__(self, models: list[ServedModel]):
        self._models = {model.name: model for model in models}

    def __iter__(self):
        return iter(self._models.values())

    def named(self, name: str | None) -> ServedModel:
        """Returns a model.

        Raises:
            ApiError: there is none of this name.
        """
        if name is None:
            return next(iter(self))
        if name not in self._models:
            known = ', '.join(self._models)
            raise ApiError(
                404,
                f'there is no model {name[:100]!r} here; this server has {known}',
                param='model',
                code='model_not_found',
            )
        return self._models[name]
