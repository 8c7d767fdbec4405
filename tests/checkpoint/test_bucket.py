"""Checkpoints in an object store; what holds for every store of steps is in test_checkpoint.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gpt_jax import object_store
from gpt_jax.checkpoint import CheckpointConfig, Checkpointer, bucket
from gpt_jax.checkpoint.manifest import document_path
from gpt_jax.errors import UserError


@pytest.fixture
def folder(bucket):
    return object_store.to_path(f'{bucket}/run/checkpoints', key='--workdir')


@pytest.fixture
def one_folder(s3):
    return object_store.to_path(f'{s3}/run/checkpoints', key='--workdir')


def sharding(*axes, shape=(4, 2)):
    mesh = jax.make_mesh(shape, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec(*axes))


def make_items(seed: int) -> dict:
    weights = jax.random.normal(jax.random.key(seed), (16, 6))
    return {
        'params': {
            'half': jax.device_put(weights.astype(jnp.bfloat16), sharding('fsdp')),
            'whole': jax.device_put(weights, sharding()),
            'zero': jax.device_put(jnp.zeros((8, 4)), sharding('data', 'fsdp')),
        },
        'step': jnp.uint32(seed),
        'ema': None,
    }


def abstract(items, *axes):
    """The items, to be restored onto another mesh."""
    target = sharding(*axes, shape=(2, 4))

    def leaf(x):
        spec = target if x.ndim else NamedSharding(target.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec)

    return jax.tree.map(leaf, items)


def assert_equal(items, expected):
    assert jax.tree.structure(items) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(items), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(np.asarray(a), np.asarray(b))


def save(folder, *steps, **config) -> None:
    with Checkpointer(folder, CheckpointConfig(**config)) as checkpointer:
        for step in steps:
            assert checkpointer.save(step, make_items(step), {'at': step})


def restore(folder):
    lines = []
    with Checkpointer(folder, report=lines.append) as checkpointer:
        return checkpointer.restore(abstract(make_items(0), 'fsdp')), lines


def test_every_array_comes_back_on_another_mesh(folder):
    save(folder, 1, 2)
    restored, lines = restore(folder)
    assert (restored.step, restored.meta, lines) == (2, {'at': 2}, [])
    assert_equal(restored.items, make_items(2))
    assert restored.items['params']['half'].sharding.mesh.shape['fsdp'] == 4
    with Checkpointer(folder, read_only=True) as checkpointer:
        part = checkpointer.restore({'params': make_items(0)['params']}, step=1)
    assert_equal(part.items['params'], make_items(1)['params'])


@pytest.mark.parametrize(
    'shard, chunk',
    [((8, 4), (4, 4)), ((7, 8), (1, 8)), ((6, 2), (6, 2)), ((2, 30), (1, 15)), ((), ())],
)
def test_a_large_shard_is_cut_evenly(shard, chunk, monkeypatch):
    monkeypatch.setattr(bucket, 'CHUNK_BYTES', 64)
    assert bucket._chunk_shape(shard, 4) == chunk


def test_cut_shards_come_back(one_folder, monkeypatch):
    monkeypatch.setattr(bucket, 'CHUNK_BYTES', 64)
    save(one_folder, 1)
    names = object_store.list_objects(one_folder / '1' / 'params' / 'whole')
    assert names == ['.zarray', *sorted(f'{i}.0' for i in range(8))]
    assert_equal(restore(one_folder)[0].items, make_items(1))


def test_arrays_may_be_donated_while_they_are_written(one_folder):
    items = make_items(1)
    expected = jax.device_get(items)
    with Checkpointer(one_folder) as checkpointer:
        checkpointer.save(1, items, {})
        overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
        jax.block_until_ready(overwrite(items))
        checkpointer.wait()
        restored = checkpointer.restore(abstract(make_items(0), 'fsdp'))
        assert_equal(jax.device_get(restored.items), expected)


def test_old_steps_are_removed_but_the_best(one_folder):
    config = CheckpointConfig(keep_last=1, keep_every=4, asynchronous=False)
    with Checkpointer(one_folder, config) as checkpointer:
        for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 4.0, 5.0], 1):
            checkpointer.save(step, {'x': jnp.ones(2)}, {}, eval_loss=loss)
        assert checkpointer.steps() == [2, 4, 6]
        assert checkpointer.best_step() == 2
        assert not checkpointer.save(6, {'x': jnp.ones(2)}, {}, eval_loss=5.0)
        assert checkpointer.save(6, {'x': jnp.zeros(2)}, {}, eval_loss=5.0)
        checkpointer.wait()
        assert object_store.list_names(one_folder) == ['2', '4', '6']
        checkpointer.clear()
        assert object_store.list_objects(one_folder) == []


def test_a_step_without_its_document_was_never_finished(one_folder):
    save(one_folder, 1, 2)
    object_store.remove(document_path(one_folder, 2))
    with Checkpointer(one_folder, read_only=True) as checkpointer:
        assert checkpointer.steps() == [1]
    assert object_store.list_names(one_folder) == ['1', '2'], 'a reader removes nothing'
    restored, lines = restore(one_folder)
    assert (restored.step, lines) == (1, [])
    assert object_store.list_names(one_folder) == ['1']


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    'flipped bit': ('params/half/1.0', flip_a_bit),
    'truncated': ('params/half/1.0', lambda path: path.write_bytes(path.read_bytes()[:-5])),
    'missing chunk': ('params/half/1.0', object_store.remove),
    'missing array': ('params/whole/.zarray', object_store.remove),
    'document': ('meta/metadata', flip_a_bit),
}


@pytest.mark.parametrize('name, damage', DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_step_is_set_aside_and_the_one_before_is_used(one_folder, name, damage):
    save(one_folder, 1, 2)
    before = object_store.list_objects(one_folder / '2')
    damage(one_folder / '2' / name)
    restored, lines = restore(one_folder)
    assert restored.step == 1
    assert len(lines) == 1 and lines[0].endswith(f'moved to {one_folder}/damaged/2')
    assert object_store.list_names(one_folder) == ['1', 'damaged']
    kept = object_store.list_objects(one_folder / 'damaged' / '2')
    assert set(before) - set(kept) <= {name}
    save(one_folder, 2)
    damage(one_folder / '2' / name)
    assert restore(one_folder)[0].step == 1
    assert object_store.list_names(one_folder / 'damaged') == ['2', '2+']


def test_a_store_that_does_not_answer_is_no_damage(one_folder, monkeypatch):
    save(one_folder, 1, 2)

    def refuse(*_, **__):
        raise ValueError('UNAVAILABLE: connection reset')

    monkeypatch.setattr(bucket.ts, 'open', refuse)
    with pytest.raises(UserError, match=r'the store refused \(UNAVAILABLE: connection reset\)'):
        restore(one_folder)


def test_a_save_that_fails_is_told_by_the_next_wait(one_folder, monkeypatch):
    with Checkpointer(one_folder) as checkpointer:
        checkpointer.save(1, make_items(1), {})
        checkpointer.wait()

        def refuse(*_, **__):
            raise ValueError('PERMISSION_DENIED: no')

        monkeypatch.setattr(bucket.ts, 'open', refuse)
        checkpointer.save(2, make_items(2), {})
        with pytest.raises(UserError, match=f'cannot write {one_folder}: .*PERMISSION_DENIED'):
            checkpointer.wait()
        assert checkpointer.steps() == [1]
