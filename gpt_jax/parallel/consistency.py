"""Comparison of code, versions and data across the processes of a run; jax has no such check."""

import collections
import hashlib
import importlib.metadata
import pathlib
import platform
from collections.abc import Mapping, Sequence

from gpt_jax.errors import UserError
from gpt_jax.parallel import peers

LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'grain')


def code_facts() -> dict[str, str]:
    """Returns a hash of this package's files, and the versions of Python and the libraries."""
    root = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob('*.py')):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {'code': digest.hexdigest()[:16], 'python': platform.python_version(), **versions}


def check(name: str, facts: Mapping[str, str]) -> list[dict[str, str]]:
    """Compares the facts of all processes, and returns them. Collective.

    Args:
      name: the comparison's name, for the error when a process does not take part.
      facts: values that must be equal on all processes, by their names for errors.

    Raises:
        UserError: a process differs; the message is the same on all of them.
    """
    everyone = peers.gather(name, dict(facts))
    problems = find_odd(everyone)
    if problems:
        raise UserError('; '.join(problems))
    return everyone


def find_odd(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns a line for each fact that differs, naming the processes that are in the minority."""
    lines = []
    for key in facts[0]:
        values = [each.get(key, 'none') for each in facts]
        if len(set(values)) == 1:
            continue
        # Ties go to the value of process 0, which is the one that writes.
        usual = collections.Counter(values).most_common(1)[0][0]
        odd = [f'{i} has {value}' for i, value in enumerate(values) if value != usual]
        lines.append(
            f'the processes differ in their {key}: process {", ".join(odd)} and the others have '
            f'{usual}; start all with the same code, versions, command and data'
        )
    return lines
