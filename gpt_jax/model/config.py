"""The model's configuration and the legend of its dimensions.

Arrays in model, loss and inference end in their dimensions (`x_BLD`, `q_BLHK`):

    B batch        L query length   S key length     D d_model      F d_ff
    H query heads  G key/value heads                 K head_dim     V vocabulary   N layers

Blocks work on activations `[..., D]`: `[B, L, D]`, or `[B*L, D]` when the model is built flat
(`GPT.flat`), which avoids a transposition in the matrix products on CPU and GPU.
"""

import dataclasses
from typing import ClassVar

from gpt_jax.config_tree import check_domains, finite, from_json_value, whole
from gpt_jax.errors import UserError
from gpt_jax.model.attention import Attention, GroupedQuery
from gpt_jax.model.mlp import MLP, Dense
from gpt_jax.model.options import (
    VOCAB_MULTIPLE,
    AttentionKernel,
    BaseConfig,
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
    ParallelResidual,
    Parametrization,
    PositionKind,
    PrecisionConfig,
    QKNorm,
    Remat,
    RopeConfig,
    ScanLayers,
)
from gpt_jax.model.parametrization import base_model, is_mup
from gpt_jax.moved_keys import accepts_moved_keys

__all__ = [
    'AttentionKernel',
    'BaseConfig',
    'CommonConfig',
    'DType',
    'DropoutConfig',
    'ExecutionConfig',
    'ExpertKernel',
    'InitConfig',
    'Kernels',
    'LayerKind',
    'MLPKind',
    'MatmulPrecision',
    'ModelConfig',
    'NormKernel',
    'NormKind',
    'NormPlacement',
    'ParallelResidual',
    'Parametrization',
    'PositionKind',
    'PrecisionConfig',
    'QKNorm',
    'Remat',
    'RopeConfig',
    'ScanLayers',
    'VOCAB_MULTIPLE',
    'finalize_model',
]


@dataclasses.dataclass(slots=True, kw_only=True)
class LayerKind:
    """A kind of layers, by what it does differently; a number in place of it is its window."""

    shorthand: ClassVar[str] = 'window'

    window: int = whole(0)  # tokens that a query sees; 0: all
    rope: bool = True  # False: queries and keys are not rotated
    rope_base: float = finite(0.0)  # 0: rope.base
    rope_scaling: float = finite(0.0)  # 0: rope.scaling
    norm: NormKind | None = None  # None: the model's
    mlp: MLP | None = None  # None: the model's


@accepts_moved_keys('model')
@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig(CommonConfig):
    """The architecture of the network; `finalize_model` checks it and fills derived values."""

    layer_kinds: tuple[LayerKind, ...] = ()  # of the layers in order, repeating; (): all alike
    attention: Attention = dataclasses.field(default_factory=GroupedQuery)
    mlp: MLP = dataclasses.field(default_factory=Dense)

    def __post_init__(self) -> None:
        """Makes the groups that are given as dicts or by name: `GPT(rope={'base': 5e5})`."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict | str) and type(value) is not field.type:
                key = f'config.model.{field.name}'
                setattr(self, field.name, from_json_value(value, field.type, key))
        if any(not isinstance(kind, LayerKind) for kind in self.layer_kinds):
            key, kind = 'config.model.layer_kinds', tuple[LayerKind, ...]
            self.layer_kinds = from_json_value(self.layer_kinds, kind, key)

    @property
    def period(self) -> int:
        """The number of layers after which their kinds repeat."""
        return max(1, len(self.layer_kinds))

    def layer_kind(self, layer: int) -> LayerKind:
        """Returns the kind of a layer."""
        return self.layer_kinds[layer % self.period] if self.layer_kinds else LayerKind()

    @property
    def counted_kinds(self) -> tuple[tuple[LayerKind, int], ...]:
        """The kinds of one period, and the number of layers of each."""
        layers, period = range(self.num_layers), self.period
        return tuple((self.layer_kind(j), len(layers[j::period])) for j in layers[:period])

    @property
    def counted_mlps(self) -> tuple[tuple[MLP, int], ...]:
        """The MLPs of the layers of one period, and the number of layers of each."""
        return tuple((kind.mlp or self.mlp, count) for kind, count in self.counted_kinds)

    @property
    def windows(self) -> tuple[int, ...]:
        """The window of each layer."""
        kinds = map(self.layer_kind, range(self.num_layers))
        return tuple(kind.window for kind in kinds)

    @property
    def mlps(self) -> tuple[MLP, ...]:
        """The MLP of each layer."""
        return tuple(self.layer_kind(i).mlp or self.mlp for i in range(self.num_layers))

    def of_layer(self, layer: int) -> 'ModelConfig':
        """Returns the config with the values that a layer's kind changes, as the layer reads it."""
        if not self.layer_kinds:
            return self
        kind = self.layer_kind(layer)
        rope = dataclasses.replace(
            self.rope,
            base=kind.rope_base or self.rope.base,
            scaling=kind.rope_scaling or self.rope.scaling,
        )
        return dataclasses.replace(
            self,
            rope=rope,
            position=self.position if kind.rope else PositionKind.NONE,
            norm=kind.norm or self.norm,
            mlp=kind.mlp or self.mlp,
        )


def finalize_model(config: ModelConfig) -> None:
    """Fills the derived values of `config` in place and checks it.

    Raises:
        UserError: a value cannot work; the message names its key.
    """
    c, key = config, 'config.model.'
    check_domains(c, 'config.model')
    if is_mup(c) and not c.base.d_model:
        raise UserError(
            f'{key}parametrization=mup needs {key}base.d_model, the width at which the learning '
            f'rate was tuned; set it'
        )
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
    c.layer_kinds = from_json_value(c.layer_kinds, tuple[LayerKind, ...], f'{key}layer_kinds')
    if c.rope.yarn and not c.rope.original_seq_len:
        raise UserError(f'{key}rope.yarn needs {key}rope.original_seq_len; set it')
    if c.rope.beta_slow > c.rope.beta_fast:
        raise UserError(
            f'{key}rope.beta_slow={c.rope.beta_slow} must not be above '
            f'{key}rope.beta_fast={c.rope.beta_fast}'
        )
    if c.parallel_residual != ParallelResidual.OFF and c.norm_placement == NormPlacement.POST:
        raise UserError(
            f'{key}parallel_residual={c.parallel_residual} has no {key}norm_placement=post; '
            f'change one of them'
        )
    if c.execution.scan_layers == ScanLayers.ON and c.num_layers % c.period:
        raise UserError(
            f'{key}layer_kinds has {c.period} entries, which do not divide '
            f'{key}num_layers={c.num_layers}; change one of them or set '
            f'{key}execution.scan_layers=off'
        )
    if c.position != PositionKind.ROPE and any(
        not kind.rope or kind.rope_base or kind.rope_scaling for kind in c.layer_kinds
    ):
        raise UserError(
            f'{key}layer_kinds changes rotary positions, and {key}position is {c.position}; set '
            f'{key}position=rope'
        )
    c.attention.finalize(c)
    for mlp in (c.mlp, *(kind.mlp for kind in c.layer_kinds if kind.mlp)):
        mlp.finalize(c)
    kernel = c.execution.attention_kernel
    if kernel in (AttentionKernel.CUDNN, AttentionKernel.SPLASH) and c.dropouts.attention:
        raise UserError(
            f'{key}execution.attention_kernel={kernel} has no dropout: set '
            f'{key}dropouts.attention=0 or {key}execution.attention_kernel=auto'
        )
    check_domains(c, 'config.model')  # the derived sizes
    if is_mup(c):
        try:
            finalize_model(base_model(c))
        except UserError as error:
            raise UserError(f'the base model of {key}base cannot work: {error}') from error
