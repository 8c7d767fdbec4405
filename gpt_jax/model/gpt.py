"""The network: tokens -> embeddings -> blocks -> final norm -> logits of the next token."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core.meta import add_axis
from jaxtyping import Array, Float, Int, Key

from gpt_jax.config_tree import freeze
from gpt_jax.kernels.dropout import dropout
from gpt_jax.kernels.matmul_int8 import Int8Matrix, multiply
from gpt_jax.kernels.scores import AttentionMask
from gpt_jax.model.attention import AttentionContext
from gpt_jax.model.block import Block, activation_axes
from gpt_jax.model.cache import KVCache
from gpt_jax.model.config import Kernels, ModelConfig, Remat
from gpt_jax.model.layer_stack import layer_stacks, layers_per_period
from gpt_jax.model.linear import look_up, matrix
from gpt_jax.model.norm import NORMS
from gpt_jax.model.parametrization import (
    base_model,
    embedding_multiplier,
    grow,
    is_mup,
    output_multiplier,
)
from gpt_jax.model.position import POSITIONS, default_positions
from gpt_jax.model.remat import remat_policy
from gpt_jax.model.sown import LOSSES, METRICS, sum_sown
from gpt_jax.model.taps import Tapped
from gpt_jax.parameter import LAYERS, ParameterGroups, Role, declare


class Period(nn.Module):
    """The layers in one iteration of the scan over layers."""

    config: ModelConfig
    kernels: Kernels
    layers: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, '... D'],
        first_layer: Int[Array, ''] | int,
        context: AttentionContext,
        cache: KVCache | None,
        dropout_key: Key[Array, ''] | None,
    ) -> tuple[Float[Array, '... D'], KVCache | None]:
        """Runs layers `first_layer` … in order; the dropout key of layer i is fold_in(key, i)."""
        c = self.config
        block_class = Block
        if cache is not None:
            block_class = nn.jit(Block)  # layers that are alike are traced once
        elif c.execution.remat != Remat.NONE:
            policy = remat_policy(c.execution.remat)
            block_class = nn.remat(Block, policy=policy, prevent_cse=self.layers > 1)
        new_layers = []
        for j in range(self.layers):
            window = c.layer_kind(j).window
            block = block_class(c.of_layer(j), self.kernels, window, name=f'layer_{j}')
            layer = first_layer + j
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, layer)
            layer_cache = None if cache is None else cache.layers[j]
            x, layer_cache = block(x, context.replace(layer=layer), layer_cache, key)
            new_layers.append(layer_cache)
        if cache is not None:
            cache = cache.replace(layers=tuple(new_layers))
        return x, cache


class GPT(Tapped):
    """A decoder-only transformer (Radford et al. 2018, 2019).

    Takes parameters in the executed layout (`layer_stack.to_executed`); `init_params` makes them in
    the stored one. `scan` loops over the periods of layers instead of unrolling them (a single
    period has no loop). `flat` merges batch and sequence outside attention. Neither changes the
    result. `layers` is a number of layers for `init_params`, which makes a stack at a time.
    """

    config: ModelConfig
    kernels: Kernels = Kernels()
    scan: bool = False
    flat: bool = True
    layers: int = 0  # 0: the config's

    def setup(self):
        c = self.config
        self.embedding = Table(c, in_product=c.tie_embeddings)
        if POSITIONS[c.position].embed is not None:
            self.position = POSITIONS[c.position].embed(c)
        layers, total = layers_per_period(c, scan=self.scan), self.layers or c.num_layers
        self.loops = layers < total
        if self.loops:
            scanned = nn.scan(
                Period,
                variable_axes={'params': 0, 'intermediates': 0, LOSSES: 0, METRICS: 0},
                split_rngs={'params': True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=total // layers,
                metadata_params={nn.PARTITION_NAME: LAYERS},
            )
            self.blocks = scanned(c, self.kernels, layers)
        else:
            self.blocks = Period(c, self.kernels, layers)
        if c.final_norm:
            self.final_norm = NORMS[c.norm](c, self.kernels.norm)
        if not c.tie_embeddings:
            self.output = Table(c)

    def __call__(
        self,
        tokens_BL: Int[Array, 'B L'],
        *,
        segment_ids_BL: Int[Array, 'B L'] | None = None,
        cache: KVCache | None = None,
        dropout_key: Key[Array, ''] | None = None,
    ) -> tuple[Float[Array, 'B L V'], KVCache | None]:
        """Returns float32 logits of each next token, and the cache when one was given."""
        x_BLD, cache = self.hidden(
            tokens_BL, segment_ids_BL=segment_ids_BL, cache=cache, dropout_key=dropout_key
        )
        return self.logits(x_BLD), cache

    def hidden(
        self,
        tokens_BL: Int[Array, 'B L'],
        *,
        segment_ids_BL: Int[Array, 'B L'] | None = None,
        cache: KVCache | None = None,
        dropout_key: Key[Array, ''] | None = None,
    ) -> tuple[Float[Array, 'B L D'], KVCache | None]:
        """Computes the input of the output layer; dropout is on exactly when a key is given."""
        c = self.config
        B, L = tokens_BL.shape
        positions_BL = default_positions(B, L)
        mask = AttentionMask(segment_ids_BS=segment_ids_BL)
        if cache is not None:
            mask = AttentionMask(first_query_slot_B=cache.length_B)
            # Positions of padding and drafts may be out of range; no text sees these tokens.
            positions_BL = jnp.minimum(positions_BL + cache.length_B[:, None], c.max_seq_len - 1)
        x = self.embedding(tokens_BL).astype(jnp.dtype(c.precision.compute))
        if c.scale_embedding:
            x *= jnp.asarray(embedding_multiplier(c), x.dtype)
        x = self.tap('embedding', x)
        if POSITIONS[c.position].embed is not None:
            x = self.position(x, positions_BL)
        x = x.reshape(B * L, c.d_model) if self.flat else x
        x = nn.with_logical_constraint(x, activation_axes(x))
        if dropout_key is not None:
            dropout_key, embedding_key = jax.random.split(dropout_key)
            x = dropout(x, c.dropouts.residual, embedding_key)
        context = AttentionContext(positions_BL, mask)
        if self.loops:
            first_layers = jnp.arange(0, self.layers or c.num_layers, self.blocks.layers)
            if cache is not None:
                raise ValueError('decoding with a cache runs unrolled: build GPT with scan=False')
            x, _ = self.blocks(x, first_layers, context, None, dropout_key)
        else:
            x, cache = self.blocks(x, 0, context, cache, dropout_key)
        if c.final_norm:
            x, _ = self.final_norm(x)
        x = self.tap('final_norm', x)
        if cache is not None:
            cache = cache.replace(length_B=cache.length_B + L)
        return x.reshape(B, L, c.d_model), cache

    def logits(self, x: Float[Array, '... D']) -> Float[Array, '... V']:
        """Returns float32 logits over the logical vocabulary, without the table's padding."""
        c = self.config
        table = (self.embedding if c.tie_embeddings else self.output).table
        if (multiplier := output_multiplier(c)) != 1:
            x *= jnp.asarray(multiplier, x.dtype)
        if isinstance(table, Int8Matrix):
            logits = multiply(x, table, jnp.float32)
        else:
            logits = jax.lax.dot_general(
                x,
                table.astype(x.dtype),
                (((x.ndim - 1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
        if c.output_soft_cap:  # Gemma Team 2024, https://arxiv.org/abs/2408.00118
            logits = c.output_soft_cap * jnp.tanh(logits / c.output_soft_cap)
        return self.tap('logits', logits[..., : c.vocab_size], 'BLV')


class Table(nn.Module):
    """A learned row for each token; their number is padded to a multiple of VOCAB_MULTIPLE."""

    config: ModelConfig
    in_product: bool = True  # the output layer multiplies by it

    def setup(self):
        c = self.config
        axes = ('vocab', 'embed')
        init = declare(c.init.std, axes, role=Role.EMBEDDING, in_product=self.in_product)
        shape = (c.padded_vocab_size, c.d_model)
        self.table = matrix(self, 'table', init, shape, jnp.dtype(c.precision.params))

    def __call__(self, ids: Int[Array, '...']) -> Float[Array, '... D']:
        """Returns the rows of `ids`."""
        return look_up(self.table, ids, 'vocab')


def init_params(config: ModelConfig, key: Key[Array, '']) -> dict[str, Any]:
    """Returns new parameters in the stored layout, boxed with their logical axes.

    `flax.linen.unbox` gives the arrays, `flax.linen.get_partition_spec` the axes. One layer is
    compiled and run in a loop, so that compilation takes no longer for large models.
    """
    return _init(config, key)[0]


def _init(config: ModelConfig, key: Key[Array, '']) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns new parameters, and what the modules sow."""
    alike, tokens = dataclasses.replace(config, layer_kinds=()), jnp.zeros((1, 1), jnp.int32)
    stacks = layer_stacks(config)
    params: dict[str, Any] = {}
    sown: dict[str, dict[str, Any]] = {LOSSES: {}, METRICS: {}}
    for i, stack in enumerate(stacks):
        kind = config.of_layer(stack.layers[0])
        kind = dataclasses.replace(alike, norm=kind.norm, mlp=kind.mlp)
        model = GPT(kind, scan=True, layers=len(stack.layers))
        variables = model.init(jax.random.fold_in(key, i) if len(stacks) > 1 else key, tokens)
        blocks = variables['params']['blocks']['layer_0']
        if len(stack.layers) == 1:  # without a scan over the layers, flax has not named their axis
            blocks = jax.tree.map(lambda leaf: leaf[None], blocks)
            blocks = add_axis(blocks, 0, {nn.PARTITION_NAME: LAYERS})
        params[stack.name] = blocks
        for collection, values in sum_sown(variables).items():
            sown[collection] |= values
    if len(stacks) > 1 or kind != alike:
        variables = GPT(alike, scan=True, layers=1).init(key, tokens)
    params |= {name: each for name, each in variables['params'].items() if name != 'blocks'}
    return grow(params, abstract_params(base_model(config))) if is_mup(config) else params, sown


def abstract_params(config: ModelConfig) -> dict[str, Any]:
    """Returns the shapes of `init_params`, boxed with their logical axes; cached per config."""
    return _abstract(freeze(config))[0]


def sown_shapes(config: ModelConfig) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the shapes of what the modules sow, as `sum_sown` returns it."""
    return _abstract(freeze(config))[1]


@functools.lru_cache(maxsize=16)
def _abstract(config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    return jax.eval_shape(functools.partial(_init, config), jax.random.key(0))


def parameter_groups(config: ModelConfig) -> ParameterGroups:
    """Returns the declarations of the parameters; cached per config."""
    return _parameter_groups(freeze(config))


@functools.lru_cache(maxsize=16)
def _parameter_groups(config: ModelConfig) -> ParameterGroups:
    return ParameterGroups.of(_abstract(config)[0])


def describe_mlps(config: ModelConfig) -> str:
    """Returns the MLPs of the layers in words: `1 x d_ff 256, 3 x 2 of 8 experts per token`."""
    kinds = collections.Counter[str]()
    for mlp, count in config.counted_mlps:
        kinds[mlp.describe(config)] += count
    if len(kinds) == 1:
        return next(iter(kinds))
    return ', '.join(f'{count} x {kind}' for kind, count in kinds.items())


def output_table(params: dict[str, Any], config: ModelConfig) -> jax.Array:
    """Returns the `[V, D]` table whose product gives the logits, with its padding rows."""
    table = params['embedding' if config.tie_embeddings else 'output']['table']
    multiplier = output_multiplier(config)
    return table if multiplier == 1 else table * jnp.asarray(multiplier, table.dtype)


def count_params(config: ModelConfig) -> int:
    """Returns the number of parameters, without the padding rows of the tables."""
    return round(sum(_sizes(config).values()))


def count_active_params(config: ModelConfig) -> int:
    """Returns the number of parameters that a token uses: of experts, only the chosen ones."""
    declared = parameter_groups(config).declared
    return round(sum(size * declared[path].active for path, size in _sizes(config).items()))


def count_multiplied_params(config: ModelConfig) -> int:
    """Returns the number of parameters that a token uses, without tables that are looked up."""
    declared = parameter_groups(config).declared
    return round(
        sum(
            size * declared[path].active
            for path, size in _sizes(config).items()
            if declared[path].in_product
        )
    )


def _sizes(config: ModelConfig) -> dict[str, int]:
    """Returns the size of each parameter by path, without the padding rows of tables."""
    padding = (config.padded_vocab_size - config.vocab_size) * config.d_model
    return {
        path: each.value.size - (padding if each.names[0] == 'vocab' else 0)
        for path, each in parameter_groups(config).declared.items()
    }
