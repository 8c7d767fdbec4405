"""Readers of pre-trained weights: files, folders and models of the Hugging Face hub.

A reader turns a file or folder into a `Source`: the architecture, tensors by name, their mapping
to parameters, and the tokenizer. Tensors are read lazily.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gpt_jax import object_store
from gpt_jax.errors import UserError
from gpt_jax.weights import gguf_file, llama2c, torch_checkpoint, transformers_folder
from gpt_jax.weights.hub_models import download
from gpt_jax.weights.placement import load_params
from gpt_jax.weights.source import Source

__all__ = ['READERS', 'Source', 'load_params', 'open_source']


class Reader(NamedTuple):
    """A format that stores a model in a single file."""

    what: str
    pattern: str  # regex of the file's name
    read: Callable[[pathlib.Path, Sequence[str]], Source]  # arguments: file, keys to ignore


READERS = (
    Reader('llama.cpp: .gguf', r'.+\.gguf', gguf_file.read),
    Reader('llama2.c: .bin', r'.+\.bin', llama2c.read),
    Reader('nanoGPT and minGPT: .pt', r'.+\.(pt|pth)', torch_checkpoint.read),
)


def open_source(where: str, *, ignore_keys: Sequence[str] = ()) -> Source:
    """Opens the weights at a path or of a model of the Hugging Face hub.

    Args:
      where: a path, `ORGANIZATION/NAME` or `ORGANIZATION/NAME@REVISION`.
      ignore_keys: keys of the source's config to ignore; the caller vouches that they change no
        logit.

    Raises:
        UserError: the path or model does not exist, or no reader supports its format.
    """
    path = object_store.local_path(where, key='source')
    if path.is_dir():
        return transformers_folder.read(path, ignore_keys)
    if path.is_file():
        for reader in READERS:
            if re.fullmatch(reader.pattern, path.name):
                return reader.read(path, ignore_keys)
        known = ', '.join(reader.what for reader in READERS)
        raise UserError(
            f'{path} is not a file that a reader knows ({known}); of transformers name the folder'
        )
    if re.fullmatch(r'\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?', where):
        source = transformers_folder.read(download(where), ignore_keys)
        return dataclasses.replace(source, credits=source.credits.of_hub(where.partition('@')[0]))
    raise UserError(f'{path} does not exist')
