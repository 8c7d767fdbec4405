"""A replayed batch on the terminal: texts coloured by the loss of their tokens, worst first."""

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.text import Text

from gpt_jax.inspector.replay import Replay
from gpt_jax.inspector.terminal import shade, visible

LISTED = 6  # tokens named below a text


def print_replay(result: Replay, *, limit: int, console: Console | None = None) -> None:
    """Prints the `limit` sequences with the largest losses to standard output."""
    console = console or Console(highlight=False)
    worst_loss = np.nanmax(result.loss, initial=1e-9)
    for row in result.worst_rows[:limit]:
        console.print()
        documents = int(result.documents[row].max())
        title = f'sequence {row}: loss {result.row_means[row]:.3f}, {result.place(row)}'
        console.print(Text(title + (f', {documents} documents' if documents > 1 else ''), 'bold'))
        console.print(_coloured(result, row, worst_loss))
        console.print(Text(_worst_tokens(result, row), 'dim'))


def _coloured(result: Replay, row: int, worst_loss: float) -> Text:
    """Returns a sequence as text, each token on a shade for its loss; a rule between documents."""
    line = Text()
    losses = [None, *result.loss[row]]
    for position, (token, loss) in enumerate(zip(result.tokens[row], losses, strict=True)):
        if not result.documents[row, position]:
            break  # padding
        if position and result.documents[row, position] != result.documents[row, position - 1]:
            line.append('\n---\n', 'dim')
        text = result.texts[int(token)]
        shown = ''.join('↵\n' if each == '\n' else _shown(each) for each in text) or '∅'
        line.append(shown, Style() if loss is None else shade(loss / worst_loss))
    return line


def _shown(letter: str) -> str:
    return letter if letter == ' ' else visible(letter)


def _worst_tokens(result: Replay, row: int) -> str:
    """Returns the tokens with the largest losses, for terminals without colours."""
    losses = np.nan_to_num(result.loss[row], nan=-1.0)
    order = [at for at in np.argsort(-losses, kind='stable')[:LISTED] if losses[at] >= 0]
    named = [
        f'{visible(result.texts[int(result.tokens[row, at + 1])])} {losses[at]:.2f} (at {at + 1})'
        for at in order
    ]
    return f'largest: {",  ".join(named)}' if named else 'no token of this sequence is learned'
