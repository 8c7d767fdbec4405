"""A local copy of what grows in a workdir in an object store, where nothing can be appended to.

The sinks of metrics write to the copy; `push` uploads each file that changed, whole. It is called
before a checkpoint is saved, so that no row that belongs to one is ever lost, and in between from
time to time, so that a run can be watched.
"""

import contextlib
import pathlib
import tempfile
import time

from gpt_jax import object_store
from gpt_jax.errors import UserError

PUSH_SECONDS = 60.0  # between two uploads for those who watch
# What sinks write; wandb has a folder of its own that is of no use to another process.
_KEPT = ('metrics.jsonl', 'wandb_id.txt', 'tensorboard/')


class Mirror:
    """The local folder that stands for a workdir."""

    def __init__(self, workdir: pathlib.Path):
        """Fetches what is there. Raises UserError when the store does not answer."""
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
        """Uploads what changed, and deletes what is gone. Raises UserError."""
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
        """Uploads, unless that was done a moment ago; a store that does not answer is let be."""
        if time.monotonic() - self._time > PUSH_SECONDS:
            self._time = time.monotonic()
            with contextlib.suppress(UserError):  # to watch a run is not worth its end
                self.push()

    def close(self) -> None:
        """Uploads what is left, and removes the local folder."""
        self.push()
        self._scratch.cleanup()


def _is_kept(name: str) -> bool:
    return name.startswith(_KEPT)


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
