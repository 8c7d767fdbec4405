"""The config of the data: the corpus, the place of its shards, and the reading of batches."""

import dataclasses
import enum
from typing import Any

from gpt_jax.config_tree import count, file_path, positive, whole

# Knobs that do not change the content of prepared shards, except through the corpus's fingerprint.
NOT_CONTENT = frozenset(
    {'source', 'chat_template', 'sha256'}  # the corpus hashes what they name
    | {'modulus', 'num_documents', 'block_length'}  # it hashes those that it reads
    | {'cache_dir', 'weight', 'mixture', 'segment_ids', 'num_threads', 'prefetch_batches'}
    | {'windows', 'skip_steps'}
)


class Windows(enum.StrEnum):
    """The kinds of windows that batches have."""

    CONTINUOUS = 'continuous'  # stretches of the text, over the ends of documents
    DOCUMENTS = 'documents'  # a document each, padded to the length of the context


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
    """Settings of the corpus, its preparation, and the reading of batches."""

    corpus: str = 'python_stdlib'  # a key of gpt_jax.data.corpora.CORPORA, or 'shards'
    source: str = file_path()  # file, folder, glob, URL, data set; shards also gs:// and s3://
    text_field: str = 'text'  # the field that holds the text (jsonl, parquet, huggingface)
    skip_bad_rows: bool = False  # leave out rows that cannot be read; the manifest lists the first
    chat_template: str = file_path()  # a Jinja file; '' = the tokenizer's own, else a plain one
    separator: str = ''  # between documents of a text file, e.g. <|endoftext|>; '' = one per file
    modulus: int = whole(97, low=2, high=1009)  # a prime: of all sums (modular)
    num_documents: int = whole(10_000, low=2, high=10**7)  # to generate (repeated)
    block_length: int = count(32)  # symbols, which come twice in a document (repeated)
    sha256: str = ''  # of the file at a URL, in hexadecimal (url)
    split: str = 'hash:0.01'  # validation part: 'hash:F' of the documents, 'tail:F' the text's end
    cache_dir: str = file_path()  # for shards and copies of remote ones; '' = the user's cache
    weight: float = positive(1.0)  # weight of this corpus if `mixture` adds others
    mixture: tuple[str, ...] = file_path(())  # further prepared folders, each 'FOLDER=WEIGHT'
    windows: Windows = Windows.CONTINUOUS  # or documents: one per window, which must hold it
    segment_ids: bool = False  # mark documents, so that attention does not cross them
    skip_steps: tuple[str, ...] = ()  # steps whose batches are left out: 1200-1210,1300
    num_threads: int = whole(1, high=1024)  # threads that read ahead; 0: no reading ahead
    prefetch_batches: int = whole(4, high=65_536)  # batches read ahead


def content_options(config: DataConfig) -> dict[str, Any]:
    """Returns the knobs that determine the content of prepared shards, for their identity.

    Every knob counts unless NOT_CONTENT lists it, so a new one can never reuse stale shards. Knobs
    at their default are left out, because shards prepared before the knob existed stay valid.
    """
    default = type(config)()
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in NOT_CONTENT
        and getattr(config, field.name) != getattr(default, field.name)
    }
