"""The batch of one training step, and the loss of each of its tokens, as text and as a page."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpt_jax import page
from gpt_jax.data.pipeline import TrainPipeline
from gpt_jax.inspector.inspection import NamedArray
from gpt_jax.inspector.inspector import token_texts
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.train.program import Program

FOLDER = pathlib.Path(__file__).parent / 'replay_page'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """The batch of one training step, with the losses of its tokens by some weights."""

    step: int
    sources: tuple[str, ...]  # names of what the rows come from
    texts: dict[int, str]  # of the tokens in the batch, by id
    tokens: np.ndarray  # [B, L+1]
    loss: np.ndarray  # [B, L], in nats; NaN where the target does not count in training
    source: np.ndarray  # [B], indices of `sources`
    start: np.ndarray  # [B], the position of the first token in its source
    documents: np.ndarray  # [B, L+1], counted from 1 in each row; 0 on padding

    @property
    def mean(self) -> float:
        """The loss of the batch; NaN if none of its tokens counts."""
        counted = self.loss[np.isfinite(self.loss)]
        return float(counted.mean()) if counted.size else np.nan

    @property
    def row_means(self) -> np.ndarray:
        """The loss of each row [B]; NaN where none of its tokens counts."""
        counts = np.isfinite(self.loss).sum(1)
        return np.where(counts, np.nansum(self.loss, 1) / np.maximum(counts, 1), np.nan)

    @property
    def worst_rows(self) -> list[int]:
        """The rows by their loss, the largest first, then those of which no token counts."""
        return np.argsort(-np.nan_to_num(self.row_means, nan=-1.0), kind='stable').tolist()

    def place(self, row: int) -> str:
        """Returns where a row lies in the data, with its source if there are several."""
        first = self.start[row]
        last = first + np.count_nonzero(self.documents[row]) - 1
        where = f'tokens {first:,} to {last:,}'
        several = len(self.sources) > 1
        return f'{where} of {self.sources[self.source[row]]}' if several else where

    def save(self, path: str | os.PathLike, *, title: str, facts: dict[str, str]) -> int:
        """Writes the page, an HTML file that needs no other; returns its size in bytes.

        Raises:
            UserError: the file cannot be written.
        """
        by_token = ('sequence', 'position')
        data = {
            'title': title,
            'facts': [*facts.items()],
            'texts': self.texts,
            'places': [self.place(row) for row in range(len(self.tokens))],
            'means': [*self.row_means],
            'order': self.worst_rows,
            'tokens': NamedArray(self.tokens, by_token),
            'loss': NamedArray(self.loss, by_token),
            'documents': NamedArray(self.documents, by_token),
        }
        return page.save(page.assemble(FOLDER, data, title=title), path)


def replay(
    program: Program,
    params: Any,
    pipeline: TrainPipeline,
    tokenizer: Tokenizer,
    *,
    step: int,
    sources: Sequence[str],
    rows_per_call: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> Replay:
    """Computes the loss of each token in the batch of a step, as the step did but without dropout.

    Args:
      program: of the run.
      params: the weights.
      pipeline: of whole batches, also where several processes share the work.
      tokenizer: of the run.
      step: counted from 1, as in the rows of metrics.
      sources: a name for each source of the pipeline.
      rows_per_call: rows that the devices take at once.
      advance: is called with the number of finished rows.
    """
    batch, places = pipeline.batch_at(step - 1), pipeline.places_at(step - 1)
    losses = []
    for first in range(0, len(batch['tokens']), rows_per_call):
        piece = {name: rows[first : first + rows_per_call] for name, rows in batch.items()}
        count = len(piece['tokens'])
        losses.append(np.asarray(_losses(program, params, piece, rows_per_call))[:count])
        advance(first + count)
    loss = np.concatenate(losses).astype(np.float32)
    ids = np.unique(batch['tokens']).tolist()
    texts = dict(zip(ids, token_texts(tokenizer, ids), strict=True))
    special = {number: name for name, number in tokenizer.special_tokens.items()}
    return Replay(
        step=step,
        sources=tuple(sources),
        texts={each: special.get(each, text) for each, text in texts.items()},
        tokens=batch['tokens'],
        loss=np.where(batch.get('loss_mask', np.ones(loss.shape)) > 0, loss, np.nan),
        source=np.asarray(places['source']),
        start=np.asarray(places['start']),
        documents=places['documents'],
    )


def _losses(program: Program, params: Any, piece: dict[str, np.ndarray], rows: int) -> Any:
    """Returns the losses of up to `rows` rows; the call always has `rows`, to compile once."""
    index, count = program.row_share
    mine = slice(index * rows // count, (index + 1) * rows // count)
    padded = {
        name: np.pad(array, [(0, rows - len(array)), (0, 0)], mode='edge')[mine]
        for name, array in piece.items()
        if name != 'loss_mask'
    }
    return program.token_step(params, program.place(padded))
