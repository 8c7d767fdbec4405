"""Folders in an object store, gs:// and s3://: what is another thing there than on a disk.

A path there is an `epath.Path`, which reads and lists like a `pathlib.Path`, through gcsfs and
s3fs. An object appears whole or not at all, but there are no folders to make, no renaming, no
appending and no locks; the functions here are for these. Credentials, regions and endpoints are
those of the stores' own clients: https://gcsfs.readthedocs.io and https://s3fs.readthedocs.io.
"""

import contextlib
import importlib.util
import logging
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from gpt_jax.errors import UserError

# Scheme -> the package that reads it, and the extra of pyproject.toml that brings it.
STORES = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is in an object store, not on a disk."""
    return '://' in os.fspath(path)


def to_path(name: str | os.PathLike, *, key: str) -> pathlib.Path:
    """A path of a disk or of an object store; nothing is read.

    Args:
      name: what the user wrote.
      key: what it was given for, such as '--workdir', for errors.

    Raises:
        UserError: the store is of another kind, its package is missing, or no folder is named.
    """
    _refuse_nul(name, key)
    if not is_remote(name):
        return pathlib.Path(os.path.expanduser(name))
    scheme, _, rest = os.fspath(name).partition('://')
    if scheme not in STORES:
        raise UserError(f'{key}={name}: {scheme}:// is unknown; use a folder, gs:// or s3://')
    package, extra = STORES[scheme]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f'{key}={name} needs a package: pip install {package}, or the extra: '
            f"pip install -e '.[{extra}]'"
        )
    if not re.fullmatch(r'[^/]+/+[^/].*', rest):
        raise UserError(f'{key}={name} must name a folder in a bucket: {scheme}://BUCKET/FOLDER')
    import fsspec
    from etils import epath

    # Its failures are raised, and shown once.
    logging.getLogger(package).setLevel(logging.CRITICAL)
    # Other processes write there too, so no listing may be kept: read by clients made later.
    fsspec.config.conf.setdefault(scheme, {}).setdefault('use_listings_cache', False)
    return epath.Path(f'{scheme}://{rest.rstrip("/")}')


def _refuse_nul(name: str | os.PathLike, key: str) -> None:
    """Raises UserError for a path with a NUL byte, which no system call takes."""
    if '\0' in os.fspath(name):
        raise UserError(f'{key}={os.fspath(name)!r} has a NUL byte; remove it')


def local_path(name: str | os.PathLike, *, key: str) -> pathlib.Path:
    """A path of a disk. Raises UserError for one of an object store."""
    _refuse_nul(name, key)
    if is_remote(name):
        raise UserError(f'{key}={name}: name a folder of this machine, and copy it from there')
    return pathlib.Path(os.path.expanduser(name))


def check_reachable(path: pathlib.Path, *, key: str) -> None:
    """Refuses a path in a bucket that is not there or may not be read; a disk is not looked at.

    Raises:
        UserError: naming the bucket and what its store said.
    """
    if not is_remote(path):
        return
    scheme, _, rest = os.fspath(path).partition('://')
    bucket = rest.partition('/')[0]
    try:
        found = _client(path).exists(f'{scheme}://{bucket}') or path.exists()
    except Exception as error:  # each client has exceptions of its own
        raise UserError(f'{key}={path}: {unreachable(error)}') from error
    if not found:
        raise UserError(
            f'{key}={path}: there is no bucket {bucket!r}, or these credentials may not list it; '
            f'make it first, or correct the name'
        )


def unreachable(error: Exception) -> str:
    """What to tell of a store that did not answer as it should: its own reason and the fix."""
    reason = ' '.join(str(error).split()) or type(error).__name__
    return f'the store refused ({reason[:200]}); check the bucket, the credentials and the network'


@contextlib.contextmanager
def naming_failures(path: str | os.PathLike, *, may_be_absent: bool = True) -> Iterator[None]:
    """Turns what the client of a store raises into one line; on a disk it does nothing.

    Raises:
        UserError: naming the path.
        FileNotFoundError: as it is, if the path `may_be_absent`; otherwise the bucket is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_remote(path) or (may_be_absent and isinstance(error, FileNotFoundError)):
            raise
        raise UserError(f'{path}: {unreachable(error)}') from error


@contextlib.contextmanager
def whole_object(path: pathlib.Path, mode: str) -> Iterator[IO]:
    """Opens a local file that becomes the object `path` when the block ends without error.

    Raises:
        UserError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix='gpt_jax-') as folder:
        temporary = pathlib.Path(folder) / 'object'
        with open(temporary, mode, encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
        upload(temporary, path)


def read_bytes(path: pathlib.Path) -> bytes:
    """The content of a file or an object, of which one version is read though others are written.

    Raises:
        UserError: the store does not answer.
        OSError: as for a file: it is not there.
    """
    if not is_remote(path):
        return path.read_bytes()
    with naming_failures(path):
        return _client(path).cat_file(os.fspath(path))


def upload(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a local file to an object. Raises UserError."""
    with naming_failures(target, may_be_absent=False):
        _client(target).put_file(str(source), os.fspath(target))


def download(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies an object to a local file. Raises UserError."""
    with naming_failures(source):
        _client(source).get_file(os.fspath(source), str(target))


def download_folder(source: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Copies all objects below `source` to a local folder; returns their names in it."""
    names = list_objects(source)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        download(source / name, target / name)
    return names


def upload_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies all files of a local folder to below `target`. Raises UserError."""
    for path in sorted(source.rglob('*')):
        if path.is_file():
            upload(path, target / path.relative_to(source).as_posix())


def list_objects(folder: pathlib.Path) -> list[str]:
    """The objects below a folder, by their names in it; [] if there is none. Raises UserError."""
    with naming_failures(folder, may_be_absent=False):
        root = os.fspath(folder).partition('://')[2] + '/'
        found = _client(folder).find(os.fspath(folder))
        return sorted(name.removeprefix(root) for name in found if name.startswith(root))


def list_names(folder: pathlib.Path) -> list[str]:
    """What is directly in a folder, objects and folders; [] if there is none. Raises UserError."""
    with naming_failures(folder), contextlib.suppress(FileNotFoundError):
        found = _client(folder).ls(os.fspath(folder), detail=False)
        return sorted(name.rstrip('/').rpartition('/')[2] for name in found)
    return []


def remove(path: pathlib.Path) -> None:
    """Deletes an object, if it is there. Raises UserError."""
    with naming_failures(path), contextlib.suppress(FileNotFoundError):
        _client(path).rm_file(os.fspath(path))


def remove_folder(folder: pathlib.Path) -> None:
    """Deletes every object below a folder. Raises UserError."""
    for name in list_objects(folder):
        remove(folder / name)


def copy_folder(source: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Copies every object, inside the store; returns their names. Raises UserError."""
    names = list_objects(source)
    with naming_failures(source):
        for name in names:
            _client(source).cp_file(os.fspath(source / name), os.fspath(target / name))
    return names


def move_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies every object, inside the store, and then deletes the old ones. Raises UserError."""
    for name in copy_folder(source, target):
        remove(source / name)


def kvstore(folder: pathlib.Path) -> dict[str, Any]:
    """The folder as tensorstore names it, with the endpoint that the other clients use.

    https://google.github.io/tensorstore/kvstore/s3 and …/kvstore/gcs; credentials are found by
    tensorstore. For gs:// its variable TENSORSTORE_GCS_HTTP_URL names another endpoint.
    """
    scheme, _, rest = os.fspath(folder).partition('://')
    bucket, _, prefix = rest.partition('/')
    spec = {'driver': 'gcs' if scheme == 'gs' else scheme, 'bucket': bucket, 'path': f'{prefix}/'}
    if scheme == 's3':
        environment = os.environ
        endpoint = environment.get('AWS_ENDPOINT_URL_S3') or environment.get('AWS_ENDPOINT_URL')
        region = environment.get('AWS_REGION') or environment.get('AWS_DEFAULT_REGION')
        if endpoint:
            spec |= {'endpoint': endpoint, 'aws_region': region or 'us-east-1'}
        elif region:
            spec['aws_region'] = region
        if 'AWS_ACCESS_KEY_ID' in environment:  # else a chain, which prints what it does not find
            spec['aws_credentials'] = {'type': 'environment'}
    return spec


def _client(path: pathlib.Path) -> Any:
    """The fsspec file system of a path."""
    import fsspec

    return fsspec.filesystem(os.fspath(path).partition('://')[0])
