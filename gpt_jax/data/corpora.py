"""The table of corpora, the sources of text.

To add one, write a function from DataConfig to a Corpus and list it in CORPORA. For text in files,
return a FileCorpus with the files and a reader.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from typing import Protocol

from gpt_jax.data import documents, generated, hub_datasets, input_files, locations
from gpt_jax.data.config import DataConfig
from gpt_jax.data.documents import Piece, Reader, SkippedRows
from gpt_jax.data.download import download
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.chat_template import ChatTemplate

TINY_SHAKESPEARE_URL = (
    'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
)
TINY_SHAKESPEARE_SHA256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'

# Folders that hold tests or separate tools, or do not belong to the standard library.
_NOT_STDLIB = {
    'test', 'tests', 'idlelib', 'lib2to3', 'site-packages', 'dist-packages', '__pycache__'
}  # fmt: skip


CHAT = 'chat'  # the corpus of conversations


class Corpus(Protocol):
    """Documents in a fixed order, and a fingerprint of their content."""

    name: str  # readable, part of the prepared folder's name
    size: float  # of all documents, in `unit`s; 0 when unknown
    unit: str
    position: float  # part of `size` that the running `pieces` has read
    skipped: SkippedRows  # bad rows that the running `pieces` has skipped

    def pieces(self) -> Iterator[Piece]:
        """Yields the documents from the first on; none is empty."""

    def fingerprint(self) -> str:
        """Returns a hash of the content, which does not depend on the machine or the path."""


@dataclasses.dataclass
class FileCorpus:
    """Documents in files, read one file after another."""

    name: str
    files: list[pathlib.Path]
    read: Reader
    config: DataConfig
    rendered: str = ''  # hash of the template that renders the content to text; '' without one
    unit: str = 'B'
    position: float = 0.0
    skipped: SkippedRows = dataclasses.field(default_factory=SkippedRows)

    @property
    def size(self) -> float:
        return float(sum(path.stat().st_size for path in self.files))

    def pieces(self) -> Iterator[Piece]:
        """Yields the documents of all files.

        Raises:
            UserError: a file cannot be read or has another format; the message names it.
        """
        self.skipped, finished = SkippedRows(), 0.0
        for path in self.files:
            with input_files.open_decompressed(path) as (raw, file):
                rows = self.read(file, path, self.config)
                for piece in self.skipped.leave_out(rows, self.config):
                    self.position = finished + raw.tell()
                    yield piece
                finished += raw.tell()
                self.position = finished

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.rendered.encode())
        for path in self.files:
            digest.update(bytes.fromhex(locations.content_hash(path, self.config)))
        return digest.hexdigest()


def make_corpus(config: DataConfig, template: ChatTemplate | None = None) -> Corpus:
    """Makes the corpus that `config.corpus` names; `template` renders conversations.

    Raises:
        UserError: there is no such corpus, or its source is missing.
    """
    if config.corpus not in CORPORA:
        raise UserError(
            f'config.data.corpus={config.corpus!r} is unknown; choose one of: '
            + ', '.join([*CORPORA, 'shards'])
        )
    if config.corpus == CHAT:
        return chat(config, template)
    return CORPORA[config.corpus](config)


def python_stdlib(config: DataConfig) -> Corpus:
    """Reads the running Python's standard library, about 11 MB of source; one document per file."""
    _refuse_source(config)
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    found = [
        path
        for path in input_files.files_below(root, skip=_NOT_STDLIB, follow_links=False)
        # Generated when Python is built, so they differ between machines.
        if not (path.name.startswith('_sysconfigdata') or path.parent.name.startswith('config-'))
        if path.suffix == '.py'
    ]
    if not found:
        raise UserError(
            f'no source files of the standard library in {root}; '
            'set config.data.corpus=text and config.data.source'
        )
    version = f'{sys.version_info.major}.{sys.version_info.minor}'
    return FileCorpus(f'python{version}_stdlib', found, documents.read_text, config)


def text(config: DataConfig) -> Corpus:
    """Reads UTF-8 text: `source` is a file, a folder (every text file below it) or a glob."""
    files = input_files.source_files(config, lambda path: not input_files.looks_binary(path))
    input_files.warn_of_records(files)
    return FileCorpus(_readable(config.source), files, documents.read_text, config)


def jsonl(config: DataConfig) -> Corpus:
    """Reads JSON lines, plain, .gz or .zst: `source` is a file, a folder or a glob."""
    files = input_files.source_files(config, input_files.is_jsonl)
    return FileCorpus(_readable(config.source), files, documents.read_jsonl, config)


def chat(config: DataConfig, template: ChatTemplate | None = None) -> Corpus:
    """Reads conversations: JSON lines with `messages`; only the assistant's are learned."""
    files = input_files.source_files(config, input_files.is_jsonl)
    template = template or ChatTemplate.of(None, path=config.chat_template)
    read = functools.partial(documents.read_chats, template=template)
    return FileCorpus(
        _readable(config.source), files, read, config, rendered=template.fingerprint()
    )


def parquet(config: DataConfig) -> Corpus:
    """Reads Parquet tables, one document per row: `source` is a file, a folder or a glob."""
    files = input_files.source_files(config, lambda path: path.suffix == '.parquet')
    return FileCorpus(_readable(config.source), files, documents.read_parquet, config)


def huggingface(config: DataConfig) -> Corpus:
    """Reads the split `train` of a data set on the Hugging Face hub, or of such a folder."""
    if not config.source:
        raise input_files.no_source(config)
    return hub_datasets.HubCorpus(_readable(config.source), config)


def url(config: DataConfig) -> Corpus:
    """Downloads one file and checks `config.data.sha256`: JSON lines by its suffix, else text."""
    if not config.source:
        raise input_files.no_source(config)
    path = download(config.source, sha256=config.sha256, folder=locations.downloads(config))
    read = documents.read_jsonl if input_files.is_jsonl(path) else documents.read_text
    return FileCorpus(_readable(config.source), [path], read, config)


def tiny_shakespeare(config: DataConfig) -> Corpus:
    """Reads Karpathy's 1,115,394 characters of Shakespeare; nanoGPT's split is tail:0.1."""
    _refuse_source(config)
    path = download(
        TINY_SHAKESPEARE_URL, sha256=TINY_SHAKESPEARE_SHA256, folder=locations.downloads(config)
    )
    return FileCorpus('tiny_shakespeare', [path], documents.read_text, config)


def modular(config: DataConfig) -> Corpus:
    """Generates all sums modulo `config.data.modulus`; see `gpt_jax.data.generated`."""
    _refuse_source(config)
    return generated.modular(config)


def repeated(config: DataConfig) -> Corpus:
    """Generates random blocks of symbols that come twice; see `gpt_jax.data.generated`."""
    _refuse_source(config)
    return generated.repeated(config)


def _refuse_source(config: DataConfig) -> None:
    """Rejects a source for a corpus that has its own text, since it would be ignored."""
    if config.source:
        raise UserError(
            f'config.data.corpus={config.corpus} takes no config.data.source; '
            f'set config.data.corpus=text to read {config.source}'
        )


CORPORA: dict[str, Callable[[DataConfig], Corpus]] = {
    'python_stdlib': python_stdlib,
    'text': text,
    'jsonl': jsonl,
    CHAT: chat,
    'parquet': parquet,
    'huggingface': huggingface,
    'url': url,
    'tiny_shakespeare': tiny_shakespeare,
    'modular': modular,
    'repeated': repeated,
}


def _readable(source: str) -> str:
    """Returns a short folder name: the last component of a path, URL or data set name."""
    name = re.sub(r'[^\w.-]+', '_', source.rstrip('/').rpartition('/')[2]).strip('._')
    return name.partition('.')[0][:40] or 'corpus'
