"""Measures how fast one process reads training batches from shards.

    python benchmarks/data_pipeline.py [--seq_len 1024] [--batch_size 32] [--seconds 3]

Prints tokens/s for one source, for a mixture of two, and with segment ids, each with and without
a thread that reads ahead. 20 M tokens/s at 1024 is the least to expect; a GPU that trains a model
of 124M parameters takes 0.5 M.
"""

import argparse
import itertools
import pathlib
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from gpt_jax.data.mixture import Source
from gpt_jax.data.pipeline import make_train_pipeline
from gpt_jax.data.shard_writer import ShardWriter
from gpt_jax.data.shards import Shards

EOT_ID = 50256
DOCUMENT_TOKENS = 700
SHARD_TOKENS = 2**25


def write_shards(folder: pathlib.Path, num_tokens: int) -> Shards:
    """Random tokens in documents, written and opened as `prepare` does it."""
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, 'train', dtype='<u2', eot_id=EOT_ID, shard_tokens=SHARD_TOKENS)
    random = np.random.default_rng(0)
    for ids in np.split(random.integers(0, EOT_ID, num_tokens), num_tokens // DOCUMENT_TOKENS):
        writer.add(ids, starts_document=True, num_bytes=4 * len(ids))
    shards = writer.finish().shards
    return Shards(
        [np.memmap(shard.tokens_path(folder), '<u2', 'r').view(np.ndarray) for shard in shards],
        name=str(folder),
        fingerprint='',
        count_bytes=lambda: 4 * num_tokens,
        eot_id=EOT_ID,
        offsets=[np.fromfile(shard.documents_path(folder), '<i8') for shard in shards],
    )


def measure(sources: list[Source], *, seconds: float, **settings) -> float:
    """Tokens a second."""
    batches = make_train_pipeline(sources, seed=0, **settings).batches()
    rows = len(list(itertools.islice(batches, 8))[-1]['tokens'])  # warm up
    count, begin = 0, time.perf_counter()
    while (taken := time.perf_counter() - begin) < seconds:
        next(batches)
        count += 1
    batches.close()
    return count * rows * settings['seq_len'] / taken


def main() -> None:
    """Prints one line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seq_len', type=int, default=1024)
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--seconds', type=float, default=3.0)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(pathlib.Path(folder) / 'data', DOCUMENT_TOKENS * 100_000)
        one, two = [Source(shards)], [Source(shards, 0.7), Source(shards, 0.3)]
        for name, sources, segment_ids in (
            ('one source', one, False),
            ('mixture of two', two, False),
            ('segment ids', one, True),
        ):
            for num_threads in (1, 0):
                speed = measure(
                    sources,
                    seconds=flags.seconds,
                    seq_len=flags.seq_len,
                    batch_size=flags.batch_size,
                    segment_ids=segment_ids,
                    num_threads=num_threads,
                )
                print(f'{name:16} threads {num_threads}  {speed / 1e6:6.1f} M tokens/s', flush=True)


if __name__ == '__main__':
    main()
