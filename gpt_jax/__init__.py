"""gpt_jax: GPT from scratch in JAX and Flax. Importing this package does no device work."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_jax.api import GPT

__all__ = ['GPT']


def __getattr__(name: str) -> Any:
    """`gpt_jax.GPT`, imported when it is first asked for."""
    if name == 'GPT':
        from gpt_jax.api import GPT

        return GPT
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
