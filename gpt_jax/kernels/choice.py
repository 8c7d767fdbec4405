"""The choice of a kernel: the one that the config names, or the first that can run."""

from collections.abc import Callable, Iterable, Mapping

from gpt_jax.errors import UserError

AUTO, PLAIN = 'auto', 'xla'  # XLA compiles the plain version


def choose(key: str, asked: str, names: Iterable[str], obstacle: Callable[[str], str]) -> str:
    """Returns `asked`, or for 'auto' the first of `names` without an obstacle.

    Args:
      key: the config's key, for errors.
      asked: the value of the key.
      names: kernels in the order of preference; the last one always runs.
      obstacle: returns the reason why a kernel cannot run, or ''.

    Raises:
        UserError: the kernel was requested by name and cannot run.
    """
    for name in names if asked == AUTO else [asked]:
        reason = obstacle(name)
        if not reason:
            return name
    raise UserError(f'{key}={asked} cannot run: {reason}; change that or set {key}=auto')


def first_obstacle(obstacles: Mapping[str, bool]) -> str:
    """Returns the first reason that is present, or ''."""
    return next((reason for reason, present in obstacles.items() if present), '')
