"""Downloads of files: verified by SHA-256, cached, and written atomically."""

import hashlib
import http.client
import pathlib
import urllib.error
import urllib.parse
import urllib.request

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.telemetry import progress

_CHUNK_BYTES = 2**18
_TIMEOUT_SECONDS = 60


def download(url: str, *, sha256: str, folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of the file at `url`; downloads it unless `folder` has it intact.

    Raises:
        UserError: the file cannot be fetched or written, or its SHA-256 differs.
    """
    sha256 = sha256.strip().lower()
    if len(sha256) != 64 or not set(sha256) <= set('0123456789abcdef'):
        raise UserError(
            f'config.data.sha256={sha256!r} must be the 64 hexadecimal digits that sha256sum '
            f'prints for the file behind {url}: a download is never used unverified'
        )
    name = pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name or 'download'
    path = folder / f'{sha256[:12]}-{name}'
    if not (path.is_file() and files.sha256_of(path) == sha256):
        with files.atomic_file(path) as file:
            found = _copy(url, file, description=name)
            if found != sha256:
                raise UserError(
                    f'{url} has the SHA-256 {found}, not config.data.sha256={sha256}: '
                    'another version or a broken download; check both'
                )
    return path


def _copy(url: str, file, *, description: str) -> str:
    """Copies the content of `url` into `file`; returns its SHA-256."""
    digest, done = hashlib.sha256(), 0
    try:
        request = urllib.request.Request(url, headers={'User-Agent': 'gpt_jax'})
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _cannot_fetch(url, error) from error
    total = int(response.headers.get('Content-Length') or 0)
    with response, progress.Progress(total, unit='B', description=description) as line:
        while True:
            try:
                chunk = response.read(_CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _cannot_fetch(url, error) from error
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
            line.update(done)


def _cannot_fetch(url: str, error: Exception) -> UserError:
    is_status = isinstance(error, urllib.error.HTTPError)
    reason = error if is_status else getattr(error, 'reason', None) or error
    return UserError(
        f'cannot download {url} ({reason}); check the address and the network, or fetch the file '
        'by other means and name it with config.data.corpus=text config.data.source=FILE'
    )
