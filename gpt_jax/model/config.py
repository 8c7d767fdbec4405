"""The model's configuration and the legend of its dimensions.

Arrays in model, loss and inference end in their dimensions (`x_BLD`, `q_BLHK`):

    B batch        L query length   S key length     D d_model      F d_ff
    H query heads  G key/value heads                 K head_dim     V vocabulary   N layers

Blocks work on activations `[..., D]`: `[B, L, D]`, or `[B*L, D]` when the model is built flat
(`GPT.flat`), which avoids a transposition in the matrix products on CPU and GPU.
"""

import dataclasses
import enum
from typing import Any, NamedTuple

from gpt_jax.config_tree import check_domains, count, finite, fraction, from_json, positive, whole
from gpt_jax.errors import UserError
from gpt_jax.moved_keys import accepts_moved_keys

VOCAB_MULTIPLE = 128  # the table's rows are padded to this, whatever the mesh


class AttentionKind(enum.StrEnum):
    GROUPED_QUERY = 'grouped_query'


class AttentionKernel(enum.StrEnum):
    AUTO = 'auto'
    XLA = 'xla'
    BLOCKED = 'blocked'
    CUDNN = 'cudnn'
    SPLASH = 'splash'
    RING = 'ring'


class NormKernel(enum.StrEnum):
    AUTO = 'auto'
    XLA = 'xla'
    TRITON = 'triton'


class PositionKind(enum.StrEnum):
    LEARNED = 'learned'
    SINUSOIDAL = 'sinusoidal'
    ROPE = 'rope'
    ALIBI = 'alibi'
    NONE = 'none'


class NormKind(enum.StrEnum):
    LAYERNORM = 'layernorm'
    RMSNORM = 'rmsnorm'


class NormPlacement(enum.StrEnum):
    PRE = 'pre'
    POST = 'post'
    SANDWICH = 'sandwich'


class MLPKind(enum.StrEnum):
    GELU = 'gelu'
    GELU_TANH = 'gelu_tanh'
    RELU2 = 'relu2'
    SWIGLU = 'swiglu'
    GEGLU = 'geglu'


class DType(enum.StrEnum):
    FLOAT32 = 'float32'
    BFLOAT16 = 'bfloat16'


class MatmulPrecision(enum.StrEnum):
    DEFAULT = 'default'
    BFLOAT16 = 'bfloat16'


class ScanLayers(enum.StrEnum):
    AUTO = 'auto'
    ON = 'on'
    OFF = 'off'


class Remat(enum.StrEnum):
    NONE = 'none'
    FULL = 'full'
    ATTENTION = 'attention'
    DOTS = 'dots'
    DOTS_AND_ATTENTION = 'dots_and_attention'


class Kernels(NamedTuple):
    """The kernels that a model runs on its backend; the defaults run everywhere."""

    attention: AttentionKernel = AttentionKernel.XLA
    norm: NormKernel = NormKernel.XLA


@dataclasses.dataclass(slots=True, kw_only=True)
class RopeConfig:
    """Rotary positions; the last three are of Llama 3.1's scaling."""

    base: float = positive(10000.0)  # wavelength base
    scaling: float = positive(1.0)  # positions are divided by this (linear interpolation)
    original_seq_len: int = whole(0)  # > 0: scaling skips short waves
    low_freq_factor: float = positive(1.0)  # waves longer than original / this are scaled
    high_freq_factor: float = positive(4.0)  # waves shorter than original / this are unchanged


@dataclasses.dataclass(slots=True, kw_only=True)
class DropoutConfig:
    """Rates of dropout."""

    residual: float = fraction(0.0)  # of the embedding and of each residual branch
    attention: float = fraction(0.0)  # of the attention weights; not in cuDNN and splash


@dataclasses.dataclass(slots=True, kw_only=True)
class InitConfig:
    """Initial weights."""

    std: float = positive(0.02)  # standard deviation
    scale_residual: bool = True  # GPT-2: residual projections start at std / sqrt(2N)


@dataclasses.dataclass(slots=True, kw_only=True)
class PrecisionConfig:
    """Number formats."""

    params: DType = DType.FLOAT32  # of the weights
    compute: DType = DType.FLOAT32  # of activations and products
    # bfloat16: linear layers round their operands to it; sums stay in `compute`.
    matmul: MatmulPrecision = MatmulPrecision.DEFAULT


@dataclasses.dataclass(slots=True, kw_only=True)
class ExecutionConfig:
    """Choices of speed and memory, which change results by rounding only."""

    attention_kernel: AttentionKernel = AttentionKernel.AUTO  # auto: the backend's fastest
    norm_kernel: NormKernel = NormKernel.AUTO  # auto: the backend's fastest
    scan_layers: ScanLayers = ScanLayers.AUTO  # one compiled layer, looped; auto: on TPU
    remat: Remat = Remat.NONE  # activations kept for the backward pass: model/remat.py


def _default(cls: type) -> Any:
    return dataclasses.field(default_factory=cls)


@accepts_moved_keys('model')
@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The architecture of the network; `finalize_model` checks it and fills derived values."""

    # Sizes
    vocab_size: int = whole(0, high=2**31 - VOCAB_MULTIPLE)  # logical size; 0: the tokenizer's
    max_seq_len: int = count(1024)  # context length in tokens
    num_layers: int = count(12)
    num_heads: int = count(12)
    num_kv_heads: int = whole(0)  # 0: num_heads (MHA); 1: MQA; between: GQA
    d_model: int = count(768)
    d_ff: int = whole(0)  # 0: 4 * d_model
    head_dim: int = whole(0)  # 0: d_model / num_heads
    # Attention and positions
    attention: AttentionKind = AttentionKind.GROUPED_QUERY
    window_pattern: tuple[int, ...] = whole(())  # sliding window of each layer, repeating; 0: none
    qk_norm: bool = False  # RMSNorm of queries and keys, per head
    attention_soft_cap: float = finite(0.0)  # scores become cap * tanh(scores / cap); 0: off
    position: PositionKind = PositionKind.LEARNED
    rope: RopeConfig = _default(RopeConfig)
    # Norms, MLP and the output layer
    norm: NormKind = NormKind.LAYERNORM
    norm_placement: NormPlacement = NormPlacement.PRE
    norm_epsilon: float = positive(1e-5)
    final_norm: bool = True  # a norm before the output layer
    mlp: MLPKind = MLPKind.GELU_TANH
    use_bias: bool = True  # biases in linear layers and LayerNorm
    qkv_bias: bool = False  # biases of query, key and value even without use_bias (Qwen2)
    tie_embeddings: bool = True  # the output layer is the embedding table
    output_soft_cap: float = finite(0.0)  # logits become cap * tanh(logits / cap); 0: off
    # Training and execution
    dropouts: DropoutConfig = _default(DropoutConfig)
    init: InitConfig = _default(InitConfig)
    precision: PrecisionConfig = _default(PrecisionConfig)
    execution: ExecutionConfig = _default(ExecutionConfig)

    def __post_init__(self) -> None:
        """Makes the groups that are given as dicts, as in `GPT(rope={'base': 500000.0})`."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                key = f'config.model.{field.name}'
                setattr(self, field.name, from_json(value, field.type, key))

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the stored table: `vocab_size` rounded up to VOCAB_MULTIPLE."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def window(self, layer: int) -> int:
        """Returns the sliding window of a layer in tokens (0: the whole context)."""
        return self.window_pattern[layer % len(self.window_pattern)] if self.window_pattern else 0


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
    if c.position == PositionKind.ROPE and c.head_dim % 2:
        raise UserError(f'{key}head_dim={c.head_dim} must be even for {key}position=rope')
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
    kernel = c.execution.attention_kernel
    if kernel in (AttentionKernel.CUDNN, AttentionKernel.SPLASH) and c.dropouts.attention:
        raise UserError(
            f'{key}execution.attention_kernel={kernel} has no dropout: set '
            f'{key}dropouts.attention=0 or {key}execution.attention_kernel=auto'
        )
    check_domains(c, 'config.model')  # the derived sizes
