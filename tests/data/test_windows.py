"""Windows of documents: each is one document from its start, in training and in evaluation."""

import itertools

import numpy as np
import pytest

from gpt_jax.data.config import Windows
from gpt_jax.data.mixture import Source
from gpt_jax.data.pipeline import eval_batches, make_train_pipeline
from gpt_jax.data.shards import Shards
from gpt_jax.data.skipped import parse_skip_steps
from gpt_jax.data.windows import tokens_of_epoch
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind

SEQ_LEN, END = 6, 1000
SIZES = (3, 8, 2, 6, 7, 3, 5, 8, 4, 6, 3)  # tokens of documents, with the end of text before them
EDGES = [0, *itertools.accumulate(SIZES)]
DOCUMENTS = [(0, 3), *((start + 1, stop) for start, stop in itertools.pairwise(EDGES[1:]))]


def make_shards(*, offsets=True, cuts=(11, 30), sizes=SIZES):
    """Tokens that are their own positions, but for the one between documents."""
    edges = [0, *itertools.accumulate(sizes)]
    tokens = np.arange(edges[-1], dtype=np.uint32)
    tokens[edges[1:-1]] = END
    bounds = [0, *cuts, edges[-1]]
    starts = np.array(edges[:-1])
    return Shards(
        np.split(tokens, cuts),
        name='test',
        fingerprint='test',
        count_bytes=lambda: 0,
        eot_id=END,
        offsets=[
            starts[(starts >= low) & (starts < high)] - low
            for low, high in itertools.pairwise(bounds)
        ]
        if offsets
        else None,
    )


def make(**settings):
    sources = settings.pop('sources', None) or [Source(make_shards())]
    defaults = {'seq_len': SEQ_LEN, 'batch_size': 2, 'seed': 3, 'windows': Windows.DOCUMENTS}
    return make_train_pipeline(sources, **(defaults | settings))


def rows(pipeline, steps):
    """The rows of the batches of some steps, in order."""
    batches = [pipeline.batch_at(step) for step in steps]
    return [
        {name: array[row] for name, array in batch.items()}
        for batch in batches
        for row in range(len(batch['tokens']))
    ]


def check_row(row, start, stop):
    """A document, the end of text after it if there is room, and padding, which is not learned."""
    size = min(stop + 1, EDGES[-1], start + SEQ_LEN + 1) - start
    expected = make_shards().read(start, start + size)
    assert row['tokens'].tolist() == [*expected, *[0] * (SEQ_LEN + 1 - size)]
    assert row['loss_mask'].tolist() == [1.0] * (size - 1) + [0.0] * (SEQ_LEN + 1 - size)


@pytest.mark.parametrize('offsets', [True, False], ids=['prepared', 'found by the end of text'])
def test_documents_are_known_by_their_bounds(offsets):
    assert [*map(tuple, make_shards(offsets=offsets).documents.tolist())] == DOCUMENTS


def test_a_split_may_begin_with_the_end_of_text():
    """As in files of llm.c."""
    tokens = np.array([END, 1, 2, END, 3, END], np.uint32)
    shards = Shards.from_tokens(tokens, name='test', num_bytes=0, eot_id=END)
    assert shards.documents.tolist() == [[1, 3], [4, 5], [6, 6]]
    assert make(sources=[Source(shards)]).windows_per_epoch == [2]


def test_an_epoch_has_each_document_once_in_an_order_of_its_own():
    pipeline = make(batch_size=1)
    [per_epoch] = pipeline.windows_per_epoch
    assert per_epoch == len(SIZES)
    orders = []
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        starts = [int(pipeline.places_at(step)['start'][0]) for step in steps]
        for row, start in zip(rows(pipeline, steps), starts, strict=True):
            check_row(row, start, dict(DOCUMENTS)[start])
        assert sorted(starts) == [start for start, _ in DOCUMENTS]
        orders.append(starts)
    assert orders[0] != orders[1] != orders[2]


def test_a_batch_is_a_function_of_the_seed_and_the_step():
    batches = list(itertools.islice(make(num_threads=2).batches(5), 4))
    for step, batch in enumerate(batches, start=5):
        other = make().batch_at(step)
        assert batch.keys() == other.keys()
        assert all(np.array_equal(batch[name], other[name]) for name in batch)
    assert not np.array_equal(make(seed=4).batch_at(5)['tokens'], batches[0]['tokens'])


def test_rows_of_processes_and_skipped_batches():
    whole = make(batch_size=4).batch_at(3)['tokens']
    parts = [
        make(batch_size=4, process_index=i, process_count=2).batch_at(3)['tokens'] for i in (0, 1)
    ]
    assert np.array_equal(np.concatenate(parts), whole)
    skipping = make(batch_size=4, order=parse_skip_steps(('2-3',)))
    assert np.array_equal(skipping.batch_at(1)['tokens'], whole)
    assert (
        skipping.places_at(1)['start'].tolist() == make(batch_size=4).places_at(3)['start'].tolist()
    )


def test_places_and_segments_end_at_the_padding():
    pipeline = make(segment_ids=True, batch_size=1)
    for step in range(len(SIZES)):
        batch, places = pipeline.batch_at(step), pipeline.places_at(step)
        assert np.array_equal(batch['segment_ids'], places['documents'])
        size = 1 + int(batch['loss_mask'].sum())
        assert places['documents'][0, :size].min() == 1
        assert not places['documents'][0, size:].any()


@pytest.mark.parametrize('batch_size', [1, 4, 16])
def test_evaluation_reads_every_document_once_in_order(batch_size):
    settings = {'seq_len': SEQ_LEN, 'batch_size': batch_size, 'windows': Windows.DOCUMENTS}
    found = [
        {name: array[row] for name, array in batch.items()}
        for batch in eval_batches(make_shards(), **settings)
        for row in range(batch_size)
    ]
    for row, (start, stop) in zip(found, DOCUMENTS, strict=False):
        check_row(row, start, stop)
    assert not any(row['loss_mask'].any() for row in found[len(SIZES) :])
    limited = list(eval_batches(make_shards(), limit=1, **settings))
    assert len(limited) == 1


def test_the_identity_of_continuous_windows_is_as_before():
    assert 'windows' not in make(windows=Windows.CONTINUOUS).identity
    assert make().identity['windows'] == 'documents'


def test_a_document_that_does_not_fit_is_refused():
    for read in (
        lambda: make(seq_len=5),
        lambda: eval_batches(make_shards(), seq_len=5, batch_size=1, windows=Windows.DOCUMENTS),
    ):
        with pytest.raises(
            UserError, match=r'config\.model\.max_seq_len=6 or config\.data'
        ) as error:
            read()
        assert '\n' not in str(error.value)


def test_documents_of_one_token_without_an_end_are_left_out():
    assert make(sources=[Source(make_shards(sizes=(3, 2), cuts=()))]).windows_per_epoch == [1]
    with pytest.raises(UserError, match='none to predict'):
        make(sources=[Source(make_shards(sizes=(1,), cuts=()))])


def test_an_epoch_counts_padding():
    assert tokens_of_epoch(Windows.DOCUMENTS, make_shards(), seq_len=SEQ_LEN) == 11 * SEQ_LEN
    assert tokens_of_epoch(Windows.CONTINUOUS, make_shards(), seq_len=SEQ_LEN) == EDGES[-1]


def test_conversations_keep_what_is_learned(prepare_into):
    symbol = TokenizerConfig(kind=TokenizerKind.SYMBOL)
    folder = prepare_into(symbol, corpus='modular', modulus=5, split='hash:0.5')
    shards = Shards.open(folder, 'train')
    for row in rows(make(sources=[Source(shards)], seq_len=4), range(4)):
        assert row['loss_mask'].sum() == 1
