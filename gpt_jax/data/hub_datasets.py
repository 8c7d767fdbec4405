"""Streamed data sets of the Hugging Face hub; only the shards are stored."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

from gpt_jax.data import documents, locations
from gpt_jax.data.config import DataConfig
from gpt_jax.data.documents import Piece, SkippedRows
from gpt_jax.errors import UserError


@dataclasses.dataclass
class HubCorpus:
    """The split `train` of `config.source`, 'NAME' or 'NAME:CONFIGURATION', or of a local folder.

    Data of the hub is pinned to the revision that was current at the first request.
    """

    name: str
    config: DataConfig
    unit: str = 'documents'
    position: float = 0.0
    size: float = 0.0  # unknown: the hub does not always report it
    skipped: SkippedRows = dataclasses.field(default_factory=SkippedRows)

    def pieces(self) -> Iterator[Piece]:
        """Yields the documents, fetched on demand.

        Raises:
            UserError: the data set cannot be loaded, or has no field `config.text_field`.
        """
        self.skipped = SkippedRows()
        rows = documents.text_rows(self._records(), self.config.text_field)
        yield from self.skipped.leave_out(rows, self.config)

    def _records(self) -> Iterator[tuple[str, Any]]:
        """Yields (location, row) of each row."""
        try:
            import datasets
        except ImportError as error:
            raise documents.missing_package('datasets', 'config.data.corpus=huggingface') from error
        name, configuration = self._parts()
        revision = None if self._folder() else self._revision
        try:
            rows = datasets.load_dataset(
                name, configuration, split='train', streaming=True, revision=revision
            )
            records = iter(rows)
        except Exception as error:  # the loader of a data set may raise anything
            raise self._cannot_load(error) from error
        self.position = 0.0
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:
                raise self._cannot_load(error) from error
            self.position += 1
            yield f'{self.config.source}, row {int(self.position)}', record

    def fingerprint(self) -> str:
        """Returns a hash of the hub's revision and the configuration, or of a folder's files."""
        if folder := self._folder():
            digest = hashlib.sha256()
            for path in sorted(path for path in folder.rglob('*') if path.is_file()):
                digest.update(bytes.fromhex(locations.content_hash(path, self.config)))
            return digest.hexdigest()
        _, configuration = self._parts()
        if configuration is None:
            return self._revision
        return hashlib.sha256(f'{self._revision}:{configuration}'.encode()).hexdigest()

    @functools.cached_property
    def _revision(self) -> str:
        try:
            import huggingface_hub
        except ImportError as error:
            raise documents.missing_package('datasets', 'config.data.corpus=huggingface') from error
        try:
            return huggingface_hub.HfApi().dataset_info(self._parts()[0]).sha
        except Exception as error:  # no network, no such data set, no permission
            raise self._cannot_load(error) from error

    def _parts(self) -> tuple[str, str | None]:
        if self._folder():
            return self.config.source, None
        name, _, configuration = self.config.source.partition(':')
        return name, configuration or None

    def _folder(self) -> pathlib.Path | None:
        path = pathlib.Path(self.config.source).expanduser()
        return path if path.is_dir() else None

    def _cannot_load(self, error: Exception) -> UserError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return UserError(f'cannot load config.data.source={self.config.source!r}: {reason}')
