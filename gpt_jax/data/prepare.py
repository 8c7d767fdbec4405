"""Preparation of a corpus as token shards, once per combination of settings.

The folder's name contains a hash of everything that determines its content. So other settings or
a changed source file lead to another folder. Preparation can be killed at any time and resumes
after the last finished shard. Nothing reads the folder until manifest.json is written.
"""

import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from gpt_jax import tokenizer as tokenizers
from gpt_jax.data import locations, remote_shards
from gpt_jax.data.config import DataConfig, content_options
from gpt_jax.data.corpora import CHAT, Corpus, make_corpus
from gpt_jax.data.documents import Piece, SkippedRows
from gpt_jax.data.encode import encode_parts
from gpt_jax.data.mixture import parse_mixture
from gpt_jax.data.shard_manifest import (
    MANIFEST,
    TOKENIZER,
    VERSION,
    Manifest,
    SplitInfo,
    hash_of,
    token_dtype,
)
from gpt_jax.data.shard_tokenizer import (
    load_tokenizer,
    make_run_tokenizer,
    read_given,
    tokenizer_identity,
)
from gpt_jax.data.shard_writer import ShardWriter
from gpt_jax.data.shards import Shards
from gpt_jax.data.split import (
    SPLITS,
    TRAIN,
    Part,
    SplitKind,
    SplitRule,
    Survey,
    parse_split,
    split_pieces,
    survey,
)
from gpt_jax.data.verified import check_shards, read_verified, remember
from gpt_jax.errors import UserError
from gpt_jax.telemetry.progress import Progress
from gpt_jax.tokenizer import Tokenizer, TokenizerConfig, TokenizerKind
from gpt_jax.tokenizer.chat_template import ChatTemplate

SHARDS = 'shards'  # the corpus that consists of existing shards
SHARD_TOKENS = 2**25
_PIECES_PER_UPDATE = 1024

_log = logging.getLogger(__name__)


def filled_splits(config: DataConfig) -> tuple[str, ...]:
    """Returns the splits that have text; validation is absent if its fraction is 0."""
    whole = config.corpus != SHARDS and parse_split(config.split).fraction == 0
    return (TRAIN,) if whole else SPLITS


MakeProgress = Callable[..., AbstractContextManager[Any]]


def prepare(
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    *,
    progress: MakeProgress = Progress,
    shard_tokens: int = SHARD_TOKENS,
) -> pathlib.Path:
    """Makes shards of the corpus; returns quickly if they exist.

    Args:
      config: the corpus, its split and the folder of the shards.
      tokenizer_config: the tokenizer. Without a path it is built from the training documents
        (char and symbol: from all documents, as in nanoGPT) and saved in the folder.
      progress: shows the progress; has the signature of gpt_jax.telemetry.progress.Progress.
      shard_tokens: a shard is closed when it has at least this many tokens.

    Returns:
      The argument of `Shards.open`: the folder of the shards. For the corpus 'shards' this is
      `config.source`, or its local copy if the source is in an object store.

    Raises:
        UserError: the source, the split or the tokenizer is wrong, or the disk is full.
    """
    for name, _ in parse_mixture(config):
        remote_shards.local_folder(name, config, key='config.data.mixture', progress=progress)
    if config.corpus == SHARDS:
        return _check_existing(config, tokenizer_config, progress)
    rule = parse_split(config.split)
    given = read_given(tokenizer_config)
    template = None
    if config.corpus == CHAT:
        template = ChatTemplate.of(given, path=config.chat_template)
    corpus = make_corpus(config, template)
    source_fingerprint = corpus.fingerprint()
    identity = hash_of(
        {
            # These three are hashed at their defaults too, as they always were.
            'corpus': config.corpus,
            'text_field': config.text_field,
            'separator': config.separator,
            **content_options(config),
            'split': str(rule),
            'version': VERSION,
            'source': source_fingerprint,
            'tokenizer': tokenizer_identity(tokenizer_config, given, chat=template is not None),
        }
    )
    folder = locations.cache_folder(config) / f'{corpus.name}-{identity[:12]}'
    if not _is_whole(folder):
        with locations.lock(folder):
            if not _is_whole(folder):  # another process may have finished it meanwhile
                _remove_leftovers(folder)
                _build(
                    folder,
                    corpus,
                    rule,
                    tokenizer_config,
                    template,
                    progress=progress,
                    shard_tokens=shard_tokens,
                    identity=identity,
                    source_fingerprint=source_fingerprint,
                )
    return folder


def _build(
    folder: pathlib.Path,
    corpus: Corpus,
    rule: SplitRule,
    tokenizer_config: TokenizerConfig,
    template: ChatTemplate | None,
    *,
    progress: MakeProgress,
    shard_tokens: int,
    identity: str,
    source_fingerprint: str,
) -> None:
    """Writes the tokenizer, the missing shards, and the manifest."""
    rule = _rule_for(corpus, rule)
    size = _survey(corpus, progress) if rule.kind is SplitKind.TAIL and rule.fraction else None

    def parts() -> Iterator[Part]:
        return split_pieces(corpus.pieces(), rule, size)

    try:
        tokenizer = _keep_tokenizer(folder, tokenizer_config, template, parts)
        dtype = token_dtype(tokenizer.vocab_size)
        writers = {
            split: ShardWriter(
                folder, split, dtype=dtype, tokenizer=tokenizer, shard_tokens=shard_tokens
            )
            for split in SPLITS
        }
        with progress(corpus.size, unit=corpus.unit, description='prepare') as line:
            unfinished = (part for part in parts() if not writers[part.split].skip_if_finished())
            for batch in encode_parts(unfinished, tokenizer):
                for part, ids, spans in batch:
                    writers[part.split].add(
                        ids,
                        starts_document=part.piece.starts_document,
                        num_bytes=part.num_bytes,
                        spans=spans,
                    )
                tokens = sum(writer.tokens for writer in writers.values())
                line.update(corpus.position, tokens=tokens)
        splits = {split: writer.finish() for split, writer in writers.items()}
        _check_not_empty(splits, folder, rule, corpus.skipped)
    except UserError:
        if not any(folder.glob('*.tokens')):  # another attempt has no shard to resume from
            shutil.rmtree(folder, ignore_errors=True)
        raise
    Manifest(
        version=VERSION,
        corpus=corpus.name,
        identity=identity,
        source_fingerprint=source_fingerprint,
        split_rule=str(rule),
        tokenizer_kind=str(tokenizer.kind),
        tokenizer_fingerprint=tokenizer.fingerprint(),
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        dtype=dtype,
        splits=splits,
        skipped_rows=corpus.skipped.count,
        first_skipped=tuple(corpus.skipped.first),
    ).write(folder)
    if corpus.skipped.count:
        print(corpus.skipped, flush=True)
    for info in splits.values():
        remember(folder, info.shards, read_verified(folder))


def _rule_for(corpus: Corpus, rule: SplitRule) -> SplitRule:
    """Returns the rule; `hash` becomes `tail` if the corpus is a single document."""
    if rule.kind is not SplitKind.HASH or not rule.fraction:
        return rule
    documents = 0
    for piece in corpus.pieces():
        documents += piece.starts_document
        if documents > 1:
            return rule
    if documents == 1:
        rule = SplitRule(SplitKind.TAIL, rule.fraction)
        print(
            f'the text is one document: its last {rule.fraction:.1%} are for validation '
            f'(config.data.split={rule}; config.data.separator parts a file into documents)',
            flush=True,
        )
    return rule


def _survey(corpus: Corpus, progress: MakeProgress) -> Survey:
    """Reads the whole corpus to find the beginning of its tail."""

    def watched(line: Any) -> Iterator[Piece]:
        for number, piece in enumerate(corpus.pieces()):
            if number % _PIECES_PER_UPDATE == 0:
                line.update(corpus.position)
            yield piece
        line.update(corpus.position)

    with progress(corpus.size, unit=corpus.unit, description='measure') as line:
        return survey(watched(line))


def _keep_tokenizer(
    folder: pathlib.Path,
    config: TokenizerConfig,
    template: ChatTemplate | None,
    parts: Callable[[], Iterator[Part]],
) -> Tokenizer:
    """Returns the tokenizer saved in the folder; without one, makes it and saves it there.

    For a corpus of conversations, it has the template that rendered them.
    """
    kept = folder / TOKENIZER
    if kept.is_dir():
        return tokenizers.load(kept)

    def texts() -> Iterator[str]:
        whole = config.kind in (TokenizerKind.CHAR, TokenizerKind.SYMBOL)
        return (part.piece.text for part in parts() if whole or part.split == TRAIN)

    tokenizer = tokenizers.make_tokenizer(config, texts)
    tokenizer = tokenizer.with_chat(template=template and template.source)
    tokenizers.keep(tokenizer, kept)
    return tokenizer


def _check_not_empty(
    splits: dict[str, SplitInfo], folder: pathlib.Path, rule: SplitRule, skipped: SkippedRows
) -> None:
    """Rejects a corpus that leaves a split without text, and removes its folder.

    Raises:
        UserError: a split is empty; the message names it.
    """
    empty = [split for split in SPLITS if not splits[split].num_bytes]
    if len(empty) == len(SPLITS):
        shutil.rmtree(folder)
        if skipped.count:
            raise UserError(
                f'all {skipped.count:,} rows of the corpus are bad; the first: {skipped.first[0]}'
            )
        raise UserError(
            'the corpus has no text; set config.data.corpus and config.data.source to one that has'
        )
    if empty and rule.fraction:
        shutil.rmtree(folder)
        documents = sum(split.documents for split in splits.values())
        raise UserError(
            f'config.data.split={rule} leaves the {empty[0]} split without text '
            f'({documents} documents in all); change config.data.split, for example to tail:0.1'
        )


def _check_existing(
    config: DataConfig, tokenizer_config: TokenizerConfig, progress: MakeProgress
) -> pathlib.Path:
    """Checks that shards exist and match the tokenizer; returns their folder."""
    if not config.source:
        raise UserError(
            'config.data.corpus=shards needs config.data.source: a prepared folder, '
            'or a folder, glob or file of .bin shards'
        )
    source = remote_shards.local_folder(config.source, config, progress=progress)
    tokenizer = make_run_tokenizer(source, tokenizer_config)
    try:
        Shards.open(source, TRAIN, tokenizer=tokenizer)
    except UserError as error:
        raise UserError(f'config.data.source: {error}') from error
    return source


def _is_whole(folder: pathlib.Path) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    try:
        load_tokenizer(folder)
        for split in Manifest.read(folder).splits.values():
            check_shards(folder, split.shards)
    except UserError as error:
        _log.warning('%s; preparing again what is damaged', error)
        return False
    return True


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Removes temporary files of a killed process, and a manifest of damaged files."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.glob('.*.tmp-*'):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if (folder / TOKENIZER).is_dir():
        try:
            tokenizers.load(folder / TOKENIZER)
        except UserError:  # its tokens cannot be trusted either
            shutil.rmtree(folder)
