"""Models of the Hugging Face hub, by name."""

import pathlib

from gpt_jax.errors import UserError
from gpt_jax.weights.transformers_folder import PATTERNS


def download(name: str) -> pathlib.Path:
    """The folder of a model, `NAME` or `NAME@REVISION`, fetched unless it is in the cache.

    Raises:
        UserError: there is neither a path nor a model of that name, or no network.
    """
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, revision = name.partition('@')
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(PATTERNS)
        )
    except errors.GatedRepoError:
        reason = 'accept its terms on its page, and set HF_TOKEN'
    except errors.RepositoryNotFoundError:
        reason = 'it has none of that name; for a private one set HF_TOKEN'
    except errors.RevisionNotFoundError:
        reason = f'it has no revision {revision}'
    except errors.LocalEntryNotFoundError:
        reason = 'it was not reached, and the cache has none; check the network'
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0][:100]
    else:
        return pathlib.Path(folder)
    # Raised here, it carries none of the library's chain of reasons.
    raise UserError(f'no file or folder {name}, and none from the Hugging Face hub: {reason}')
