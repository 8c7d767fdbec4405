"""Checkpoints: what is saved comes back bit for bit, or does not come back at all."""

import errno
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from gpt_jax.checkpoint import CheckpointConfig, Checkpointer, checkpointer, manifest
from gpt_jax.errors import UserError
from gpt_jax.fingerprint import fingerprint_leaves

# tensorstore complains of reads that failed and that nobody waited for, when they are collected.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def make_items(value: float = 1.0) -> dict:
    key = jax.random.key(int(value))
    params = {
        'block': {'kernel': jax.random.normal(key, (128, 128))},
        'bias': jnp.full(8, float(value)),
    }
    return {'params': params, 'ema': None, 'rest': {'step': jnp.uint32(value)}}


def abstract(items, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), items)


def over(count: int) -> jax.NamedSharding:
    """Rows spread over so many devices."""
    types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((count,), ('data',), axis_types=types, devices=jax.devices()[:count])
    return jax.NamedSharding(mesh, jax.P('data'))


def assert_same(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        a, b = np.asarray(jnp.asarray(a)), np.asarray(jnp.asarray(b))
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), path


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def saved(tmp_path, messages):
    """A folder with steps 1, 2 and 3, and a writer for it."""
    with Checkpointer(tmp_path, CheckpointConfig(keep_last=3), report=messages.append) as writer:
        for step in (1, 2, 3):
            writer.save(step, make_items(step), {'position': 10 * step})
        writer.wait()
        yield writer


def array_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files with the arrays' data, smallest first."""
    return sorted(folder.rglob('ocdbt.process_0/d/*'), key=lambda path: path.stat().st_size)


def test_a_loss_is_added_and_later_steps_are_discarded(saved):
    saved.set_loss(2, 1.5)
    assert saved.best_step() == 2
    assert saved.meta(2) == {'position': 20, 'eval_loss': 1.5}
    assert saved.restore(abstract(make_items()), step=2).step == 2
    saved.discard_after(2)
    assert saved.steps() == [1, 2]
    with pytest.raises(UserError, match='no checkpoint of step 3 .*available: 1, 2'):
        saved.discard_after(3)


# Round trips


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    normal = jax.random.normal(jax.random.key(0), (4, 6))
    params = {
        'float32': normal.at[0, 0].set(jnp.nan).at[0, 1].set(-0.0).at[0, 2].set(1e-42),
        'bfloat16': normal.astype(jnp.bfloat16),
        'int32': jnp.arange(-5, 5),
        'uint32': jnp.uint32(2**32 - 1),
        'bool': jnp.array([True, False, True]),
        'scalar': jnp.float32(0.1),
        'nothing': None,
        'nested': [(), {'a.b/c d': jnp.ones(())}],
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    items = {'params': params, 'opt': optimizer.init({'w': normal}), 'none': None, 'count': 7}
    with Checkpointer(tmp_path) as writer:
        assert writer.save(5, items, {'position': 3, 'shape': (1, 2)})
        restored = writer.restore(items)
    assert restored.step == 5
    assert restored.meta == {'position': 3, 'shape': [1, 2]}
    assert_same(restored.items, items)
    assert isinstance(restored.items['opt'], tuple)


def test_restores_onto_other_devices(tmp_path):
    tree = {'a': jnp.arange(64.0).reshape(8, 8), 'b': jnp.arange(16).astype(jnp.bfloat16)}
    items = {'params': jax.device_put(tree, over(8))}
    with Checkpointer(tmp_path) as writer:
        writer.save(1, items, {})
        for sharding in (None, over(1), over(4), over(8)):
            restored = writer.restore(abstract(items, sharding)).items
            assert_same(restored, items)
            devices = {len(x.sharding.device_set) for x in jax.tree.leaves(restored)}
            assert devices == {len(sharding.device_set) if sharding else 1}


@pytest.mark.parametrize('sharded', [False, True])
def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path, sharded):
    items = {'params': {f'w{index}': jnp.full((64, 1024), float(index)) for index in range(16)}}
    if sharded:
        items = jax.device_put(items, over(8))
    expected = jax.tree.map(lambda x: np.array(x, copy=True), items)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    with Checkpointer(tmp_path) as writer:
        for number in (1, 2, 3):
            writer.save(number, items, {})
            for _ in range(3):
                donated, items = items, step(items)
            assert jax.tree.leaves(donated)[0].is_deleted()
        restored = writer.restore(abstract(items), step=2)
        assert_same(restored.items, jax.tree.map(lambda x: (x + 1) * 8 - 1, expected))
        restored = writer.restore(abstract(items))
        assert_same(restored.items, jax.tree.map(lambda x: (x + 1) * 64 - 1, expected))
        # What was restored may be donated too.
        again = step(step(restored.items))
        assert_same(again, jax.tree.map(lambda x: (x + 1) * 256 - 1, expected))


def test_a_subset_of_the_items_is_read_without_the_others(saved):
    for path in (saved.folder / '3' / 'rest').rglob('*'):
        if path.is_file():
            path.write_bytes(b'')
    restored = saved.restore({'params': abstract(make_items())['params']}, step=3)
    assert_same(restored.items, {'params': make_items(3)['params']})


def test_meta_is_read_without_arrays(saved):
    shutil.rmtree(saved.folder / '3' / 'params')
    assert saved.meta() == saved.meta(3) == saved.meta('3') == {'position': 30}
    assert saved.meta(1) == {'position': 10}
    assert checkpointer.Checkpointer(saved.folder / 'none', read_only=True).meta() is None


def test_nothing_saved_is_none_and_a_reader_writes_nothing(tmp_path):
    reader = Checkpointer(tmp_path / 'runs', read_only=True)
    assert reader.restore(abstract(make_items())) is None
    assert (reader.steps(), reader.best_step()) == ([], None)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_jax_would_narrow_are_refused(tmp_path):
    with Checkpointer(tmp_path) as writer, pytest.raises(TypeError, match='a/count: .* int64'):
        writer.save(1, {'a': {'count': np.int64(2**40)}}, {})


# Cadence, retention, saving twice


def test_orbax_adds_no_cadence_of_its_own(tmp_path):
    with Checkpointer(tmp_path) as writer:
        for step in (37, 38):
            assert writer.save(step, make_items(), {})
        writer.wait()
        assert writer.steps() == [37, 38]


@pytest.mark.parametrize('asynchronous', [True, False])
def test_keeps_the_last_the_multiples_and_the_best(tmp_path, asynchronous):
    config = CheckpointConfig(keep_last=2, keep_every=4, asynchronous=asynchronous)
    losses = {1: 9.0, 2: 3.0, 3: 2.0, 4: 5.0, 5: None, 6: 2.5, 7: float('nan'), 8: 4.0, 9: 4.0}
    with Checkpointer(tmp_path, config) as writer:
        for step, loss in losses.items():
            writer.save(step, make_items(step), {}, eval_loss=loss)
        writer.wait()
        assert writer.steps() == [3, 4, 8, 9]
        assert writer.best_step() == 3
        assert_same(
            writer.restore(abstract(make_items()), step='best').items['params'],
            make_items(3)['params'],
        )


def test_without_keep_best_only_the_last_stay(tmp_path):
    with Checkpointer(tmp_path, CheckpointConfig(keep_last=1, keep_best=False)) as writer:
        for step in (1, 2, 3):
            writer.save(step, make_items(step), {}, eval_loss=float(step))
        writer.wait()
        assert writer.steps() == [3]


def test_the_best_survives_restarts_until_a_better_one_comes(tmp_path):
    config = CheckpointConfig(keep_last=1)
    for step, loss, kept in [(1, 2.0, [1]), (2, 3.0, [1, 2]), (3, None, [1, 3]), (4, 1.0, [4])]:
        with Checkpointer(tmp_path, config) as writer:
            writer.save(step, make_items(step), {}, eval_loss=loss)
            writer.wait()
            assert writer.steps() == kept
    assert Checkpointer(tmp_path, read_only=True).best_step() == 4


def test_saving_a_step_twice_changes_nothing_when_it_is_the_same(saved):
    before = {path: path.stat().st_mtime_ns for path in (saved.folder / '3').rglob('*')}
    assert saved.save(3, make_items(3), {'position': 30}) is False
    assert before == {path: path.stat().st_mtime_ns for path in (saved.folder / '3').rglob('*')}


def test_saving_a_step_again_with_other_values_replaces_it(saved):
    assert saved.save(2, make_items(9), {'position': 90}) is True
    assert_same(saved.restore(abstract(make_items()), step=2).items, make_items(9))
    assert saved.steps() == [1, 2, 3]


def test_clear_starts_over(saved):
    (saved.folder / 'damaged' / '9').mkdir(parents=True)
    saved.clear()
    assert saved.restore(abstract(make_items())) is None
    saved.save(1, make_items(5), {})
    assert saved.restore(abstract(make_items())).items['rest']['step'] == 5


@pytest.mark.parametrize(
    ('change', 'key'), [({'keep_last': 0}, 'keep_last'), ({'keep_every': -1}, 'keep_every')]
)
def test_impossible_settings_name_their_key(tmp_path, change, key):
    with pytest.raises(UserError, match=rf'config\.checkpoint\.{key}=-?\d must be'):
        Checkpointer(tmp_path, CheckpointConfig(**change))


# Damage


def flip_one_bit(folder: pathlib.Path) -> None:
    """Flips a bit of an array's data, so that orbax restores it without a word."""
    path = array_files(folder / 'params')[-1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder: pathlib.Path) -> None:
    path = array_files(folder / 'params')[-1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def lose_document(folder: pathlib.Path) -> None:
    (folder / 'meta' / 'metadata').unlink()


def change_document(folder: pathlib.Path) -> None:
    path = folder / 'meta' / 'metadata'
    path.write_text(path.read_text().replace('"position": ', '"position": 1'))


def lose_manifest(folder: pathlib.Path) -> None:
    (folder / 'params' / 'manifest.ocdbt').unlink()


def lose_item(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / 'rest')


def lose_files(folder: pathlib.Path) -> None:
    for path in array_files(folder):
        path.unlink()


DAMAGES = [
    flip_one_bit,
    truncate,
    empty,
    lose_document,
    change_document,
    lose_manifest,
    lose_item,
    lose_files,
]


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_step_is_moved_aside_and_the_one_before_is_restored(saved, messages, damage):
    damage(saved.folder / '3')
    restored = saved.restore(abstract(make_items()))
    assert (restored.step, restored.meta) == (2, {'position': 20})
    assert_same(restored.items, make_items(2))
    (message,) = messages
    assert message.startswith(f'checkpoint {saved.folder / "3"} is damaged (')
    assert message.endswith(f'); moved to {saved.folder / "damaged" / "3"}')
    assert '\n' not in message
    # The run goes on, and its next save of that step is a new one.
    assert saved.steps() == [1, 2]
    assert saved.save(3, make_items(3), {'position': 30})
    assert saved.restore(abstract(make_items())).step == 3
    assert len(messages) == 1


def test_a_writer_opens_a_folder_in_which_everything_is_damaged(saved, messages):
    for step, damage in [(1, empty), (2, change_document), (3, flip_one_bit)]:
        damage(saved.folder / str(step))
    for _ in range(2):  # the second process finds only what the first moved aside
        with (
            Checkpointer(saved.folder, report=messages.append) as writer,
            pytest.raises(UserError, match=r'no checkpoint .* readable .* --fresh') as caught,
        ):
            writer.restore(abstract(make_items()))
        assert str(saved.folder) in str(caught.value) and '\n' not in str(caught.value)
    assert len(messages) == 3


def test_orbax_alone_does_not_notice_the_flipped_bit(saved, monkeypatch):
    """If this fails, orbax verifies by itself, or `flip_one_bit` no longer hits the data."""
    flip_one_bit(saved.folder / '3')
    monkeypatch.setattr(checkpointer, 'check_fingerprints', lambda document, items: None)
    restored = saved.restore(abstract(make_items()))
    assert restored.step == 3
    assert fingerprint_leaves(restored.items) != fingerprint_leaves(make_items(3))


def test_a_reader_falls_back_without_touching_the_folder(saved, messages):
    flip_one_bit(saved.folder / '3')
    reader = Checkpointer(saved.folder, read_only=True, report=messages.append)
    assert reader.restore(abstract(make_items())).step == 2
    assert len(messages) == 1 and 'trying the one before' in messages[0]
    assert (saved.folder / '3').is_dir()


def test_a_reader_leaves_a_save_in_progress_alone(saved):
    unfinished = saved.folder / '4.orbax-checkpoint-tmp'
    unfinished.mkdir()
    assert Checkpointer(saved.folder, read_only=True).steps() == [1, 2, 3]
    assert unfinished.exists()
    with Checkpointer(saved.folder) as writer:
        assert writer.steps() == [1, 2, 3]
    assert not unfinished.exists()


def test_an_explicit_step_is_that_step_or_an_error_that_lists_the_others(saved):
    assert saved.restore(abstract(make_items()), step=1).step == 1
    with pytest.raises(UserError, match='no checkpoint of step 7 .*; available: 1, 2, 3$'):
        saved.restore(abstract(make_items()), step=7)
    flip_one_bit(saved.folder / '2')
    with pytest.raises(UserError, match=r'2 is damaged \(params/.*\); available: 1, 3$'):
        saved.restore(abstract(make_items()), step=2)
    assert (saved.folder / '2').exists()
    lose_document(saved.folder / '1')
    with pytest.raises(UserError, match='1 is damaged.*; available: 2, 3$'):
        saved.meta(1)
    with pytest.raises(UserError, match='has an evaluation loss; available: 2, 3$'):
        saved.restore(abstract(make_items()), step='best')
    with pytest.raises(UserError, match="a number, latest or best, not 'newest'"):
        saved.meta('newest')


def test_a_changed_model_is_not_damage(saved, messages):
    items = make_items()
    kernel = jnp.ones((128, 9))
    changes = {
        r'params/block/kernel is \(128, 128\) in .* \(128, 9\) in this run': {
            'block': {'kernel': kernel}
        },
        'dtype of params/bias changed: float32 .* bfloat16': {
            'bias': items['params']['bias'].astype('bfloat16')
        },
        'has no params/scale': {'scale': jnp.ones(3)},
    }
    for message, change in changes.items():
        with pytest.raises(UserError, match=message):
            saved.restore({'params': {**items['params'], **change}})
    with pytest.raises(UserError, match='has params/block/kernel, which the run no longer has'):
        saved.restore({'params': {'bias': items['params']['bias']}})
    with pytest.raises(UserError, match='has no ema/w'):
        saved.restore({'ema': {'w': jnp.ones(3)}})
    assert saved.steps() == [1, 2, 3] and not messages


def test_too_little_memory_is_not_damage(saved, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(ocp.StandardCheckpointHandler, 'restore', fail)
    with pytest.raises(MemoryError):
        saved.restore(abstract(make_items()))
    assert saved.steps() == [1, 2, 3]


@pytest.mark.parametrize(
    'error',
    [
        PermissionError(errno.EACCES, 'Permission denied'),
        ValueError("INTERNAL: Error opening file [os_error_code='24'] [source locations='x']"),
    ],
    ids=['permission', 'too many files'],
)
def test_what_may_not_be_read_is_not_damage(saved, error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ocp.StandardCheckpointHandler, 'restore', fail)
    with pytest.raises(UserError, match=r'cannot read .*/3/params: (Permission|Too many open)'):
        saved.restore(abstract(make_items()))
    assert saved.steps() == [1, 2, 3]


def test_a_document_that_may_not_be_read_is_not_damage(saved, monkeypatch):
    def fail(path):
        raise OSError(errno.ESTALE, 'Stale file handle')

    monkeypatch.setattr(manifest.object_store, 'read_bytes', fail)
    for read in (saved.steps, saved.meta, lambda: saved.restore(abstract(make_items()))):
        with pytest.raises(UserError, match='cannot read .*metadata: Stale file handle'):
            read()
    assert sorted(p.name for p in saved.folder.iterdir() if p.name.isdecimal()) == ['1', '2', '3']


def test_the_document_is_json_that_others_can_read(saved):
    sealed = json.loads((saved.folder / '3' / manifest.META / 'metadata').read_text())
    assert sealed['document']['meta'] == {'position': 30}
    assert sealed['document']['leaves']['params/bias']['shape'] == [8]
