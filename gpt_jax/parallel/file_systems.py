"""Which processes of a run see the same folder: those whose files are the same files."""

import contextlib
import pathlib
import secrets

from gpt_jax import files
from gpt_jax.parallel import peers


def leaders(folder: pathlib.Path) -> list[int]:
    """For each process the first process that shares its `folder`; all must call it.

    Each leaves a file there and looks whose it finds, so it does not matter what kind of disk it
    is, and that two hosts have folders of the same name.

    Raises:
        UserError: the folder cannot be written here.
    """
    run = peers.gather('file system', secrets.token_hex(8))[0]
    mine = folder / f'.{run}.process-{peers.process_id()}'
    files.write_text(mine, '')
    try:
        peers.barrier('file system')
        seen = [int(path.name.rpartition('-')[2]) for path in folder.glob(f'.{run}.process-*')]
        return peers.gather('file system leader', min(seen))
    finally:
        with contextlib.suppress(OSError):
            mine.unlink()
