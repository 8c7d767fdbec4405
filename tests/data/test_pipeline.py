import collections
import itertools

import numpy as np
import pytest

from gpt_jax.data.mixture import Source
from gpt_jax.data.pipeline import eval_batches, make_train_pipeline
from gpt_jax.data.shards import Shards
from gpt_jax.data.skipped import parse_skip_steps
from gpt_jax.errors import UserError

SEQ_LEN = 8


def make_shards(num_tokens, *, first=0, documents=None, cuts=()):
    """Tokens that are their own positions, counted from `first`."""
    edges = [0, *cuts, num_tokens]
    offsets = None
    if documents is not None:
        starts = np.array(documents, np.int64)
        offsets = [
            starts[(starts >= low) & (starts < high)] - low
            for low, high in itertools.pairwise(edges)
        ]
    return Shards(
        np.split(np.arange(first, first + num_tokens, dtype=np.uint32), cuts),
        name='test',
        fingerprint=f'{first} {num_tokens}',
        count_bytes=lambda: 0,
        eot_id=2**31,
        offsets=offsets,
    )


def make(num_tokens=203, **settings):
    sources = settings.pop('sources', None) or [Source(make_shards(num_tokens, cuts=(70, 71)))]
    return make_train_pipeline(
        sources, **{'seq_len': SEQ_LEN, 'batch_size': 4, 'seed': 3, **settings}
    )


def take(pipeline, count, start=0):
    return list(itertools.islice(pipeline.batches(start), count))


def same(one, other):
    return all(
        left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)
        for left, right in zip(one, other, strict=True)
    )


def starts_of_epochs(pipeline, epochs):
    """The first token of every window, epoch by epoch, with batches of one window."""
    [per_epoch] = pipeline.windows_per_epoch
    starts = [int(pipeline.batch_at(i)['tokens'][0, 0]) for i in range(epochs * per_epoch)]
    return np.array(starts).reshape(epochs, per_epoch)


def test_a_batch_is_rows_of_consecutive_tokens():
    batch = make().batch_at(0)
    assert list(batch) == ['tokens']
    assert batch['tokens'].dtype == np.int32 and batch['tokens'].shape == (4, SEQ_LEN + 1)
    assert np.all(np.diff(batch['tokens']) == 1)


@pytest.mark.parametrize('num_threads', [0, 1, 3])
def test_the_batch_is_a_function_of_the_step(num_threads):
    pipeline = make(num_threads=num_threads)
    batches = take(pipeline, 40)
    assert same(batches, [pipeline.batch_at(step) for step in range(40)])
    for start in (1, 17, 39):
        assert same(take(make(num_threads=num_threads), 1, start), batches[start : start + 1])
    assert same(take(make(num_threads=num_threads), 20, 20), batches[20:])


def test_a_far_step_is_reached_at_once():
    far = 10**12 // SEQ_LEN
    assert same(take(make(), 2, far), [make().batch_at(far), make().batch_at(far + 1)])


@pytest.mark.parametrize('process_count', [1, 2, 4])
@pytest.mark.parametrize('mixed', [False, True])
def test_processes_share_the_global_batch(process_count, mixed):
    sources = [Source(make_shards(90)), Source(make_shards(50, first=1000), 0.3)]
    settings = {'sources': sources[: 1 + mixed], 'segment_ids': True}
    whole = take(make(**settings), 25)
    parts = [
        take(make(process_index=i, process_count=process_count, **settings), 25)
        for i in range(process_count)
    ]
    joined = [
        {key: np.concatenate([rows[key] for rows in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert same(joined, whole)


@pytest.mark.parametrize('num_tokens', [9, 10, 16, 17, 18, 24, 25, 26, 203])
def test_every_token_is_predicted_in_every_epoch(num_tokens):
    pipeline = make(num_tokens, batch_size=1, sources=[Source(make_shards(num_tokens))])
    [per_epoch] = pipeline.windows_per_epoch
    assert (per_epoch - 1) * SEQ_LEN < num_tokens - 1 + SEQ_LEN  # no more than needed
    for epoch in range(12):
        counts = collections.Counter()
        for i in range(per_epoch):
            window = pipeline.batch_at(epoch * per_epoch + i)['tokens'][0]
            assert np.array_equal(window, np.arange(window[0], window[0] + SEQ_LEN + 1))
            counts.update(window[1:].tolist())
        assert sorted(counts) == list(range(1, num_tokens))
        # Only the windows at the two ends may overlap their neighbours.
        assert sum(count > 1 for count in counts.values()) < 2 * SEQ_LEN


def test_epochs_differ_in_order_and_phase():
    starts = starts_of_epochs(make(batch_size=1), 20)
    inner = [set(epoch[(epoch > 0) & (epoch < 203 - 1 - SEQ_LEN)] % SEQ_LEN) for epoch in starts]
    assert all(len(phases) == 1 for phases in inner)
    assert len(set.union(*inner)) >= 5  # of 8 phases in 20 epochs
    orders = {tuple(np.argsort(epoch, kind='stable')) for epoch in starts}
    assert len(orders) == 20
    assert np.abs(np.diff(starts[0])).mean() > 2 * SEQ_LEN  # not in the order of the text


def test_the_seed_decides():
    batches = take(make(), 30)
    assert same(batches, take(make(), 30))
    other = take(make(seed=4), 30)
    assert not any(same([left], [right]) for left, right in zip(batches, other, strict=True))
    make(seed=-1).batch_at(0)
    make(seed=2**40).batch_at(0)


def test_a_mixture_has_its_proportions_and_shuffles_each_source():
    sources = [Source(make_shards(203), 0.7), Source(make_shards(99, first=1000), 0.3)]
    rows = np.concatenate([batch['tokens'] for batch in take(make(sources=sources), 250)])
    assert (rows[:, 0] >= 1000).sum() == 300
    assert np.all(np.diff(rows) == 1)
    small = rows[rows[:, 0] >= 1000]
    assert set(small[:14, 1:].flat) == set(range(1001, 1099))  # its first epoch: 14 windows
    alone = take(make(batch_size=1, sources=sources[:1]), 20)
    large = rows[rows[:, 0] < 1000]
    assert np.array_equal(large[:20], np.concatenate([batch['tokens'] for batch in alone]))


def test_the_same_data_twice_is_not_the_same_windows():
    sources = [Source(make_shards(203)), Source(make_shards(203))]
    rows = np.concatenate([batch['tokens'] for batch in take(make(sources=sources), 10)])
    assert not np.array_equal(rows[0::2], rows[1::2])


def test_segment_ids_number_the_documents_of_a_window():
    documents = [0, 5, 6, 40, 80, 81, 150]
    shards = make_shards(203, documents=documents, cuts=(5, 100))
    number = np.searchsorted(documents, np.arange(203), 'right')
    for batch in take(make(sources=[Source(shards)], segment_ids=True), 20):
        tokens, segments = batch['tokens'], batch['segment_ids']
        assert segments.dtype == np.int32 and segments.shape == tokens.shape
        assert np.array_equal(segments, number[tokens] - number[tokens[:, :1]] + 1)


def test_identity_changes_with_all_that_changes_the_batches():
    base = {'sources': [Source(make_shards(99), 1.0)]}
    variants = [
        {},
        {'seed': 4},
        {'batch_size': 8},
        {'seq_len': 16},
        {'segment_ids': True},
        {'sources': [Source(make_shards(100), 1.0)]},
        {'sources': [Source(make_shards(99), 1.0), Source(make_shards(99), 1.0)]},
        {'sources': [Source(make_shards(99), 1.0), Source(make_shards(99), 2.0)]},
    ]
    assert len({make(**{**base, **variant}).fingerprint for variant in variants}) == len(variants)
    first = make(**base, process_index=0, process_count=2, num_threads=0)
    assert first.fingerprint == make(**base, process_index=1, process_count=2).fingerprint
    assert first.identity['seq_len'] == SEQ_LEN


def test_windows_per_epoch():
    halves = [Source(make_shards(201), 0.5), Source(make_shards(99), 0.5)]
    assert make(sources=halves).windows_per_epoch == [26, 14]


@pytest.mark.parametrize('num_tokens', [0, 1, SEQ_LEN])
def test_a_corpus_shorter_than_one_window_names_the_keys(num_tokens):
    message = f'has {num_tokens} tokens, .*window of 9; .*config.model.max_seq_len.*config.data'
    with pytest.raises(UserError, match=message):
        make(sources=[Source(make_shards(num_tokens))])


@pytest.mark.parametrize(('batch_size', 'process_count'), [(4, 3), (0, 1), (2, 4)])
def test_processes_must_divide_the_batch(batch_size, process_count):
    with pytest.raises(UserError, match='config.train.batch_size'):
        make(batch_size=batch_size, process_count=process_count)
    with pytest.raises(UserError, match='config.eval.batch_size'):
        eval_batches(make_shards(99), seq_len=8, batch_size=batch_size, process_count=process_count)


@pytest.mark.parametrize('num_tokens', [2, 8, 9, 10, 17, 32, 33, 34, 203])
@pytest.mark.parametrize('batch_size', [1, 4])
def test_evaluation_predicts_every_token_once(num_tokens, batch_size):
    shards = make_shards(num_tokens)
    batches = list(eval_batches(shards, seq_len=SEQ_LEN, batch_size=batch_size))
    assert len(batches) == -(-(num_tokens - 1) // (SEQ_LEN * batch_size))
    targets = []
    for batch in batches:
        assert batch['tokens'].shape == (batch_size, SEQ_LEN + 1)
        assert batch['tokens'].dtype == np.int32 and batch['loss_mask'].dtype == np.float32
        inputs, outputs = batch['tokens'][:, :-1], batch['tokens'][:, 1:]
        mask = batch['loss_mask'] == 1
        assert np.array_equal(outputs[mask], inputs[mask] + 1)
        assert not outputs[~mask].any()
        targets += outputs[mask].tolist()
    assert targets == list(range(1, num_tokens))


def test_evaluation_rows_are_shared_by_processes():
    shards = make_shards(203, documents=[0, 50])
    settings = {'seq_len': SEQ_LEN, 'batch_size': 4, 'segment_ids': True}
    whole = list(eval_batches(shards, **settings))
    parts = [
        list(eval_batches(shards, **settings, process_index=i, process_count=2)) for i in range(2)
    ]
    joined = [
        {key: np.concatenate([one[key], two[key]]) for key in one}
        for one, two in zip(*parts, strict=True)
    ]
    assert same(joined, whole)
    last = whole[-1]
    assert np.array_equal(last['segment_ids'] > 0, (last['tokens'] > 0))


def test_a_limited_evaluation_is_spread_over_the_split():
    shards = make_shards(1001)  # 125 windows
    batches = list(eval_batches(shards, seq_len=SEQ_LEN, batch_size=5, limit=2))
    assert len(batches) == 2
    starts = np.concatenate([batch['tokens'][:, 0] for batch in batches])
    assert np.array_equal(starts, np.array([0, 12, 25, 37, 50, 62, 75, 87, 100, 112]) * SEQ_LEN)
    every = list(eval_batches(shards, seq_len=SEQ_LEN, batch_size=5, limit=10**6))
    assert same(every, list(eval_batches(shards, seq_len=SEQ_LEN, batch_size=5)))


def test_a_split_with_nothing_to_predict_is_refused():
    with pytest.raises(UserError, match='none to predict.*config.data.split'):
        eval_batches(make_shards(1), seq_len=SEQ_LEN, batch_size=1)


def test_places_say_where_the_rows_lie():
    sources = [
        Source(make_shards(203, documents=[0, 5, 90])),
        Source(make_shards(91, first=1000), 0.5),
    ]
    pipeline = make(sources=sources, segment_ids=True)
    for step in (0, 7, 10**9):
        batch, places = pipeline.batch_at(step), pipeline.places_at(step)
        first = places['start'] + 1000 * places['source']
        assert np.array_equal(first, batch['tokens'][:, 0])
        assert np.array_equal(places['documents'], batch['segment_ids'])
    assert {0, 1} == set(places['source'].tolist())


def test_batches_are_left_out():
    """For every share of the rows, and read ahead from any step."""
    order = parse_skip_steps(['2-3', '5'])
    numbers = [1, 4, 6, 7, 8, 9]
    for settings in ({}, {'process_index': 1, 'process_count': 2, 'num_threads': 2}):
        whole, left_out = make(**settings), make(**settings, order=order)
        expected = [whole.batch_at(number - 1) for number in numbers]
        assert same(take(left_out, 6), expected)
        assert same(take(left_out, 4, start=2), expected[2:])
        assert left_out.places_at(1)['start'].tolist() == whole.places_at(3)['start'].tolist()
