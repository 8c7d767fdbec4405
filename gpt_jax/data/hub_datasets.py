"""Data sets of the Hugging Face hub, streamed: nothing but the shards is kept."""

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

    The hub's data is pinned to the revision that was there when it was first asked for.
    """

    name: str
    config: DataConfig
    unit: str = 'documents'
    position: float = 0.0
    size: float = 0.0  # the hub does not always know
    skipped: SkippedRows = dataclasses.field(default_factory=SkippedRows)

    def pieces(self) -> Iterator[Piece]:
        """The documents, fetched as they are asked for.

        Raises:
            UserError: the data set cannot be loaded, or has no field `config.text_field`.
        """
        self.skipped = SkippedRows()
        rows = documents.text_rows(self._records(), self.config.text_field)
        yield from self.skipped.leave_out(rows, self.config)

    def _records(self) -> Iterator[tuple[str, Any]]:
        """The rows, and where each of them is."""
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
        except Exception as error:  # whatever the loader of that data set raises
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
        """A hash of the hub's revision and of the configuration; of a local folder its files'."""
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
