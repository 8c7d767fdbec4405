"""Folders in an object store (gs:// and s3://), and the operations that differ from a disk.

A path in a store is an `epath.Path`, which reads and lists like a `pathlib.Path`, through gcsfs
and s3fs. An object is written whole or not at all. Stores have no creation of folders, renaming,
appending or locks; the functions here replace these. Credentials, regions and endpoints are those
of the stores' own clients: https://gcsfs.readthedocs.io and https://s3fs.readthedocs.io.
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

# Scheme -> the package that reads it, and the extra of pyproject.toml that installs it.
STORES = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is in an object store."""
    return '://' in os.fspath(path)


def to_path(name: str | os.PathLike, *, key: str) -> pathlib.Path:
    """Returns a path on a disk or in an object store; reads nothing.

    Args:
      name: the user's input.
      key: its flag or config key, such as '--workdir', for errors.

    Raises:
        UserError: the kind of store is unknown, its package is missing, or no folder is named.
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

    # Its failures are raised; logged too, they would be shown twice.
    logging.getLogger(package).setLevel(logging.CRITICAL)
    # Other processes write too, so clients, which read this when created, must not cache listings.
    fsspec.config.conf.setdefault(scheme, {}).setdefault('use_listings_cache', False)
    return epath.Path(f'{scheme}://{rest.rstrip("/")}')


def _refuse_nul(name: str | os.PathLike, key: str) -> None:
    """Raises UserError for a path with a NUL byte, which system calls reject."""
    if '\0' in os.fspath(name):
        raise UserError(f'{key}={os.fspath(name)!r} has a NUL byte; remove it')


def local_path(name: str | os.PathLike, *, key: str) -> pathlib.Path:
    """Returns a path on a disk. Raises UserError for a path in an object store."""
    _refuse_nul(name, key)
    if is_remote(name):
        raise UserError(f'{key}={name}: name a folder of this machine, and copy it from there')
    return pathlib.Path(os.path.expanduser(name))


def check_reachable(path: pathlib.Path, *, key: str) -> None:
    """Rejects a path in a bucket that does not exist or is not readable; ignores disks.

    Raises:
        UserError: the bucket is not reachable; names it and the store's reason.
    """
    if not is_remote(path):
        return
    scheme, _, rest = os.fspath(path).partition('://')
    bucket = rest.partition('/')[0]
    try:
        found = _client(path).exists(f'{scheme}://{bucket}') or path.exists()
    except Exception as error:  # each client raises its own exceptions
        raise UserError(f'{key}={path}: {unreachable(error)}') from error
    if not found:
        raise UserError(
            f'{key}={path}: there is no bucket {bucket!r}, or these credentials may not list it; '
            f'make it first, or correct the name'
        )


def unreachable(error: Exception) -> str:
    """Returns an error text for a failed request to a store: the store's reason and the fix."""
    reason = ' '.join(str(error).split()) or type(error).__name__
    return f'the store refused ({reason[:200]}); check the bucket, the credentials and the network'


@contextlib.contextmanager
def naming_failures(path: str | os.PathLike, *, may_be_absent: bool = True) -> Iterator[None]:
    """Turns exceptions of a store's client into a one-line error; does nothing on a disk.

    Raises:
        UserError: the client raised; names the path.
        FileNotFoundError: unchanged if `may_be_absent`; otherwise it means that the bucket is
            missing and becomes a UserError.
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
    """Opens a local file that becomes the object `path` if the block ends without error.

    Raises:
        UserError: the object cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix='gpt_jax-') as folder:
        temporary = pathlib.Path(folder) / 'object'
        with open(temporary, mode, encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
        upload(temporary, path)


def read_bytes(path: pathlib.Path) -> bytes:
    """Returns the content of a file or of one version of an object, even during a write.

    Raises:
        UserError: the store does not answer.
        OSError: the file or object cannot be read, for example because it does not exist.
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
    """Returns the relative names of all objects below a folder, perhaps []. Raises UserError."""
    with naming_failures(folder, may_be_absent=False):
        root = os.fspath(folder).partition('://')[2] + '/'
        found = _client(folder).find(os.fspath(folder))
        return sorted(name.removeprefix(root) for name in found if name.startswith(root))


def list_names(folder: pathlib.Path) -> list[str]:
    """Returns the names of objects and folders in a folder, perhaps []. Raises UserError."""
    with naming_failures(folder), contextlib.suppress(FileNotFoundError):
        found = _client(folder).ls(os.fspath(folder), detail=False)
        return sorted(name.rstrip('/').rpartition('/')[2] for name in found)
    return []


def written_at(path: pathlib.Path) -> float:
    """Returns when a file or an object was last written, in seconds since 1970."""
    if not is_remote(path):
        return path.stat().st_mtime
    with naming_failures(path):
        return _client(path).modified(os.fspath(path)).timestamp()


def remove(path: pathlib.Path) -> None:
    """Deletes an object if it exists. Raises UserError."""
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
    """Returns tensorstore's spec of a folder, with the endpoint of the other clients.

    See https://google.github.io/tensorstore/kvstore/s3 and …/kvstore/gcs. tensorstore finds the
    credentials itself. For gs:// its variable TENSORSTORE_GCS_HTTP_URL sets another endpoint.
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
        if 'AWS_ACCESS_KEY_ID' in environment:  # the default chain of providers prints each failure
            spec['aws_credentials'] = {'type': 'environment'}
    return spec


def _client(path: pathlib.Path) -> Any:
    """Returns the fsspec file system of a path."""
    import fsspec

    return fsspec.filesystem(os.fspath(path).partition('://')[0])
