"""Which numbers a run trains: all parameters, those that are not frozen, or LoRA's adapters.

A run's parameters are two trees: the trained one, which alone has gradients, optimizer state and
an average, and the base, which never changes. Together they make the model's parameters. Trees
hold only what belongs to them: a branch without leaves is absent.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from gpt_jax.errors import UserError
from gpt_jax.optim import lora
from gpt_jax.optim.lora import LoraConfig
from gpt_jax.optim.param_groups import PyTree

_ADAPTER_KEY = 1  # folded into the seed's key, which draws the weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """How a model's parameters come apart into what is trained and what is not, and together."""

    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    frozen: tuple[str, ...] = ()  # regexes of the paths of parameters

    @property
    def is_all(self) -> bool:
        """Whether every parameter is trained, and there is no base."""
        return not self.lora.rank and not self.frozen

    def split(self, params: PyTree, key: jax.Array) -> tuple[PyTree, PyTree | None]:
        """The trained tree and the base (None: there is none) of parameters in the stored layout.

        Args:
          params: all of the model's; arrays or boxed.
          key: draws the adapters.

        Raises:
            UserError: a pattern names no parameter, or none is left to train.
        """
        if self.is_all:
            return params, None
        flat = flatten_dict(params, sep='/')
        if self.lora.rank:
            paths = [path for path in flat if lora.can_adapt(path)]
            chosen = match_paths('config.lora.targets', self.lora.targets, paths)
            kernels = {path: flat[path] for path in chosen}
            key = jax.random.fold_in(key, _ADAPTER_KEY)
            return _nest(lora.init_adapters(kernels, self.lora, key)), params
        frozen = match_paths('config.train.frozen', self.frozen, flat)
        if len(frozen) == len(flat):
            raise UserError(
                f'config.train.frozen={self.frozen} leaves no parameter to train; remove a pattern'
            )
        trained = {path: leaf for path, leaf in flat.items() if path not in frozen}
        return _nest(trained), _nest({path: flat[path] for path in frozen})

    def join(self, trained: PyTree, base: PyTree | None) -> PyTree:
        """The model's parameters, in either layout."""
        if base is None:
            return trained
        flat, rest = flatten_dict(trained, sep='/'), flatten_dict(base, sep='/')
        return _nest(lora.merge(rest, flat, self.lora) if self.lora.rank else rest | flat)

    def dropout_masks(self, trained: PyTree, key: jax.Array | None) -> PyTree | None:
        """Factors for the trained tree (stored layout); None: nothing is dropped."""
        if key is None or not self.lora.rank or not self.lora.dropout:
            return None
        return _nest(lora.dropout_masks(flatten_dict(trained, sep='/'), self.lora, key))


def match_paths(key: str, patterns: Iterable[str], paths: Iterable[str]) -> list[str]:
    """The paths that a pattern matches from end to end, in their order.

    Raises:
        UserError: a pattern is no regular expression or matches none; the message lists the paths.
    """
    paths, chosen = list(paths), set()
    for pattern in patterns:
        try:
            found = {path for path in paths if re.fullmatch(pattern, path)}
        except re.error as error:
            raise UserError(f'{key}: {pattern!r} is no regular expression ({error})') from error
        if not found:
            raise UserError(f'{key}: {pattern!r} matches none of {", ".join(sorted(paths))}')
        chosen |= found
    if not chosen:
        raise UserError(f'{key} is empty; name some of {", ".join(sorted(paths))}')
    return [path for path in paths if path in chosen]


def _nest(flat: dict[str, Any]) -> PyTree:
    return unflatten_dict(flat, sep='/')
