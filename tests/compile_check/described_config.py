"""A run whose step a TPU's compiler takes seconds for: one layer, no biases, no norm's scale."""

from gpt_jax.config import RunConfig, unknown_variant
from gpt_jax.model.config import DType
from gpt_jax.tokenizer import TokenizerKind


def get_config(variant: str = '') -> RunConfig:
    """The run; it has no variants."""
    if variant:
        raise unknown_variant(variant, [])
    config = RunConfig()
    config.tokenizer.kind = TokenizerKind.BYTE
    config.model.num_layers = 1
    config.model.num_heads = 1
    config.model.d_model = 128
    config.model.d_ff = 256
    config.model.max_seq_len = 128
    config.model.use_bias = False
    config.model.precision.compute = DType.BFLOAT16
    config.train.batch_size = 4
    return config
