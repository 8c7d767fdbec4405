"""The model's configuration and the legend of its dimensions.

Arrays in model, loss and inference end in their dimensions (`x_BLD`, `q_BLHK`):

    B batch        L query length   S key length     D d_model      F d_ff
    H query heads  G key/value heads                 K head_dim     V vocabulary   N layers

Blocks work on activations `[..., D]`: `[B, L, D]`, or `[B*L, D]` when the model is built flat
(`GPT.flat`), which avoids a transposition in the matrix products on CPU and GPU.
"""

import dataclasses

from gpt_jax.config_tree import check_domains, from_json_value
from gpt_jax.errors import UserError
from gpt_jax.model.attention import Attention, GroupedQuery
from gpt_jax.model.mlp import MLP, Dense
from gpt_jax.model.options import (
    VOCAB_MULTIPLE,
    AttentionKernel,
    CommonConfig,
    DropoutConfig,
    DType,
    ExecutionConfig,
    ExpertKernel,
    InitConfig,
    Kernels,
    MatmulPrecision,
    MLPKind,
    NormKernel,
    NormKind,
    NormPlacement,
    PositionKind,
    PrecisionConfig,
    Remat,
    RopeConfig,
    ScanLayers,
)
from gpt_jax.moved_keys import accepts_moved_keys

__all__ = [
    'AttentionKernel',
    'CommonConfig',
    'DType',
    'DropoutConfig',
    'ExecutionConfig',
    'ExpertKernel',
    'InitConfig',
    'Kernels',
    'MLPKind',
    'MatmulPrecision',
    'ModelConfig',
    'NormKernel',
    'NormKind',
    'NormPlacement',
    'PositionKind',
    'PrecisionConfig',
    'Remat',
    'RopeConfig',
    'ScanLayers',
    'VOCAB_MULTIPLE',
    'finalize_model',
]


@accepts_moved_keys('model')
@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig(CommonConfig):
    """The architecture of the network; `finalize_model` checks it and fills derived values."""

    attention: Attention = dataclasses.field(default_factory=GroupedQuery)
    mlp: MLP = dataclasses.field(default_factory=Dense)

    def __post_init__(self) -> None:
        """Makes the groups that are given as dicts or by name: `GPT(rope={'base': 5e5})`."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict | str) and type(value) is not field.type:
                key = f'config.model.{field.name}'
                setattr(self, field.name, from_json_value(value, field.type, key))


def finalize_model(config: ModelConfig) -> None:
    """Fills the derived values of `config` in place and checks it.

    Raises:
        UserError: a value cannot work; the message names its key.
    """
    c, key = config, 'config.model.'
    check_domains(c, 'config.model')
    if not c.vocab_size:
        raise UserError(f'{key}vocab_size=0 must be at least 1 where no tokenizer sets it')
    c.num_kv_heads = c.num_kv_heads or c.num_heads
    c.d_ff = c.d_ff or 4 * c.d_model
    if not c.head_dim and c.d_model % c.num_heads:
        raise UserError(
            f'{key}d_model={c.d_model} is not divisible by {key}num_heads={c.num_heads}; '
            f'change one of them or set {key}head_dim'
        )
    c.head_dim = c.head_dim or c.d_model // c.num_heads
    if c.num_heads % c.num_kv_heads:
        raise UserError(
            f'{key}num_heads={c.num_heads} is not divisible by {key}num_kv_heads='
            f'{c.num_kv_heads}; each key/value head serves the same number of query heads'
        )
    if c.position == PositionKind.SINUSOIDAL and c.d_model % 2:
        raise UserError(f'{key}d_model={c.d_model} must be even for {key}position=sinusoidal')
    if c.rope.low_freq_factor >= c.rope.high_freq_factor:
        raise UserError(
            f'{key}rope.low_freq_factor={c.rope.low_freq_factor} must be below '
            f'{key}rope.high_freq_factor={c.rope.high_freq_factor}'
        )
    if c.execution.scan_layers == ScanLayers.ON and c.num_layers % max(1, len(c.window_pattern)):
        raise UserError(
            f'{key}window_pattern has {len(c.window_pattern)} entries, which do not divide '
            f'{key}num_layers={c.num_layers}; change one of them or set '
            f'{key}execution.scan_layers=off'
        )
    c.attention.finalize(c)
    c.mlp.finalize(c)
    kernel = c.execution.attention_kernel
    if kernel in (AttentionKernel.CUDNN, AttentionKernel.SPLASH) and c.dropouts.attention:
        raise UserError(
            f'{key}execution.attention_kernel={kernel} has no dropout: set '
            f'{key}dropouts.attention=0 or {key}execution.attention_kernel=auto'
        )
    check_domains(c, 'config.model')  # the derived sizes
