"""Attention on NVIDIA GPUs: cuDNN's fused attention, through `jax.nn`."""

import jax
from jaxtyping import Array, Float

from gpt_jax.kernels.attention_config import AttentionConfig
from gpt_jax.kernels.scores import ScoreOptions


def attend_cudnn(
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B S G K'],
    v_BSGK: Float[Array, 'B S G K'],
    options: ScoreOptions,
) -> Float[Array, 'B L H K']:
    """Computes causal or windowed attention, GQA and MQA, in bfloat16; scores stay on the chip.

    XLA partitions it over batch and heads by itself. Segments and slopes would need a dense
    `[B, H, L, S]` bias in memory, which a fused kernel exists to avoid.

    Raises:
        ValueError: an option was given that the kernel would ignore.
    """
    if options.soft_cap or options.slopes_H is not None or options.drops:
        raise ValueError('cudnn attention has no soft cap, no score slopes and no dropout')
    if not options.is_causal_only:
        raise ValueError('cudnn attention takes no segments and no cache')
    window = options.window
    return jax.nn.dot_product_attention(
        q_BLHK,
        k_BSGK,
        v_BSGK,
        is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation='cudnn',
    )


def cudnn_obstacles(config: AttentionConfig, *, backend: str, segments: bool) -> dict[str, bool]:
    """Returns the reasons why cuDNN cannot run, and whether each holds."""
    return {
        f'the backend is {backend}, not gpu': backend != 'gpu',
        'config.model.precision.compute is not bfloat16': config.precision.compute != 'bfloat16',
        'config.model.attention_soft_cap is on': bool(config.attention_soft_cap),
        'config.model.position is alibi': config.position == 'alibi',
        'config.model.dropouts.attention is on': bool(config.dropouts.attention),
        'config.data.segment_ids is on': segments,
        'config.model.head_dim is over 128 or no multiple of 8': (
            config.head_dim > 128 or config.head_dim % 8 != 0
        ),
    }
