"""Models of the Hugging Face hub, by name."""

import pathlib

from gpt_jax.errors import UserError
from gpt_jax.weights.folder import PATTERNS


def download(name: str) -> pathlib.Path:
    """The folder of a model, fetched unless it is in the library's cache.

    Raises:
        UserError: there is neither a path nor a model of that name, or no network.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(PATTERNS)))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'there is no file or folder {name}, and the Hugging Face hub gave no such model '
            f'({reason})'
        ) from error
