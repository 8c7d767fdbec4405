"""The config of the tokenizer, and of its training if there is none yet."""

import dataclasses
import enum

from gpt_jax.config_tree import file_path, whole
from gpt_jax.errors import UserError


class TokenizerKind(enum.StrEnum):
    """The keys of `gpt_jax.tokenizer.TOKENIZERS`."""

    BYTE = 'byte'
    CHAR = 'char'
    SYMBOL = 'symbol'
    SENTENCEPIECE = 'sentencepiece'
    BPE = 'bpe'


class SentencePieceAlgorithm(enum.StrEnum):
    """The training algorithms of SentencePiece."""

    UNIGRAM = 'unigram'
    BPE = 'bpe'


@dataclasses.dataclass(slots=True, kw_only=True)
class TokenizerConfig:
    kind: TokenizerKind = TokenizerKind.BYTE  # the tokenizer, which turns text into ids
    path: str = file_path()  # an existing tokenizer; '' builds one from the corpus
    vocab_size: int = whole(0, high=2**24)  # ids to train (bpe, sentencepiece alone)
    algorithm: SentencePieceAlgorithm = SentencePieceAlgorithm.UNIGRAM  # sentencepiece training
    train_megabytes: int = whole(32)  # text (10^6 bytes) at the corpus's start that training reads


def check_vocab_size(config: TokenizerConfig, *, smallest: int) -> None:
    """Checks that `config.vocab_size` is at least `smallest`.

    Raises:
        UserError: it is smaller, or not set.
    """
    if config.vocab_size < smallest:
        raise UserError(
            f'config.tokenizer.vocab_size={config.vocab_size} must be at least {smallest} to train '
            f'a {config.kind} tokenizer; or name an existing one (config.tokenizer.path)'
        )
