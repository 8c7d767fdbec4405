"""A replayed batch on the terminal."""

import io

import numpy as np
from rich.console import Console

from gpt_jax.inspector.replay import Replay
from gpt_jax.inspector.replay_terminal import print_replay


def test_a_rule_lies_between_documents_and_nothing_moves_the_cursor():
    result = Replay(
        step=1,
        sources=('books', 'chats'),
        texts={0: 'a b', 1: '\n', 2: '\x1b[31m', 3: ''},
        tokens=np.array([[0, 1, 2], [0, 3, 0], [0, 0, 0]]),
        loss=np.array([[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan]]),
        source=np.array([0, 1, 1]),
        start=np.array([10, 2000, 0]),
        documents=np.array([[1, 1, 1], [1, 2, 2], [1, 1, 1]]),
    )
    assert result.mean == 2
    file = io.StringIO()
    print_replay(result, limit=3, console=Console(file=file, width=80))
    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        *('', 'sequence 1: loss 3.000, tokens 2,000 to 2,002 of chats, 2 documents'),
        *('a b', '---', '∅a b', 'largest: ∅ 3.00 (at 1)'),
        *('', 'sequence 0: loss 1.500, tokens 10 to 12 of books'),
        *('a b↵', '\\u001b[31m', 'largest: \\u001b[31m 2.00 (at 2),  ↵ 1.00 (at 1)'),
        *('', 'sequence 2: loss nan, tokens 0 to 2 of chats'),
        *('a ba ba b', 'no token of this sequence is learned'),
    ]
