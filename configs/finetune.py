r"""Goes on training weights that exist, on a text of yours; the model and tokenizer are theirs.

    python -m gpt_jax.main --config configs/finetune.py --config.train.init_from=WORKDIR \
        --config.data.source=FILE_OR_FOLDER --workdir runs/tuned

WORKDIR is a run, or what `--mode import_weights` made of weights from elsewhere. The variant `lora`
trains adapters of rank 8 in place of the weights: some hundredths of the memory for gradients and
moments. The variants `chat` and `chat_lora` learn the assistant's words of conversations, which are
JSON lines: {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}.
"""

from gpt_jax.config import RunConfig, unknown_variant

VARIANTS = ('lora', 'chat', 'chat_lora')


def get_config(variant: str = '') -> RunConfig:
    """Three passes over the text at a learning rate that keeps what the weights know."""
    if variant not in ('', *VARIANTS):
        raise unknown_variant(variant, VARIANTS)
    config = RunConfig()
    config.data.corpus = 'text'
    config.data.split = 'tail:0.05'
    config.optimizer.learning_rate = 3e-5
    config.schedule.warmup_steps = 10  # such runs may be short
    config.train.batch_size = 16
    config.train.num_epochs = 3
    config.train.log_every = 10
    config.eval.every = 100
    config.eval.batches = 20
    config.checkpoint.save_every = 100
    config.sample.every = 100
    if variant.startswith('chat'):
        config.data.corpus = 'chat'
        config.data.split = 'hash:0.05'
        config.data.segment_ids = True  # an answer sees its own conversation alone
        config.sample.every = 0
    if variant.endswith('lora'):
        config.lora.rank = 8
        config.lora.alpha = 16
        config.optimizer.learning_rate = 1e-3
    return config
