"""Points of the network that can be read and replaced from outside."""

from flax import linen as nn
from jaxtyping import Array, Float


class Tapped(nn.Module):
    """A module with named points. A point returns its value, and costs nothing when compiled.

    `flax.linen.intercept_methods` sees every call of `tap`, and may return another value.
    `gpt_jax.inspector` does so.
    """

    def tap(self, name: str, x: Float[Array, '...'], dims: str = 'BLD') -> Float[Array, '...']:
        """Returns `x`, the value of a point.

        Args:
          name: of the point, unique within the module.
          x: the value, in a model that is not built flat.
          dims: a letter for each dimension, as in `gpt_jax.model.config`; `GR` are the query heads
            by the key/value head that they share.
        """
        return x
