"""Looking into a model: its points for a text, with edits, and their gradients."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inference.generate import encode_prompt
from gpt_jax.inspector.edits import Edit, changes_of
from gpt_jax.inspector.forward import Change, Changes, forward, run_forward
from gpt_jax.inspector.inspection import Inspection
from gpt_jax.inspector.points import Point, check_point, points_of, resolve
from gpt_jax.model.config import ModelConfig
from gpt_jax.tokenizer import Tokenizer

Text = str | Sequence[int]  # a text, or its ids


class Inspector:
    """A view into a model, made of its parameters (stored layout) and its tokenizer."""

    def __init__(self, config: ModelConfig, params: Any, tokenizer: Tokenizer):
        self.config, self.params, self.tokenizer = config, params, tokenizer

    def inspect(self, text: Text, *, points: Iterable[str] | None = None) -> Inspection:
        """Returns the values of points for a text, from one forward pass.

        Args:
          text: a text, or its ids.
          points: names, with or without the layer; None: all.

        Raises:
            UserError: a point does not exist, or the text is empty or longer than the context.
        """
        return self.run(text, points=points)

    def run(
        self, text: Text, edits: Sequence[Edit] = (), *, points: Iterable[str] | None = None
    ) -> Inspection:
        """Returns the values of points in a forward pass with edits (`gpt_jax.inspector.edits`).

        Args:
          text: a text, or its ids.
          edits: made in their order; without them, as `inspect`.
          points: names, with or without the layer; None: all.

        Raises:
            UserError: as `inspect`, or an edit does not fit the model.
        """
        ids = self.encode(text)
        known = points_of(self.config, len(ids))
        chosen = None if points is None else frozenset(self._expand(points, known))
        changes = self._changes(ids, edits, known)
        return self._inspection(ids, self._values(ids, changes, points=chosen), known)

    def gradients(
        self,
        text: Text,
        of: Callable[[jax.Array], jax.Array],
        *,
        points: Iterable[str] | None = None,
        edits: Sequence[Edit] = (),
    ) -> Inspection:
        """Returns the gradient of a number with respect to points.

        Args:
          text: a text, or its ids.
          of: the number from the logits `[L, V]`, in JAX: `lambda logits: logits[-1, 42]`.
          points: names, with or without the layer; None: all.
          edits: of the forward pass.

        Raises:
            UserError: as `run`, or `of` returns no single number.
        """
        ids = self.encode(text)
        known = points_of(self.config, len(ids))
        chosen = known if points is None else self._expand(points, known)
        changes = self._changes(ids, edits, known)
        zeros = {name: jnp.zeros(known[name].shape, jnp.float32) for name in chosen}

        def number(added: dict[str, jax.Array], params: Any) -> jax.Array:
            here = {name: tuple(each) for name, each in changes.items()}
            for name, value in added.items():
                here[name] = (*here.get(name, ()), Change(added=value))
            tokens, logits = jnp.asarray([ids]), frozenset({'logits'})
            found = forward(self.config, params, tokens, here, points=logits)
            result = jnp.asarray(of(found['logits'][0]))
            if result.shape:
                raise UserError(
                    f'the gradient is that of one number, and this has shape {result.shape}; '
                    'take its sum or one of its values'
                )
            return result

        gradients = jax.jit(jax.grad(number))(zeros, self.params)
        return self._inspection(ids, {k: np.asarray(v) for k, v in gradients.items()}, known)

    def encode(self, text: Text) -> list[int]:
        """Returns the ids of a text, with the token that begins one if the tokenizer has it.

        Raises:
            UserError: it is empty or longer than the context, or an id is out of range.
        """
        ids = encode_prompt(self.tokenizer, text) if isinstance(text, str) else text
        instead = 'a text, or gpt.tokenizer.encode(text)'
        ids = check_ids(ids, 'L', self.config.vocab_size, instead=instead).tolist()
        if len(ids) > self.config.max_seq_len:
            raise UserError(
                f'the text has {len(ids)} tokens, and the context of the model '
                f'(config.model.max_seq_len) {self.config.max_seq_len}; shorten it'
            )
        return ids

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Returns the text of each token by itself, with the space before it.

        Ids that only pad the vocabulary have their number in brackets.
        """
        return token_texts(self.tokenizer, ids)

    def _expand(self, points: Iterable[str], known: dict[str, Point]) -> list[str]:
        """Returns the names of points of every layer for those without one."""
        if isinstance(points, str):
            points = [points]
        layers, names = self.config.num_layers, []
        for point in points:
            every = [resolve(point), *(resolve(point, layer) for layer in range(layers))]
            found = [name for name in dict.fromkeys(every) if name in known]
            names += found or [check_point(resolve(point), known, layers=layers)]
        return names

    def _changes(
        self, ids: list[int], edits: Sequence[Edit], known: dict[str, Point]
    ) -> dict[str, list[Change]]:
        layers = self.config.num_layers
        if not isinstance(edits, Sequence) or not all(isinstance(each, Edit) for each in edits):
            raise UserError('edits must be a list, such as [zero("attention.heads", layer=0)]')
        averaged = [
            name
            for each in edits
            if each.how == 'mean'
            for name in each.resolve(known, layers=layers)
        ]
        before = self._values(ids, points=frozenset(averaged)) if averaged else {}
        return changes_of(edits, known, before, layers=layers)

    def _values(
        self,
        ids: list[int],
        changes: Changes | None = None,
        *,
        points: frozenset[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns the values of points, without the batch."""
        values = run_forward(self.config, self.params, [ids], changes, points=points)
        return {name: np.asarray(value[0], np.float32) for name, value in values.items()}

    def _inspection(self, ids, arrays: dict[str, np.ndarray], known) -> Inspection:
        arrays = {name: arrays[name] for name in known if name in arrays}  # in the model's order
        return Inspection(tuple(ids), self.token_texts(ids), arrays, known, self.config.num_layers)


def check_ids(tokens: Any, axes: str, vocab_size: int, *, instead: str) -> np.ndarray:
    """Returns ids as an array of integers.

    Args:
      tokens: from the user.
      axes: 'L', or 'BL' for rows.
      vocab_size: number of ids.
      instead: what to give if they are wrong, for the error.

    Raises:
        UserError: there are none, they are not integers with these axes, or one is not in the
            vocabulary.
    """
    try:
        ids = np.asarray(tokens)
    except ValueError:
        raise UserError('the rows of tokens differ in length; give rows of the same') from None
    if ids.size == 0:
        raise UserError(f'there are no tokens; give {instead}')
    if ids.dtype.kind not in 'iu' or ids.ndim != len(axes):
        given = 'text' if ids.dtype.kind in 'US' else f'{ids.dtype} of shape {ids.shape}'
        shape = ', '.join(axes)
        raise UserError(
            f'tokens must be integers of shape [{shape}], and not {given}; give {instead}'
        )
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if wrong.size:
        raise UserError(f'token {wrong[0]} is not one of the {vocab_size} tokens')
    return ids


def token_texts(tokenizer: Tokenizer, ids: Iterable[int]) -> tuple[str, ...]:
    """Returns the text of each token by itself; see `Inspector.token_texts`."""

    def text(token: int) -> str:
        """Returns the text that a token adds to another: some tokenizers drop a first space."""
        once, twice = (tokenizer.decode([token] * count) for count in (1, 2))
        return twice[len(once) :] if twice.startswith(once) else once

    return tuple(
        text(each) if each < tokenizer.vocab_size else f'[{each}]' for each in map(int, ids)
    )
