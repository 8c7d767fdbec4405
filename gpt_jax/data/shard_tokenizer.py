"""Which tokenizer goes with which shards."""

import dataclasses
import pathlib
from typing import Any, NoReturn

from gpt_jax import tokenizer as tokenizers
from gpt_jax.data.manifest import TOKENIZER, Manifest, is_prepared
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import Tokenizer, TokenizerConfig


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


def make_run_tokenizer(folder: str | pathlib.Path, config: TokenizerConfig) -> Tokenizer:
    """The tokenizer for what `prepare` returned: the one kept there, else the config's.

    Raises:
        UserError: the config asks for another one than made the shards.
    """
    if not is_prepared(folder):
        return tokenizers.make_tokenizer(config, _no_text)
    tokenizer = load_tokenizer(folder)
    if config.kind != tokenizer.kind:
        raise UserError(
            f'the shards in {folder} were made with a {tokenizer.kind} tokenizer; '
            f'set config.tokenizer.kind={tokenizer.kind}'
        )
    if config.path:
        wanted = tokenizers.make_tokenizer(config, _no_text)
        if wanted.fingerprint() != tokenizer.fingerprint():
            raise UserError(
                f'config.tokenizer.path={config.path} is not the tokenizer that made the shards '
                f'in {folder}; set config.tokenizer.path={pathlib.Path(folder) / TOKENIZER}'
            )
    return tokenizer


def tokenizer_identity(config: TokenizerConfig) -> dict[str, Any]:
    """What decides the tokens: the tokenizer that exists, or how it is built from the source."""
    if config.path:
        return {'fingerprint': tokenizers.make_tokenizer(config, _no_text).fingerprint()}
    return dataclasses.asdict(config)


def _no_text() -> NoReturn:
    raise UserError(
        'shards that exist have no text to build a tokenizer from; '
        'set config.tokenizer.path to the tokenizer that made them'
    )
