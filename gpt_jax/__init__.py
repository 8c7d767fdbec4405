"""gpt_jax: GPT from scratch in JAX and Flax. Importing this package does no device work."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_jax.api import GPT

__all__ = ['GPT']


def __getattr__(name: str) -> Any:
    """Imports `gpt_jax.GPT` on first access."""
    if name == 'GPT':
        from gpt_jax.api import GPT

        return GPT
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
