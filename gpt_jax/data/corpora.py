"""The table of corpora: where text comes from.

To add one, write a function from DataConfig to a Corpus and list it in CORPORA; for text in files
it is a FileCorpus with the files and a reader.
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

from gpt_jax.data import documents, hub_datasets, input_files, locations
from gpt_jax.data.config import DataConfig
from gpt_jax.data.documents import Piece, Reader, SkippedRows
from gpt_jax.data.download import download
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.chat_template import ChatTemplate

TINY_SHAKESPEARE_URL = (
    'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
)
TINY_SHAKESPEARE_SHA256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'

# Folders of the standard library that are tests, tools of their own, or not part of it.
_NOT_STDLIB = {
    'test', 'tests', 'idlelib', 'lib2to3', 'site-packages', 'dist-packages', '__pycache__'
}  # fmt: skip


CHAT = 'chat'  # the corpus of conversations


class Corpus(Protocol):
    """Documents in a fixed order, and a fingerprint of their content."""

    name: str  # readable, part of the prepared folder's name
    size: float  # of all documents, in `unit`s; 0 when unknown
    unit: str
    position: float  # how much of `size` the running `pieces` has read
    skipped: SkippedRows  # what the running `pieces` has left out

    def pieces(self) -> Iterator[Piece]:
        """The documents from the first on, none empty."""

    def fingerprint(self) -> str:
        """The same wherever the content is the same, whatever the machine and the path."""


@dataclasses.dataclass
class FileCorpus:
    """Documents in files, read one file after another."""

    name: str
    files: list[pathlib.Path]
    read: Reader
    config: DataConfig
    rendered: str = ''  # a hash of what makes text of the files' content, if anything does
    unit: str = 'B'
    position: float = 0.0
    skipped: SkippedRows = dataclasses.field(default_factory=SkippedRows)

    @property
    def size(self) -> float:
        return float(sum(path.stat().st_size for path in self.files))

    def pieces(self) -> Iterator[Piece]:
        """The documents of all files.

        Raises:
            UserError: a file cannot be read or holds something else, naming it.
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
    """The corpus that `config.corpus` names; of conversations, in the words of `template`.

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
    """The sources of the running Python's standard library, about 11 MB; one document a file."""
    _refuse_source(config)
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    found = [
        path
        for path in input_files.files_below(root, skip=_NOT_STDLIB, follow_links=False)
        # Written when Python is built: these differ between machines.
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
    """UTF-8 texts: `source` is a file, a folder (every text file below it) or a glob."""
    files = input_files.source_files(config, lambda path: not input_files.looks_binary(path))
    input_files.warn_of_records(files)
    return FileCorpus(_readable(config.source), files, documents.read_text, config)


def jsonl(config: DataConfig) -> Corpus:
    """JSON lines, plain, .gz or .zst: `source` is a file, a folder or a glob."""
    files = input_files.source_files(config, input_files.is_jsonl)
    return FileCorpus(_readable(config.source), files, documents.read_jsonl, config)


def chat(config: DataConfig, template: ChatTemplate | None = None) -> Corpus:
    """Conversations: JSON lines with `messages`, of which the assistant's are learned."""
    files = input_files.source_files(config, input_files.is_jsonl)
    template = template or ChatTemplate.of(None, path=config.chat_template)
    read = functools.partial(documents.read_chats, template=template)
    return FileCorpus(
        _readable(config.source), files, read, config, rendered=template.fingerprint()
    )


def parquet(config: DataConfig) -> Corpus:
    """Parquet tables, one document a row: `source` is a file, a folder or a glob."""
    files = input_files.source_files(config, lambda path: path.suffix == '.parquet')
    return FileCorpus(_readable(config.source), files, documents.read_parquet, config)


def huggingface(config: DataConfig) -> Corpus:
    """The training split of a data set of the Hugging Face hub, or of a folder in its form."""
    if not config.source:
        raise input_files.no_source(config)
    return hub_datasets.HubCorpus(_readable(config.source), config)


def url(config: DataConfig) -> Corpus:
    """One file of the web, verified by `config.data.sha256`: JSON lines if named so, else text."""
    if not config.source:
        raise input_files.no_source(config)
    path = download(config.source, sha256=config.sha256, folder=locations.downloads(config))
    read = documents.read_jsonl if input_files.is_jsonl(path) else documents.read_text
    return FileCorpus(_readable(config.source), [path], read, config)


def tiny_shakespeare(config: DataConfig) -> Corpus:
    """Karpathy's 1,115,394 characters of Shakespeare; split it with tail:0.1 as nanoGPT does."""
    _refuse_source(config)
    path = download(
        TINY_SHAKESPEARE_URL, sha256=TINY_SHAKESPEARE_SHA256, folder=locations.downloads(config)
    )
    return FileCorpus('tiny_shakespeare', [path], documents.read_text, config)


def _refuse_source(config: DataConfig) -> None:
    """For a corpus that brings its own text: a source would be ignored."""
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
}


def _readable(source: str) -> str:
    """A short name for folders: the last part of a path, URL or data set name."""
    name = re.sub(r'[^\w.-]+', '_', source.rstrip('/').rpartition('/')[2]).strip('._')
    return name.partition('.')[0][:40] or 'corpus'
