"""Corpora that are generated from their config, for findings about small transformers.

A document is symbols with single spaces between them; the tokenizer `symbol` makes each a token.
What nothing before it determines is not learned.
"""

import dataclasses
import itertools
import math
import string
from collections.abc import Callable, Iterator

import numpy as np

from gpt_jax.data.config import DataConfig
from gpt_jax.data.documents import Piece, SkippedRows
from gpt_jax.data.shard_manifest import hash_of
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.chat_template import Segment

SYMBOLS = string.ascii_letters  # of `repeated`


@dataclasses.dataclass
class GeneratedCorpus:
    """A fixed number of documents, each a pure function of the config."""

    name: str
    size: float
    generate: Callable[[], Iterator[Piece]]
    settings: dict[str, int]  # that determine the documents
    unit: str = 'documents'
    position: float = 0.0
    skipped: SkippedRows = dataclasses.field(default_factory=SkippedRows)

    def pieces(self) -> Iterator[Piece]:
        """Yields the documents."""
        for number, piece in enumerate(self.generate(), start=1):
            self.position = float(number)
            yield piece

    def fingerprint(self) -> str:
        """Returns a hash of what determines the documents."""
        return hash_of([self.name, self.settings])


def modular(config: DataConfig) -> GeneratedCorpus:
    """Generates `a + b = c` for all a and b modulo `config.modulus`; c alone is learned.

    Power et al. 2022 (grokking), https://arxiv.org/abs/2201.02177.

    Raises:
        UserError: the modulus is no prime.
    """
    p = config.modulus
    if any(p % divisor == 0 for divisor in range(2, math.isqrt(p) + 1)):
        raise UserError(f'config.data.modulus={p} must be a prime number, such as 97')

    def generate() -> Iterator[Piece]:
        for a, b in itertools.product(range(p), repeat=2):
            yield _document(f'{a} + {b} =', f' {(a + b) % p}')

    return GeneratedCorpus('modular', p * p, generate, {'modulus': p})


def repeated(config: DataConfig) -> GeneratedCorpus:
    """Generates blocks of random symbols that come twice; the second time alone is learned.

    Olsson et al. 2022 (induction heads), https://arxiv.org/abs/2209.11895.
    """
    length, documents = config.block_length, config.num_documents

    def generate() -> Iterator[Piece]:
        source = np.random.PCG64(0)  # numpy never changes the bits of a seed
        for _ in range(documents):
            block = ' '.join(SYMBOLS[i] for i in source.random_raw(length) % len(SYMBOLS))
            yield _document(block, f' {block}')

    settings = {'block_length': length, 'num_documents': documents}
    return GeneratedCorpus('repeated', documents, generate, settings)


def _document(given: str, learned: str) -> Piece:
    return Piece(given + learned, segments=(Segment(given, False), Segment(learned, True)))
