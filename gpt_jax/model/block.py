"""One transformer layer: attention and, if it has one, an MLP, each on a residual branch."""

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Key

from gpt_jax.kernels.dropout import dropout
from gpt_jax.model.attention import AttentionContext
from gpt_jax.model.attention.layer_cache import LayerCache
from gpt_jax.model.config import Kernels, ModelConfig, NormPlacement, ParallelResidual
from gpt_jax.model.norm import NORMS
from gpt_jax.model.taps import Tapped


class Block(Tapped):
    """Attention and MLP on branches of the residual stream; `NormPlacement` has the formulas."""

    config: ModelConfig
    kernels: Kernels
    window: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, '... D'],
        context: AttentionContext,
        cache: LayerCache | None = None,
        dropout_key: Key[Array, ''] | None = None,
    ) -> tuple[Float[Array, '... D'], LayerCache | None]:
        """Returns `[..., D] -> [..., D]` and the layer's cache."""
        c = self.config
        keys = [None] * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        attention = c.attention.make(c, kernels=self.kernels, window=self.window, name='attention')
        mlp = c.mlp.make(c, kernels=self.kernels, name='mlp')
        # Without this the partitioner may replicate the batch and shard the model instead.
        x = nn.with_logical_constraint(x, activation_axes(x))

        x = self.tap('residual_before', x)
        h, x = self._enter(x, 'attention')
        mlp_input = h  # with one norm for both
        if mlp is not None and c.parallel_residual == ParallelResidual.TWO_NORMS:
            mlp_input, x = self._enter(x, 'mlp')
        h, cache = attention(h, context, cache, keys[0])
        x = self._join(x, dropout(h, c.dropouts.residual, keys[1]), 'attention')
        x = self.tap('residual_middle', x)
        if mlp is not None:
            if c.parallel_residual == ParallelResidual.OFF:
                mlp_input, x = self._enter(x, 'mlp')
            h = mlp(mlp_input)
            x = self._join(x, dropout(h, c.dropouts.residual, keys[2]), 'mlp')
        return self.tap('residual_after', x), cache

    def _enter(self, x: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
        """Returns the input of a branch, normalized if norms come first, and `x`."""
        h = x
        if self.config.norm_placement in (NormPlacement.PRE, NormPlacement.SANDWICH):
            h, x = self._norm(f'{name}_norm')(x)
        return self.tap(f'{name}_input', h), x

    def _join(self, x: jax.Array, branch: jax.Array, name: str) -> jax.Array:
        """Adds a branch to the residual stream; applies the norms that come after the branch."""
        c = self.config
        if c.norm_placement == NormPlacement.POST:
            return self._norm(f'{name}_norm')(x + self.tap(f'{name}_output', branch))[0]
        if c.norm_placement in (NormPlacement.SANDWICH, NormPlacement.OUTPUT):
            branch, _ = self._norm(f'{name}_post_norm')(branch)
        return x + self.tap(f'{name}_output', branch)

    def _norm(self, name: str) -> nn.Module:
        return NORMS[self.config.norm](self.config, self.kernels.norm, name=name)


def activation_axes(x: jax.Array) -> tuple[str | None, ...]:
    """Returns the logical axes of `[B, L, D]`, or of `[B*L, D]`, whose rows follow the batch."""
    return ('batch', 'activation') if x.ndim == 2 else ('batch', 'length', 'activation')
