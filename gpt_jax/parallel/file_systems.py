"""Detection of the processes of a run that share a folder, by its files."""

import contextlib
import pathlib
import secrets

from gpt_jax import files
from gpt_jax.parallel import peers


def leaders(folder: pathlib.Path) -> list[int]:
    """Returns, for each process, the first process that shares its `folder`. Collective.

    Each process writes a file there and lists the files it sees. This works on any kind of disk,
    and when hosts have separate folders of the same name.

    Raises:
        UserError: this process cannot write to the folder.
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
