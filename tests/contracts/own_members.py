"""An attention and an MLP that are not of this project, each with a parameter of its own."""

import dataclasses

import jax
from flax import linen as nn

from gpt_jax.kernels.scores import ScoreOptions
from gpt_jax.model.attention.attend import run_attention
from gpt_jax.model.attention.base import BaseAttention
from gpt_jax.model.linear import Linear
from gpt_jax.model.mlp.base import BaseMLP
from gpt_jax.model.taps import Tapped
from gpt_jax.parameter import Role, declare


@dataclasses.dataclass(slots=True, kw_only=True)
class Tempered(BaseAttention):
    """Multi-query attention with a learned temperature of each head."""

    def make(self, config, *, kernels, window, name):
        return TemperedAttention(config, kernels.attention, window, name=name)

    def cache_shapes(self, config):
        return {'key_and_value': (1, config.head_dim)}

    def flops(self, config, span):
        return 4.0 * config.num_heads * config.head_dim * span


class TemperedAttention(Tapped):
    config: object
    kernel: str
    window: int

    @nn.compact
    def __call__(self, x, context, cache=None, dropout_key=None):
        c = self.config
        (B, L), H, K = context.positions_BL.shape, c.num_heads, c.head_dim
        shared = Linear(c, (c.d_model,), (K,), ('embed', 'head_dim'), name='shared')
        q = Linear(c, (c.d_model,), (H, K), ('embed', 'heads', 'head_dim'), name='query')(x)
        ones = declare(nn.initializers.ones_init(), ('heads',), role=Role.VECTOR)
        heat_H = self.param('heat', ones, (H,), c.precision.params)
        q_BLHK = q.reshape(B, L, H, K) * heat_H[None, None, :, None].astype(x.dtype)
        k_BSGK = shared(x).reshape(B, L, 1, K)
        if cache is not None:
            cache = cache.write(context.mask.first_query_slot_B, key_and_value=k_BSGK)
            k_BSGK = cache.read('key_and_value')
        options = ScoreOptions(mask=context.mask, window=self.window)
        out = run_attention(self, self.kernel, q_BLHK, k_BSGK, k_BSGK, options)
        out = self.tap('heads', out, 'BLHK')
        axes = ('heads', 'head_dim', 'embed')
        output = Linear(c, (H, K), (c.d_model,), axes, residual=True, name='output')
        return output(out.reshape(*x.shape[:-1], H * K)), cache


@dataclasses.dataclass(slots=True, kw_only=True)
class Scaled(BaseMLP):
    """A gated MLP with a learned scale of each hidden unit."""

    def make(self, config, *, kernels, name):
        return ScaledMLP(config, name=name)

    def width(self, config):
        return config.d_ff

    def describe(self, config):
        return f'd_ff {config.d_ff}, scaled'


class ScaledMLP(nn.Module):
    config: object

    @nn.compact
    def __call__(self, x):
        c = self.config
        up, gate = (
            Linear(c, (c.d_model,), (c.d_ff,), ('embed', 'mlp'), name=name)(x)
            for name in ('up', 'gate')
        )
        ones = declare(nn.initializers.ones_init(), ('mlp',), role=Role.VECTOR)
        scale = self.param('scale', ones, (c.d_ff,), c.precision.params).astype(x.dtype)
        hidden = up * jax.nn.sigmoid(gate) * scale[(None,) * (x.ndim - 1)]
        axes = ('mlp', 'embed')
        return Linear(c, (c.d_ff,), (c.d_model,), axes, residual=True, name='down')(hidden)
