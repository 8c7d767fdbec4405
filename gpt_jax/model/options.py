"""The enumerations and the groups of knobs that `ModelConfig` is made of."""

import dataclasses
import enum
from typing import Any, NamedTuple

from gpt_jax.config_tree import count, finite, fraction, positive, real, whole

VOCAB_MULTIPLE = 128  # the table's rows are padded to this, whatever the mesh


class AttentionKernel(enum.StrEnum):
    AUTO = 'auto'
    XLA = 'xla'
    BLOCKED = 'blocked'
    CUDNN = 'cudnn'
    SPLASH = 'splash'
    RING = 'ring'


class ExpertKernel(enum.StrEnum):
    AUTO = 'auto'
    XLA = 'xla'
    RAGGED = 'ragged'
    BLOCKED = 'blocked'


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
    PRE = 'pre'  # x + branch(norm(x))
    POST = 'post'  # norm(x + branch(x))
    SANDWICH = 'sandwich'  # x + norm(branch(norm(x)))
    OUTPUT = 'output'  # x + norm(branch(x))


class ParallelResidual(enum.StrEnum):
    OFF = 'off'
    TWO_NORMS = 'two_norms'  # x + attention(norm1(x)) + mlp(norm2(x)), as in GPT-NeoX
    ONE_NORM = 'one_norm'  # x + attention(norm(x)) + mlp(norm(x)), as in GPT-J


class QKNorm(enum.StrEnum):
    NONE = 'none'
    HEAD = 'head'  # over each head
    FULL = 'full'  # over all heads together

    @classmethod
    def _missing_(cls, value: Any) -> 'QKNorm | None':
        """Accepts the booleans of older config files."""
        return {True: cls.HEAD, False: cls.NONE}.get(value) if isinstance(value, bool) else None


class MLPKind(enum.StrEnum):
    GELU = 'gelu'
    GELU_TANH = 'gelu_tanh'
    RELU = 'relu'
    RELU2 = 'relu2'
    SWIGLU = 'swiglu'
    GEGLU = 'geglu'


class DType(enum.StrEnum):
    FLOAT32 = 'float32'
    BFLOAT16 = 'bfloat16'


class Parametrization(enum.StrEnum):
    STANDARD = 'standard'
    MUP = 'mup'  # what depends on width is scaled from `base`: model/parametrization.py


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
    experts: ExpertKernel = ExpertKernel.XLA


@dataclasses.dataclass(slots=True, kw_only=True)
class RopeConfig:
    """Rotary positions; the frequency factors are of Llama 3.1's scaling, the betas of YaRN's."""

    base: float = positive(10000.0)  # wavelength base
    fraction: float = real(1.0, 1e-6, 1.0)  # of a head's width that is rotated: its first part
    scaling: float = positive(1.0)  # positions are divided by this (linear interpolation)
    original_seq_len: int = whole(0)  # > 0: scaling skips short waves
    low_freq_factor: float = positive(1.0)  # waves longer than original / this are scaled
    high_freq_factor: float = positive(4.0)  # waves shorter than original / this are unchanged
    yarn: bool = False  # scale as YaRN does instead; it needs original_seq_len
    beta_fast: float = positive(32.0)  # waves with more turns in original_seq_len are unchanged
    beta_slow: float = positive(1.0)  # waves with fewer turns in original_seq_len are scaled
    yarn_truncate: bool = True  # round the bounds that the betas give to whole pairs
    attention_factor: float = positive(1.0)  # rotated queries and keys are multiplied by this


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
    expert_kernel: ExpertKernel = ExpertKernel.AUTO  # auto: the backend's fastest
    scan_layers: ScanLayers = ScanLayers.AUTO  # one compiled layer, looped; auto: on TPU
    remat: Remat = Remat.NONE  # activations kept for the backward pass: model/remat.py


@dataclasses.dataclass(slots=True, kw_only=True)
class BaseConfig:
    """The widths of the model at which hyperparameters were tuned, for parametrization=mup."""

    d_model: int = whole(0)  # needed
    d_ff: int = whole(0)  # 0: in proportion to d_model
    num_heads: int = whole(0)  # 0: in proportion, of the same width; else their width is
    num_kv_heads: int = whole(0)  # 0: in proportion to num_heads, or 1 if the model has 1


def _default(cls: type) -> Any:
    return dataclasses.field(default_factory=cls)


@dataclasses.dataclass(slots=True, kw_only=True)
class CommonConfig:
    """The part of `ModelConfig` that every module of the network may read."""

    # Sizes
    vocab_size: int = whole(0, high=2**31 - VOCAB_MULTIPLE)  # logical size; 0: the tokenizer's
    max_seq_len: int = count(1024)  # context length in tokens
    num_layers: int = count(12)
    num_heads: int = count(12)
    num_kv_heads: int = whole(0)  # 0: num_heads (MHA); 1: MQA; between: GQA
    d_model: int = count(768)
    d_ff: int = whole(0)  # 0: 4 * d_model
    head_dim: int = whole(0)  # 0: d_model / num_heads
    parametrization: Parametrization = Parametrization.STANDARD  # scales of weights and updates
    base: BaseConfig = _default(BaseConfig)
    # Attention and positions
    attention_soft_cap: float = finite(0.0)  # scores become cap * tanh(scores / cap); 0: off
    position: PositionKind = PositionKind.LEARNED
    position_offset: int = whole(0)  # rows of the learned table before that of position 0 (OPT)
    rope: RopeConfig = _default(RopeConfig)
    # Norms and the output layer
    norm: NormKind = NormKind.LAYERNORM
    norm_placement: NormPlacement = NormPlacement.PRE
    parallel_residual: ParallelResidual = ParallelResidual.OFF  # MLP and attention read the same x
    norm_epsilon: float = positive(1e-5)
    norm_bias: bool = False  # biases of LayerNorm even without use_bias
    norm_zero_centered: bool = False  # norms multiply by 1 + scale, which starts at 0 (Gemma)
    final_norm: bool = True  # a norm before the output layer
    use_bias: bool = True  # biases in linear layers and LayerNorm
    tie_embeddings: bool = True  # the output layer is the embedding table
    scale_embedding: bool = False  # embeddings are multiplied by the root of d_model (Gemma)
    output_soft_cap: float = finite(0.0)  # logits become cap * tanh(logits / cap); 0: off
    # Training and execution
    dropouts: DropoutConfig = _default(DropoutConfig)
    init: InitConfig = _default(InitConfig)
    precision: PrecisionConfig = _default(PrecisionConfig)
    execution: ExecutionConfig = _default(ExecutionConfig)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the stored table: `vocab_size` rounded up to VOCAB_MULTIPLE."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
