"""nanoGPT's character-level Shakespeare, its two published recipes.

    python -m gpt_jax.main --config configs/shakespeare_char.py:cpu

`:cpu` takes some minutes on a laptop and reaches a validation loss of 1.90 over the whole split
(nanoGPT's README gives 1.88 by an estimate from 20 batches). `:gpu`, the default, is its "baby
GPT", for a GPU: nanoGPT publishes 1.4697. The corpus is downloaded once (1.1 MB); for a copy
of your own: --config.data.corpus=text --config.data.source=FILE.
"""

from gpt_jax.config import RunConfig, unknown_variant
from gpt_jax.model.config import DType, MLPKind
from gpt_jax.tokenizer import TokenizerKind


def get_config(variant: str = '') -> RunConfig:
    """The `:cpu` or `:gpu` recipe."""
    config = RunConfig()
    config.seed = 1337
    config.tokenizer.kind = TokenizerKind.CHAR
    config.data.corpus = 'tiny_shakespeare'
    config.data.split = 'tail:0.1'
    config.model.mlp = MLPKind.GELU
    config.model.use_bias = False
    config.optimizer.learning_rate = 1e-3
    config.optimizer.beta2 = 0.99
    config.optimizer.weight_decay = 0.1
    config.schedule.warmup_steps = 100
    config.sample.prompt = '\n'
    config.sample.max_new_tokens = 300
    if variant == 'cpu':
        config.model.num_layers = 4
        config.model.num_heads = 4
        config.model.d_model = 128
        config.model.max_seq_len = 64
        config.train.batch_size = 12
        config.train.num_steps = 2000
        config.train.log_every = 20
        config.eval.batches = 20
        config.eval.batch_size = 120
    elif variant in ('', 'gpu'):
        config.model.num_layers = 6
        config.model.num_heads = 6
        config.model.d_model = 384
        config.model.max_seq_len = 256
        config.model.dropouts.residual = 0.2
        config.model.dropouts.attention = 0.2
        config.model.precision.compute = DType.BFLOAT16
        config.train.batch_size = 64
        config.train.num_steps = 5000
        config.eval.every = 250
        config.eval.batches = 0
    else:
        raise unknown_variant(variant, ['cpu', 'gpu'])
    config.checkpoint.save_every = config.eval.every
    return config
