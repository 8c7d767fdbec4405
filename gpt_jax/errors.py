"""Errors that the user can fix."""


class UserError(Exception):
    """An error in the input. The message is one line: the key or file, and what to do.

    `gpt_jax.main` prints it without a traceback and exits with status 2; library callers
    catch it like any exception.
    """


class Diverged(UserError):
    """An error of training: the weights, or the loss of several steps, are not finite."""
