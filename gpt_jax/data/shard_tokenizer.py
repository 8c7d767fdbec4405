"""The tokenizer that belongs to a folder of shards."""

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
    """Loads the tokenizer that made the tokens of a prepared folder.

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
    """Returns the tokenizer for the result of `prepare`: the one saved there, else the config's.

    Its chat template comes from the file `chat_template`, else from shards of conversations, else
    from the config's tokenizer.

    Raises:
        UserError: the config names another tokenizer than the shards', or the file is no template.
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
    """Reads the tokenizer at `config.path`; None without a path.

    Raises:
        UserError: it cannot be read.
    """
    return tokenizers.make_tokenizer(config, _no_text) if config.path else None


def tokenizer_identity(
    config: TokenizerConfig, given: Tokenizer | None, *, chat: bool
) -> dict[str, Any]:
    """Returns everything that determines the tokens: an existing tokenizer, or its config.

    The begin-of-text token is part of it, except with `chat`: a chat template writes its own.
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
