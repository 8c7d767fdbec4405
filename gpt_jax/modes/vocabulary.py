"""The size of the vocabulary, if it is known without the data."""

from gpt_jax.config import RunConfig
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerKind
from gpt_jax.tokenizer.byte import ByteTokenizer


def known_vocab_size(config: RunConfig) -> int:
    """Returns the model's or tokenizer's vocabulary size, for modes that read no data.

    Raises:
        UserError: the size depends on the data.
    """
    size = config.model.vocab_size or config.tokenizer.vocab_size
    if size:
        return size
    if config.tokenizer.kind == TokenizerKind.BYTE:
        return ByteTokenizer().vocab_size
    raise UserError(
        f'the vocabulary of a {config.tokenizer.kind} tokenizer depends on the data: set '
        f'--config.model.vocab_size=66, say, or read the data with --mode benchmark '
        f'--benchmark_data'
    )
