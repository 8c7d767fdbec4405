"""Keys that moved work at their old places: as flags, in files, as attributes and as keywords."""

import copy
import dataclasses
import json
import types

import pytest

from gpt_jax import GPT
from gpt_jax.config import RunConfig, finalize, load_config
from gpt_jax.config_tree import freeze, from_json, get_value, set_value, to_json
from gpt_jax.data.shard_manifest import hash_of
from gpt_jax.evaluate import task_runs
from gpt_jax.main import main
from gpt_jax.model.config import LayerKind, ModelConfig, QKNorm
from gpt_jax.moved_keys import MOVED, OLD_BOOLEANS, rename_flag
from gpt_jax.optim import OPTIMIZERS

OF_THE_MODEL = {old: new for old, new in MOVED.items() if old.startswith('model.')}


def another(value):
    """A value that the same key accepts and that differs from its default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if isinstance(value, int):
        return value + 8
    if isinstance(value, tuple):
        return (LayerKind(window=8),)
    return [each for each in type(value) if each != value][-1]


@pytest.fixture(params=MOVED.items(), ids=lambda item: item[0])
def moved(request):
    """The old key, the new key, and a value that is not the default."""
    old, new = request.param
    return old, new, another(get_value(RunConfig(), new))


def test_a_value_in_an_old_file_is_read(moved):
    old, new, value = moved
    values = to_json(RunConfig())
    *above, name = old.split('.')
    holder = values
    for part in above:
        holder = holder[part]
    *above, new_name = new.split('.')
    target = values
    for part in above:
        target = target[part]
    del target[new_name]
    holder[name] = value
    before = copy.deepcopy(values)
    config = from_json(values, RunConfig)
    assert get_value(config, new) == value and values == before
    assert to_json(config) == to_json(from_json(to_json(config), RunConfig))


def test_a_flag_gets_the_new_key(moved):
    old, new, _ = moved
    assert rename_flag(f'--config.{old}=7') == f'--config.{new}=7'
    if new not in OLD_BOOLEANS:
        assert rename_flag(f'-noconfig.{old}') == f'-noconfig.{new}'


@pytest.mark.parametrize('key', ['model.qk_norm', 'model.attention.qk_norm'])
def test_a_knob_that_was_a_boolean(key):
    """`qk_norm` in flags, files, config files and constructors."""
    flags = [f'--config.{key}', f'--config.{key}=true', f'--config.{key}=head']
    assert {*map(rename_flag, flags)} == {'--config.model.attention.qk_norm=head'}
    assert rename_flag(f'--noconfig.{key}') == '--config.model.attention.qk_norm=none'
    for old, new in ((True, QKNorm.HEAD), (False, QKNorm.NONE)):
        config = RunConfig()
        set_value(config, key, old)
        assert finalize(config, vocab_size=5).model.attention.qk_norm is new
        values = to_json(RunConfig())
        values['model']['attention']['qk_norm'] = old
        assert from_json(values, RunConfig).model.attention.qk_norm is new
        assert ModelConfig(qk_norm=old).attention.qk_norm is new
        assert ModelConfig(attention=dict(qk_norm=old)).attention.qk_norm is new


def test_an_attribute_that_a_config_file_sets_is_used(moved):
    old, new, value = moved
    config = RunConfig()
    set_value(config, old, value)
    assert get_value(config, old) == value
    assert get_value(finalize(config, vocab_size=5), new) == value


@pytest.mark.parametrize('old', OF_THE_MODEL)
def test_keywords_of_the_model(old):
    """Of its config, frozen or not, and of GPT."""
    name, new = old.removeprefix('model.'), OF_THE_MODEL[old].removeprefix('model.')
    value = another(get_value(ModelConfig(), new))
    assert get_value(ModelConfig(**{name: value}), new) == value
    frozen = freeze(ModelConfig())
    changed = dataclasses.replace(frozen, **{name: value})
    assert get_value(changed, new) == getattr(changed, name) == value
    assert get_value(frozen, new) != value
    sizes = {'num_layers': 1, 'num_heads': 2, 'd_model': 8, 'max_seq_len': 8}
    if name not in ('attention_kernel', 'norm_kernel'):  # the other values need another backend
        gpt = GPT(vocab_size=257, **sizes, **{name: value})
        assert get_value(gpt.config.model, new) == value


@pytest.mark.parametrize('kind', OPTIMIZERS)
def test_clipping_as_a_keyword_of_an_optimizer(kind):
    config = RunConfig(optimizer=kind(clip_norm=0.5))
    assert finalize(config, vocab_size=5).train.clip_norm == 0.5
    with pytest.raises(AttributeError, match='clip_norm has moved: read config.train.clip_norm'):
        _ = kind().clip_norm


def test_a_config_file_with_old_keys(tmp_path, capsys):
    file = tmp_path / 'old.py'
    file.write_text(
        'from gpt_jax.config import RunConfig\n'
        'from gpt_jax.optim.lion import Lion\n\n\n'
        'def get_config(variant):\n'
        '    config = RunConfig(optimizer=Lion(clip_norm=0.3))\n'
        '    config.model.dropout = 0.1\n'
        '    return config\n'
    )
    config = load_config(str(file))
    assert (config.train.clip_norm, config.model.dropouts.residual) == (0.3, 0.1)
    assert 'clip_norm' not in to_json(config)['optimizer']
    assert main([f'--config={file}', '--config.model.rope_bass=1']) == 2
    assert 'config.model.rope_bass is not a key' in capsys.readouterr().err
    assert main([f'--config={file}', '--config.model.rope_base=0']) == 2
    assert 'config.model.rope.base=0.0 must be' in capsys.readouterr().err


def test_results_of_tasks_that_were_stored_with_old_keys_are_found(tmp_path):
    task = types.SimpleNamespace(name='piqa', fingerprint=lambda: 'rows')
    about = {'weights': 'w', 'model': to_json(ModelConfig(rope={'base': 5e5}))}
    old = {**about['model'], 'rope_base': 5e5}
    del old['rope']
    stored = {'rows': 9, 'metrics': {'acc': 0.5, 'acc_stderr': 0.1}, 'tables': {}}
    for model, found in ((old, True), (old | {'rope_base': 4.0}, False), (old | {'x': 1}, False)):
        written = {**about, 'model': model}
        fingerprint = hash_of({**written, 'benchmark': 'rows'})
        content = stored | {'about': written, 'fingerprint': fingerprint}
        (tmp_path / 'piqa.json').write_text(json.dumps(content))
        assert (task_runs.Results(tmp_path, about).find(task) is not None) == found


def test_groups_may_be_dicts():
    assert ModelConfig(rope={'base': 5e5}).rope.base == 5e5


def test_every_old_key_is_gone_and_every_new_one_is_there():
    keys = [field.name for field in dataclasses.fields(ModelConfig)]
    for old, new in MOVED.items():
        assert old.removeprefix('model.') not in keys
        get_value(RunConfig(), new)
