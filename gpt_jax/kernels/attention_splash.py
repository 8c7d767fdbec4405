"""Attention on TPUs: splash attention, block-sparse flash attention in Pallas.

`jax.experimental.pallas.ops.tpu.splash_attention`; the algorithm is FlashAttention (Dao et al.
2022, https://arxiv.org/abs/2205.14135), which skips fully masked blocks.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from gpt_jax.kernels.attention_config import AttentionConfig
from gpt_jax.kernels.scores import ScoreOptions
from gpt_jax.kernels.shard_map import mesh_axes, shard_map

LANES = 128  # lengths are padded to a multiple of this
BLOCKS = (512, 256, 128)  # the largest that divides the length is taken


def attend_splash(
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B S G K'],
    v_BSGK: Float[Array, 'B S G K'],
    options: ScoreOptions,
    *,
    interpret: bool = False,
) -> Float[Array, 'B L H K']:
    """Computes causal attention with windows, soft cap, segments, GQA and MQA.

    Scores never reach memory. On a mesh each device computes its own sequences and heads.
    `interpret` runs the kernel in Python on any backend, for tests.

    Raises:
        ValueError: an option was given that the kernel would ignore.
    """
    if options.slopes_H is not None or options.drops:
        raise ValueError('splash attention has no score slopes and no dropout')
    mask = options.mask
    if mask.first_query_slot_B is not None or q_BLHK.shape[1] != k_BSGK.shape[1]:
        raise ValueError('splash attention takes no cache')
    H, G = q_BLHK.shape[2], k_BSGK.shape[2]
    kv_heads = 'kv_heads'
    if mesh_axes('heads', H) != mesh_axes('kv_heads', G):  # a device would lack keys it needs
        k_BSGK, v_BSGK = (jnp.repeat(x, H // G, axis=2) for x in (k_BSGK, v_BSGK))
        kv_heads = 'heads'
    arrays = [q_BLHK, k_BSGK, v_BSGK]
    axes = [PartitionSpec('batch', None, heads, None) for heads in ('heads', kv_heads, kv_heads)]
    if mask.segment_ids_BS is not None:
        arrays.append(mask.segment_ids_BS)
        axes.append(PartitionSpec('batch', None))
    attend = functools.partial(
        _attend_on_one_device,
        window=options.window,
        soft_cap=options.soft_cap,
        interpret=interpret,
    )
    return shard_map(attend, arrays, axes, axes[0])


def _attend_on_one_device(
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B L G K'],
    v_BSGK: Float[Array, 'B L G K'],
    segment_ids_BS: Int[Array, 'B L'] | None = None,
    *,
    window: int,
    soft_cap: float,
    interpret: bool,
) -> Float[Array, 'B L H K']:
    """Runs the kernel over a batch. Padding comes after all real queries, which do not see it."""
    L, H, K = q_BLHK.shape[1:]
    padding = -L % LANES
    length = L + padding
    if window:
        head_mask = splash.LocalMask((length, length), (window - 1, 0), offset=0)
    else:
        head_mask = splash.CausalMask((length, length))
    attend = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([head_mask] * H),
        block_sizes=_block_sizes(length),
        attn_logits_soft_cap=soft_cap or None,
        residual_checkpoint_name='attention',
        interpret=interpret,
    )

    def heads_first(x_BLHK: jax.Array) -> jax.Array:
        return jnp.pad(x_BLHK, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2)

    segments = None
    if segment_ids_BS is not None:
        ids = jnp.pad(segment_ids_BS, ((0, 0), (0, padding)))
        segments = splash.SegmentIds(q=ids, kv=ids)
    q_BHLK = heads_first(q_BLHK * jnp.asarray(K**-0.5, q_BLHK.dtype))
    out_BHLK = jax.vmap(attend)(q_BHLK, heads_first(k_BSGK), heads_first(v_BSGK), segments)
    return out_BHLK.swapaxes(1, 2)[:, :L]


def _block_sizes(length: int) -> splash.BlockSizes:
    """Returns square blocks for all three kernels: forward, gradient of queries, and of keys."""
    block = next(block for block in BLOCKS if length % block == 0)
    names = ('q', 'kv', 'kv_compute', 'q_dkv', 'kv_dkv', 'kv_dkv_compute', 'q_dq', 'kv_dq')
    return splash.BlockSizes(**{f'block_{name}': block for name in names})


def splash_obstacles(config: AttentionConfig, *, backend: str, segments: bool) -> dict[str, bool]:
    """Returns the reasons why splash cannot run, and whether each holds."""
    del segments  # supported
    return {
        f'the backend is {backend}, not tpu': backend != 'tpu',
        'config.model.position is alibi': config.position == 'alibi',
        'config.model.dropouts.attention is on': bool(config.dropouts.attention),
    }
