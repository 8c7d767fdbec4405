"""The data config of a text that Python code passes as a string or a file name."""

import os
import pathlib
import re

from gpt_jax import files
from gpt_jax.data.config import DataConfig
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.unicode import check_unicode

# One line that looks like a path: most likely the mistyped name of a file.
_PATH = re.compile(
    r'(/|\.{1,2}/|~/|[A-Za-z]:\\|\w+://).*|.*/.*\.[A-Za-z]\w{0,5}'
    r'|.*\.(txt|text|md|rst|jsonl?|csv|tsv|html?|xml|log|parquet|gz|zst|xz|bz2|zip)',
    re.IGNORECASE,
)


def describe_text(text: str | os.PathLike, scratch: pathlib.Path) -> DataConfig:
    """Returns the config of the file or folder that `text` names, else of a new file with `text`.

    The new file is written into `scratch`.

    Raises:
        UserError: `text` is a single word or looks like a path, but no such file exists, so it is
            probably mistyped; or it is not valid Unicode.
    """
    if not isinstance(text, str) or _exists(text):
        return DataConfig(corpus='text', source=os.fspath(text), split='tail:0.1')
    if _exists(os.path.expanduser(text)):
        return DataConfig(corpus='text', source=os.path.expanduser(text), split='tail:0.1')
    if len(text.split()) == 1:
        raise UserError(f'there is no file {text!r}, and as a text it is a single word')
    if _PATH.fullmatch(text):
        raise UserError(
            f'there is no file {text!r}; if it is a text and no path, end it with a line break'
        )
    check_unicode(text)
    files.write_text(scratch / 'text.txt', text)
    return DataConfig(
        corpus='text',
        source=str(scratch / 'text.txt'),
        split='tail:0.1',
        cache_dir=str(scratch / 'shards'),
    )


def _exists(text: str) -> bool:
    """Returns whether a text is the path of an existing file or folder."""
    try:
        return pathlib.Path(text).exists()
    except (OSError, ValueError):  # too long for a path, or contains a NUL
        return False
