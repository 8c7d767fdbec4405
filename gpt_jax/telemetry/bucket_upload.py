"""A local copy of the metrics of a workdir in an object store, which cannot append to objects.

The metrics sinks write to the copy; `push` uploads each changed file as a whole. It is called
before a checkpoint is saved, so that no row before a checkpoint is lost. It is also called
periodically, so that a run can be watched.
"""

import contextlib
import pathlib
import tempfile
import time

from gpt_jax import object_store
from gpt_jax.errors import UserError

PUSH_SECONDS = 60.0  # between periodic uploads
# Files that the sinks write. wandb's own folder is left out: no other process can use it.
_KEPT = ('metrics.jsonl', 'wandb_id.txt', 'tensorboard/')


class Mirror:
    """The local folder that mirrors a workdir."""

    def __init__(self, workdir: pathlib.Path):
        """Downloads the existing metrics. Raises UserError if the store does not answer."""
        self._workdir = workdir
        self._scratch = tempfile.TemporaryDirectory(prefix='gpt_jax-metrics-')
        # wandb shows the folder's name.
        self.folder = pathlib.Path(self._scratch.name) / workdir.name
        self.folder.mkdir()
        self._pushed: dict[str, tuple[int, int]] = {}
        for name in filter(_is_kept, object_store.list_objects(workdir)):
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            object_store.download(workdir / name, path)
            self._pushed[name] = _stamp(path)
        self._time = time.monotonic()

    def push(self) -> None:
        """Uploads changed files and removes deleted ones. Raises UserError if that fails."""
        here = {
            name: _stamp(path)
            for path in sorted(self.folder.rglob('*'))
            if _is_kept(name := path.relative_to(self.folder).as_posix()) and path.is_file()
        }
        for name, stamp in here.items():
            if self._pushed.get(name) != stamp:
                object_store.upload(self.folder / name, self._workdir / name)
        for name in self._pushed.keys() - here.keys():
            object_store.remove(self._workdir / name)
        self._pushed, self._time = here, time.monotonic()

    def push_if_due(self) -> None:
        """Calls `push` at most every `PUSH_SECONDS`; ignores failures until the next call."""
        if time.monotonic() - self._time > PUSH_SECONDS:
            self._time = time.monotonic()
            with contextlib.suppress(UserError):  # a failed upload must not end the run
                self.push()

    def close(self) -> None:
        """Uploads the remaining changes, and removes the local folder."""
        self.push()
        self._scratch.cleanup()


def _is_kept(name: str) -> bool:
    return name.startswith(_KEPT)


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
