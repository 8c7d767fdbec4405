"""The common part of the pre-training configs: a corpus in GPT-2's tokens and AdamW with a cosine.

Give the corpus and the vocabulary on the command line:

    --config.data.corpus=text --config.data.source=FOLDER
    --config.tokenizer.path=FOLDER with encoder.json and vocab.bpe, or a tokenizer.json

Without, the corpus is the Python standard library and a BPE is trained on it: enough to see a
model run, not to train it.
"""

from gpt_jax.config import RunConfig, unknown_variant
from gpt_jax.model.config import DType, ModelConfig
from gpt_jax.model.presets import PRESETS
from gpt_jax.optim import OptimizerConfig
from gpt_jax.optim.adamw import AdamW
from gpt_jax.tokenizer import TokenizerKind


def pretraining(
    preset: str, variant: str = '', *, optimizer: OptimizerConfig | None = None
) -> RunConfig:
    """Half a million tokens a step for a model of `gpt_jax.model.presets`; no variants."""
    if variant:
        raise unknown_variant(variant, [])
    config = RunConfig(model=ModelConfig(**PRESETS[preset]))
    config.model.precision.compute = DType.BFLOAT16
    config.model.dropouts.residual = config.model.dropouts.attention = 0.0
    config.tokenizer.kind = TokenizerKind.BPE
    config.tokenizer.vocab_size = config.model.vocab_size
    config.optimizer = optimizer or AdamW(learning_rate=6e-4, beta2=0.95, weight_decay=0.1)
    config.schedule.warmup_steps = 2000
    config.train.batch_size = 491_520 // config.model.max_seq_len
    config.train.grad_accumulation = 15
    config.train.num_steps = 600_000
    config.eval.every = 1000
    config.eval.batch_size = 32
    config.eval.batches = 40
    config.checkpoint.save_every = 1000
    config.sample.every = 5000
    return config
