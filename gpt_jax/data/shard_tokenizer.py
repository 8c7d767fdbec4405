"""Which tokenizer goes with which shards."""

import dataclasses
import pathlib
from typing import Any, NoReturn

from gpt_jax import tokenizer as tokenizers
from gpt_jax.data.documents import begin_document
from gpt_jax.data.shard_manifest import TOKENIZER, Manifest, is_prepared
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import Tokenizer, TokenizerConfig
from gpt_jax.tokenizer.chat_template import with_template


def load_tokenizer(folder: str | pathlib.Path) -> Tokenizer:
    """The tokenizer that made a prepared folder's tokens.

    Raises:
        UserError: the folder is not finished or its tokenizer is damaged.
    """
    folder = pathlib.Path(folder).expanduser()
    manifest = Manifest.read(folder)
    tokenizer = tokenizers.load(folder / TOKENIZER)
    if tokenizer.fingerprint() != manifest.tokenizer_fingerprint:
        raise UserError(
            f'{folder / TOKENIZER} is not the tokenizer of the shards beside it; '
            f'delete {folder} and prepare it again'
        )
    return tokenizer


def make_run_tokenizer(
    folder: str | pathlib.Path, config: TokenizerConfig, *, chat_template: str = ''
) -> Tokenizer:
    """The tokenizer for what `prepare` returned: the one kept there, else the config's.

    Its chat template is the one in the file `chat_template`, else the one that made the shards, if
    they are of conversations, else that of the config's tokenizer.

    Raises:
        UserError: the config asks for another one than made the shards, or the file is none.
    """
    return with_template(_make_run_tokenizer(folder, config), chat_template)


def _make_run_tokenizer(folder: str | pathlib.Path, config: TokenizerConfig) -> Tokenizer:
    if not is_prepared(folder):
        return tokenizers.make_tokenizer(config, _no_text)
    tokenizer = load_tokenizer(folder)
    if config.kind != tokenizer.kind:
        raise UserError(
            f'the shards in {folder} were made with a {tokenizer.kind} tokenizer; '
            f'set config.tokenizer.kind={tokenizer.kind}'
        )
    wanted = read_given(config)
    if wanted is not None:
        if wanted.fingerprint() != tokenizer.fingerprint():
            raise UserError(
                f'config.tokenizer.path={config.path} is not the tokenizer that made the shards '
                f'in {folder}; set config.tokenizer.path={pathlib.Path(folder) / TOKENIZER}'
            )
        template = tokenizer.chat_template or wanted.chat_template
        tokenizer = tokenizer.with_chat(template=template, named_tokens=wanted.named_tokens)
    return tokenizer


def read_given(config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer that the config names; None if it says how one is built.

    Raises:
        UserError: it cannot be read.
    """
    return tokenizers.make_tokenizer(config, _no_text) if config.path else None


def tokenizer_identity(
    config: TokenizerConfig, given: Tokenizer | None, *, chat: bool
) -> dict[str, Any]:
    """What decides the tokens: the tokenizer that exists, or how it is built from the source.

    How a conversation begins is the chat template's affair.
    """
    if given is not None:
        begins = {'begins_documents': True} if begin_document(given).size and not chat else {}
        return {'fingerprint': given.fingerprint(), **begins}
    return dataclasses.asdict(config)


def _no_text() -> NoReturn:
    raise UserError(
        'shards that exist have no text to build a tokenizer from; '
        'set config.tokenizer.path to the tokenizer that made them'
    )
