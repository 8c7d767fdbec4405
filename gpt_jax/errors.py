"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """An error in the input. The message is one line: the key or file, and what to do.

    `gpt_jax.main` prints it without a traceback and exits with status 2; library callers
    catch it like any exception.
    """
