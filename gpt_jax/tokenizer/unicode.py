"""Checks of the text for tokenizers: valid Unicode only, and a bounded sample for training."""

from collections.abc import Iterable

from gpt_jax.errors import UserError


def check_unicode(text: str) -> None:
    """Checks that UTF-8 can encode a text, so that encoding never changes it.

    Raises:
        UserError: `text` has a lone surrogate (U+D800 to U+DFFF).
    """
    if text.isascii():
        return
    try:
        text.encode('utf-8')
    except UnicodeEncodeError as error:
        raise UserError(
            f'the text has a lone surrogate U+{ord(text[error.start]):04X} at character '
            f'{error.start}, which is not valid Unicode; remove it, for example with '
            "text.encode('utf-8', 'replace').decode()"
        ) from error


def take_megabytes(texts: Iterable[str], megabytes: int) -> list[str]:
    """Returns the first `megabytes` (10^6 UTF-8 bytes) of the texts; the last may be truncated.

    Raises:
        UserError: there is no text, the limit is not positive, or a text is not valid Unicode.
    """
    if megabytes <= 0:
        raise UserError(
            f'config.tokenizer.train_megabytes={megabytes} must be at least 1 to train a tokenizer'
        )
    sample = []
    left = megabytes * 1_000_000
    for text in texts:
        check_unicode(text)
        data = text.encode('utf-8')
        sample.append(text if len(data) <= left else data[:left].decode('utf-8', 'ignore'))
        left -= len(data)
        if left <= 0:
            break
    if not any(sample):
        raise empty_corpus()
    return sample


def empty_corpus() -> UserError:
    """Returns the error for building a tokenizer from a corpus without text."""
    return UserError(
        'config.data.source has no text to build a tokenizer from; name a corpus that is not empty '
        'or an existing tokenizer (config.tokenizer.path)'
    )
