"""Batches of windows: the batch at step t is a pure function of (seed, t, skipped) and the data.

Training reads windows of seq_len + 1 tokens: stretches of the text, which each epoch cuts at a new
random phase, or documents (`gpt_jax.data.windows`). Each epoch shuffles them. The window at index
i, the batch at step t and the rows of one process are each computed by a formula. So seeking costs
nothing, and the global batch is the same for any number of processes and threads.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpt_jax.data.config import Windows
from gpt_jax.data.mixture import ENDLESS, Selection, Source
from gpt_jax.data.shard_manifest import hash_of
from gpt_jax.data.shards import Shards
from gpt_jax.data.skipped import NOTHING_SKIPPED, BatchOrder
from gpt_jax.data.windows import Spans, evaluation_spans, pad, read_window, training_spans
from gpt_jax.errors import UserError

Batch = dict[str, np.ndarray]


class TrainPipeline:
    """The rows of this process of every training batch; see `make_train_pipeline`.

    Attributes:
      identity: everything that determines the batches, as JSON; compare it when resuming.
      order: decides which of them each step takes.
      windows_per_epoch: one number per source.
    """

    def __init__(
        self,
        dataset: Any,
        places: Any,
        *,
        identity: dict[str, Any],
        order: BatchOrder,
        windows_per_epoch: list[int],
        num_threads: int,
        prefetch_batches: int,
    ):
        self._dataset, self._places = dataset, places  # grain.MapDatasets, by step
        self._num_threads, self._prefetch_batches = num_threads, prefetch_batches
        self.identity, self.order = identity, order
        self.windows_per_epoch = windows_per_epoch

    def batch_at(self, step: int) -> Batch:
        """Returns the batch of one step: int32 tokens [rows, seq_len + 1], and segment_ids if on.

        If windows are documents, or a source has tokens that are not learned, also float32
        loss_mask [rows, seq_len], which is 0 where padding or such a token is the target.
        """
        return self._dataset[step]

    def places_at(self, step: int) -> Batch:
        """Returns where the rows of `batch_at(step)` lie in the text.

        Each row has the number of its `source`, the position of its first token there (`start`),
        and the document of each token, counted from 1, 0 on padding (`documents` [rows,
        seq_len + 1]).
        """
        return self._places[step]

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of start_step, start_step + 1, … endlessly; threads read ahead."""
        import grain

        options = grain.ReadOptions(
            num_threads=self._num_threads,
            prefetch_buffer_size=max(self._prefetch_batches, self._num_threads),
        )
        return iter(self._dataset.slice(slice(start_step, None)).to_iter_dataset(options))

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of `identity`."""
        return hash_of(self.identity)


def make_train_pipeline(
    sources: Sequence[Source],
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    windows: Windows = Windows.CONTINUOUS,
    process_index: int = 0,
    process_count: int = 1,
    segment_ids: bool = False,
    order: BatchOrder = NOTHING_SKIPPED,
    num_threads: int = 1,
    prefetch_batches: int = 4,
) -> TrainPipeline:
    """Builds the endless stream of training batches.

    Args:
      sources: the corpora and their weights.
      seq_len: predicted tokens in a window; a window has one more.
      batch_size: windows in a global batch.
      seed: determines the order and the phases.
      windows: their kind.
      process_index: selects the rows [index, index + 1) * batch_size / count.
      process_count: processes that share a global batch.
      segment_ids: also return the document of every token, counted from 1 in each window.
      order: leaves some batches out.
      num_threads: threads that read ahead; 0: no reading ahead.
      prefetch_batches: number of batches to read ahead.

    Raises:
        UserError: a source is shorter than one window, a document is longer, or the processes do
            not divide the batch.
    """
    import grain

    if batch_size <= 0 or batch_size % process_count:
        raise UserError(
            f'config.train.batch_size={batch_size} must be a positive multiple of the '
            f'{process_count} processes'
        )
    loss_mask = windows == Windows.DOCUMENTS or not all(
        source.shards.all_learned for source in sources
    )
    by_source = [
        _SourceWindows(
            source.shards,
            windows=windows,
            seq_len=seq_len,
            seed=seed,
            number=number,
            segment_ids=segment_ids,
            loss_mask=loss_mask,
        )
        for number, source in enumerate(sources)
    ]
    weights = [source.weight for source in sources]

    def by_step(functions: Sequence[Callable[[int, int], Batch]]) -> Any:
        """Returns the dataset of batches whose rows a function of each source reads."""
        datasets = [
            grain.MapDataset.range(each.per_epoch)
            .shuffle(seed=each.shuffle_seed)
            .repeat(ENDLESS // each.per_epoch)
            .map_with_index(read)
            for each, read in zip(by_source, functions, strict=True)
        ]
        dataset = datasets[0]
        if len(datasets) > 1:
            dataset = grain.MapDataset.select_from_datasets(datasets, Selection(weights))
        rows = dataset.batch(batch_size // process_count)
        rows = rows.slice(slice(process_index, None, process_count))
        return grain.MapDataset.select_from_datasets([rows], order) if order.skipped else rows

    return TrainPipeline(
        by_step([each.read for each in by_source]),
        by_step([each.place for each in by_source]),
        identity={
            'sources': [
                {'fingerprint': source.shards.fingerprint, 'weight': source.weight}
                for source in sources
            ],
            'seq_len': seq_len,
            'batch_size': batch_size,
            'seed': seed,
            'segment_ids': segment_ids,
            # Runs from before there were others have no such key.
            **({} if windows == Windows.CONTINUOUS else {'windows': str(windows)}),
        },
        order=order,
        windows_per_epoch=[each.per_epoch for each in by_source],
        num_threads=num_threads,
        prefetch_batches=prefetch_batches,
    )


class _SourceWindows:
    """The windows of one source, by their number in an epoch."""

    def __init__(
        self,
        shards: Shards,
        *,
        windows: Windows,
        seq_len: int,
        seed: int,
        number: int,
        segment_ids: bool,
        loss_mask: bool,
    ):
        entropy = (seed % 2**64, number)
        self._spans = training_spans(windows, shards, seq_len=seq_len, entropy=entropy)
        self._shards, self._seq_len, self._number = shards, seq_len, number
        self._segment_ids, self._loss_mask = segment_ids, loss_mask
        self.per_epoch = self._spans.count
        self.shuffle_seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def read(self, index: int, window: int) -> Batch:
        """Reads window number `window` of the epoch that contains `index`."""
        return read_window(
            self._shards,
            self._spans.span(window, index // self.per_epoch),
            seq_len=self._seq_len,
            segment_ids=self._segment_ids,
            loss_mask=self._loss_mask,
        )

    def place(self, index: int, window: int) -> Batch:
        """Returns where `read(index, window)` reads; see `TrainPipeline.places_at`."""
        start, stop = self._spans.span(window, index // self.per_epoch)
        documents = self._shards.segment_ids(start, stop)
        documents = pad(documents, self._seq_len + 1 - len(documents))
        return {'source': self._number, 'start': start, 'documents': documents}


def eval_batches(
    shards: Shards,
    *,
    seq_len: int,
    batch_size: int,
    windows: Windows = Windows.CONTINUOUS,
    limit: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    segment_ids: bool = False,
) -> Iterator[Batch]:
    """Yields the windows of a split in order; no token is predicted twice.

    Args:
      shards: the split.
      seq_len: predicted tokens in a window.
      batch_size: windows in a global batch; the last batch is padded with empty windows.
      windows: their kind.
      limit: the largest number of batches, 0 for all; the windows are spread evenly over the split.
      process_index: selects the rows, as in `make_train_pipeline`.
      process_count: processes that share a global batch.
      segment_ids: also return the document of every token, 0 on padding.

    Returns:
      Batches of int32 tokens [rows, seq_len + 1] and float32 loss_mask [rows, seq_len], which is 0
      where the target is padding or not learned. If windows are continuous, without a limit and
      with all tokens learned, bits per byte are nll / ln 2 / shards.num_bytes, where nll is the
      negative log-likelihood in nats summed over the mask.

    Raises:
        UserError: the split has no token to predict, a document is longer than a window, or the
            processes do not divide the batch.
    """
    if batch_size <= 0 or batch_size % process_count:
        raise UserError(
            f'config.eval.batch_size={batch_size} must be a positive multiple of the '
            f'{process_count} processes'
        )
    rows = batch_size // process_count
    return _eval_batches(
        shards,
        evaluation_spans(windows, shards, seq_len=seq_len),
        seq_len=seq_len,
        batch_size=batch_size,
        limit=limit,
        rows=range(process_index * rows, (process_index + 1) * rows),
        segment_ids=segment_ids,
    )


def _eval_batches(
    shards: Shards,
    spans: Spans,
    *,
    seq_len: int,
    batch_size: int,
    limit: int,
    rows: range,
    segment_ids: bool,
) -> Iterator[Batch]:
    chosen = min(spans.count, limit * batch_size) if limit else spans.count
    for first in range(0, chosen, batch_size):
        batch = {
            'tokens': np.zeros((len(rows), seq_len + 1), np.int32),
            'loss_mask': np.zeros((len(rows), seq_len), np.float32),
        }
        if segment_ids:
            batch['segment_ids'] = np.zeros((len(rows), seq_len + 1), np.int32)
        for i, row in enumerate(rows):
            if first + row >= chosen:
                break
            span = spans.span((first + row) * spans.count // chosen, 0)
            window = read_window(
                shards, span, seq_len=seq_len, segment_ids=segment_ids, loss_mask=True
            )
            for name, array in window.items():
                batch[name][i] = array
        yield batch
