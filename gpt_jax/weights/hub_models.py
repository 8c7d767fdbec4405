"""Downloads of models from the Hugging Face hub."""

import pathlib

from gpt_jax.errors import UserError
from gpt_jax.weights.transformers_folder import PATTERNS


def download(name: str) -> pathlib.Path:
    """Returns the folder of a model, `NAME` or `NAME@REVISION`, downloaded unless cached.

    Raises:
        UserError: the model or revision does not exist or is not accessible, or there is no
            network.
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
    # Raised outside the handlers, so that the library's exceptions are not chained to it.
    raise UserError(f'no file or folder {name}, and none from the Hugging Face hub: {reason}')
