"""Trainable parameters of a run: all, those that are not frozen, or LoRA's adapters.

A run has two trees of parameters. The trained tree has gradients, optimizer state and an average;
the base never changes. Joined, they are the model's parameters. A branch without leaves is absent
from a tree.
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
from gpt_jax.parameter import ParameterGroups, PyTree, Role

_ADAPTER_KEY = 1  # folded into the seed's key, because that key itself draws the weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """The rule that splits a model's parameters into trained tree and base, and joins them."""

    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    frozen: tuple[str, ...] = ()  # regexes of the paths of parameters
    groups: ParameterGroups = ParameterGroups()  # the declarations of all parameters, for LoRA

    @property
    def is_all(self) -> bool:
        """True if every parameter is trained, so that there is no base."""
        return not self.lora.rank and not self.frozen

    def split(self, params: PyTree, key: jax.Array) -> tuple[PyTree, PyTree | None]:
        """Returns the trained tree and the base, or None without one, in the stored layout.

        Args:
          params: all parameters of the model; arrays or boxed.
          key: draws the adapters.

        Raises:
            UserError: a pattern matches no parameter, or no parameter is left to train.
        """
        if self.is_all:
            return params, None
        flat = flatten_dict(params, sep='/')
        if self.lora.rank:
            paths = [path for path in flat if self.groups.role(path) is Role.HIDDEN]
            chosen = match_paths('config.lora.targets', self.lora.targets, paths)
            kernels = {path: flat[path] for path in chosen}
            key = jax.random.fold_in(key, _ADAPTER_KEY)
            return _nest(lora.init_adapters(kernels, self.lora, key, self.groups)), params
        frozen = match_paths('config.train.frozen', self.frozen, flat)
        if len(frozen) == len(flat):
            raise UserError(
                f'config.train.frozen={self.frozen} leaves no parameter to train; remove a pattern'
            )
        trained = {path: leaf for path, leaf in flat.items() if path not in frozen}
        return _nest(trained), _nest({path: flat[path] for path in frozen})

    def join(self, trained: PyTree, base: PyTree | None) -> PyTree:
        """Returns the model's parameters; takes the stored or the executed layout."""
        if base is None:
            return trained
        flat, rest = flatten_dict(trained, sep='/'), flatten_dict(base, sep='/')
        return _nest(lora.merge(rest, flat, self.lora) if self.lora.rank else rest | flat)

    def dropout_masks(self, trained: PyTree, key: jax.Array | None) -> PyTree | None:
        """Returns factors for the trained tree (stored layout), or None without dropout."""
        if key is None or not self.lora.rank or not self.lora.dropout:
            return None
        return _nest(lora.dropout_masks(flatten_dict(trained, sep='/'), self.lora, key))


def match_paths(key: str, patterns: Iterable[str], paths: Iterable[str]) -> list[str]:
    """Returns the paths that any pattern fully matches, in the order of `paths`.

    Raises:
        UserError: a pattern is no regular expression or matches no path; the message lists them.
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
