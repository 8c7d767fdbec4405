"""Mixture of experts: a router sends each token to a few of many MLPs."""

import dataclasses
import enum
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from gpt_jax.config_tree import count, finite, positive, whole
from gpt_jax.errors import UserError
from gpt_jax.kernels.experts_dispatch import route
from gpt_jax.kernels.shard_map import mean_over_replicas, mesh_axes, shard_map
from gpt_jax.model.linear import Linear
from gpt_jax.model.mlp.activation import ACTIVATIONS, activate
from gpt_jax.model.mlp.base import BaseMLP
from gpt_jax.model.mlp.dense import DenseMLP
from gpt_jax.model.options import CommonConfig, ExpertKernel, Kernels, MLPKind
from gpt_jax.model.sown import LOSSES, METRICS
from gpt_jax.model.taps import Tapped
from gpt_jax.parameter import EXPERTS, Role, declare

# Scale of the gradient that tells the optimizer the load of the experts: it takes the sign alone,
# and the norm of all gradients does not notice.
LOAD_SIGNAL = 1e-8


class Scores(enum.StrEnum):
    SOFTMAX = 'softmax'
    SIGMOID = 'sigmoid'


class Balance(enum.StrEnum):
    LOSS = 'loss'
    BIAS = 'bias'
    NONE = 'none'


@dataclasses.dataclass(slots=True, kw_only=True)
class MixtureOfExperts(BaseMLP):
    """MLPs of which each token uses a few, chosen by a learned router; no token is dropped."""

    activation: MLPKind = MLPKind.SWIGLU
    num_experts: int = count(8)
    experts_per_token: int = count(2)
    d_expert: int = whole(0)  # width of an expert; 0: d_ff
    shared_experts: int = whole(0)  # experts that every token uses, besides the chosen ones
    scores: Scores = Scores.SOFTMAX  # over experts; sigmoid: each on its own (DeepSeek-V3)
    normalize_gates: bool = True  # the gates of a token's experts sum to 1
    gate_scale: float = positive(1.0)  # the gates are multiplied by this
    balance: Balance = Balance.LOSS  # of the load: Switch's loss, DeepSeek-V3's bias, or none
    balance_loss: float = finite(0.01)  # weight of Switch's loss
    bias_step: float = finite(1e-3)  # by which a bias moves per step, against its expert's load
    router_z_loss: float = finite(0.0)  # weight of log(Z)² of the router's logits

    def make(self, config: CommonConfig, *, kernels: Kernels, name: str) -> nn.Module:
        """Returns the module."""
        return MixtureOfExpertsMLP(config, self, kernels.experts, name=name)

    def finalize(self, config: CommonConfig) -> None:
        """Fills `d_expert`. Raises UserError if a token would use more experts than exist."""
        self.d_expert = self.d_expert or config.d_ff
        if self.experts_per_token > self.num_experts:
            raise UserError(
                f'config.model.mlp.experts_per_token={self.experts_per_token} is more than '
                f'config.model.mlp.num_experts={self.num_experts}; lower it'
            )

    def resize(self, share: Fraction) -> 'MixtureOfExperts':
        """Returns the config with experts of another width, in proportion to `d_ff`."""
        d_expert = self.d_expert * share
        if d_expert.denominator != 1:
            raise UserError(
                f'config.model.mlp.d_expert={self.d_expert} times {share}, by which '
                f'config.model.base changes d_ff, is not whole; change one of them'
            )
        return dataclasses.replace(self, d_expert=int(d_expert))

    def width(self, config: CommonConfig) -> int:
        """Returns the width of all experts of a token together."""
        return (self.experts_per_token + self.shared_experts) * self.d_expert

    def describe(self, config: CommonConfig) -> str:
        """Returns the number of experts and their width."""
        shared = f' and {self.shared_experts} shared' if self.shared_experts else ''
        return (
            f'{self.experts_per_token} of {self.num_experts} experts{shared} per token, '
            f'd_expert {self.d_expert}'
        )


class MixtureOfExpertsMLP(Tapped):
    """The gated sum of the outputs of each token's experts.

    Shazeer et al. 2017, https://arxiv.org/abs/1701.06538. The load is balanced by the loss of
    Switch (Fedus et al. 2021, https://arxiv.org/abs/2101.03961) or by a bias in the choice
    (DeepSeek-V3, https://arxiv.org/abs/2412.19437); z-loss: Zoph et al. 2022,
    https://arxiv.org/abs/2202.08906; shared experts: Dai et al. 2024,
    https://arxiv.org/abs/2401.06066. Experts have no biases.
    """

    config: CommonConfig
    options: MixtureOfExperts
    kernel: ExpertKernel

    @nn.compact
    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        """Maps `[..., D]` to `[..., D]`; sows losses and metrics of the router."""
        c, o = self.config, self.options
        rows = PartitionSpec('batch', *['length'] * (x.ndim - 2), None)
        gates, experts = self._route(x, rows)
        E, D, F = o.num_experts, c.d_model, o.d_expert
        kernels = [self._kernels('up', (E, D, F), ('embed', 'mlp'))]
        if ACTIVATIONS[o.activation].gated:
            kernels.append(self._kernels('gate', (E, D, F), ('embed', 'mlp')))
        kernels.append(self._kernels('down', (E, F, D), ('mlp', 'embed')))
        wide, narrow = PartitionSpec(EXPERTS, None, 'mlp'), PartitionSpec(EXPERTS, 'mlp', None)
        y, dropped = shard_map(
            functools.partial(
                route,
                activation=functools.partial(activate, o.activation),
                kernel=self.kernel,
                expert_axes=mesh_axes(EXPERTS, E),
                mlp_axes=mesh_axes('mlp', F),
            ),
            [x, gates, experts, *(kernel.astype(x.dtype) for kernel in kernels)],
            [rows, rows, rows, *[wide] * (len(kernels) - 1), narrow],
            (rows, PartitionSpec(*rows[:-1])),
        )
        self.sow(METRICS, 'expert_dropped', dropped.sum() / experts.size)
        if o.shared_experts:
            y += DenseMLP(c, o.activation, o.shared_experts * F, use_bias=False, name='shared')(x)
        return y

    def _route(
        self, x: jax.Array, rows: PartitionSpec
    ) -> tuple[Float[Array, '... k'], Int[Array, '... k']]:
        """Returns the gates of each token's experts, and their indices."""
        c, o = self.config, self.options
        axes = ('embed', None)
        router = Linear(c, (c.d_model,), (o.num_experts,), axes, use_bias=False, name='router')
        logits = self.tap('router', router(x.astype(jnp.float32)), 'BLE')
        is_softmax = o.scores == Scores.SOFTMAX
        scores = jax.nn.softmax(logits) if is_softmax else jax.nn.sigmoid(logits)
        wanted = scores
        if o.balance == Balance.BIAS:
            init = declare(
                nn.initializers.zeros_init(), (None,), role=Role.BALANCE, step=o.bias_step
            )
            bias_E = self.param('bias', init, (o.num_experts,), jnp.float32)
            wanted = scores + jnp.broadcast_to(jax.lax.stop_gradient(bias_E), scores.shape)
        experts = shard_map(  # XLA would gather the scores of all devices
            lambda scores: jax.lax.top_k(scores, o.experts_per_token)[1],
            [jax.lax.stop_gradient(wanted)],
            [rows],
            rows,
        )
        gates = jnp.take_along_axis(scores, experts, -1)
        if o.normalize_gates:
            gates /= gates.sum(-1, keepdims=True)
        token_axes = tuple(range(x.ndim - 1))
        uses = jax.nn.one_hot(experts, o.num_experts, dtype=jnp.float32).sum(-2)
        # Shares of all assignments, and of all scores, by expert.
        load_E = mean_over_replicas(uses.mean(token_axes)) / o.experts_per_token
        share_E = mean_over_replicas((scores / scores.sum(-1, keepdims=True)).mean(token_axes))
        if o.balance == Balance.LOSS:
            loss = o.balance_loss * o.num_experts * jnp.sum(jax.lax.stop_gradient(load_E) * share_E)
            self.sow(LOSSES, 'balance_loss', loss)
        if o.balance == Balance.BIAS:
            signal = jax.lax.stop_gradient(LOAD_SIGNAL * (load_E - 1 / o.num_experts))
            self.sow(LOSSES, '_load', jnp.sum(signal * (bias_E - jax.lax.stop_gradient(bias_E))))
        if o.router_z_loss:
            z_squared = mean_over_replicas(jnp.mean(jax.nn.logsumexp(logits, -1) ** 2))
            self.sow(LOSSES, 'router_z_loss', o.router_z_loss * z_squared)
        entropy = -jnp.sum(load_E * jnp.log(jnp.maximum(load_E, 1e-30)))
        self.sow(METRICS, 'expert_load_max', load_E.max() * o.num_experts)
        self.sow(METRICS, 'expert_load_min', load_E.min() * o.num_experts)
        self.sow(METRICS, 'expert_entropy', entropy / math.log(max(2, o.num_experts)))
        return self.tap('gates', o.gate_scale * gates, 'BLX'), experts

    def _kernels(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
        """Returns the matrices of all experts, `[E, inputs, outputs]`."""
        c, o = self.config, self.options
        std = c.init.std
        if name == 'down' and c.init.scale_residual:
            std /= math.sqrt(2 * c.num_layers)
        init = declare(
            std,
            (EXPERTS, *axes),
            role=Role.HIDDEN,
            inputs=1,
            active=o.experts_per_token / o.num_experts,
        )
        return self.param(name, init, shape, jnp.dtype(c.precision.params))
