"""Every number that a user gives: in its domain, or refused in one line that names it."""

import copy
import dataclasses
import inspect
import json
import math
import pathlib
import typing

import pytest
from absl import flags as absl_flags

from gpt_jax import GPT, object_store, run
from gpt_jax.config import RunConfig, finalize, load_config
from gpt_jax.config_tree import INT32_MAX, check_domains, get_value, set_value, to_json
from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig
from gpt_jax.main import main
from gpt_jax.modes import MODES
from gpt_jax.optim import OPTIMIZERS

VALUES = (math.nan, math.inf, -math.inf, -1, 0, 2**31, 2**63, 2**64, 10**5000)
FLAG_VALUES = ('nan', 'inf', '-inf', '-1', str(2**31), str(2**63), str(2**64), '9' * 5000)


def fields_of(config, key='config'):
    """Yields (key, its parent, field) of every leaf below a config."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f'{key}.{field.name}')
        else:
            yield f'{key}.{field.name}', config, field


def is_numeric(field) -> bool:
    kind = (typing.get_args(field.type) or (field.type,))[0]
    return kind in (int, float)


CONFIGS = [RunConfig(optimizer=kind()) for kind in OPTIMIZERS]
KNOBS = {
    (key, type(parent).__name__): (config, field)
    for config in CONFIGS
    for key, parent, field in fields_of(config)
    if is_numeric(field)
}


@pytest.mark.parametrize('key', KNOBS, ids='-'.join)
def test_a_number_is_taken_or_refused_by_its_name(key):
    config, field = KNOBS[key]
    domain, is_tuple = field.metadata['domain'], isinstance(field.default, tuple)
    assert domain.kind in (field.type, *typing.get_args(field.type))
    for value in VALUES:
        changed = copy.deepcopy(config)
        parent = next(each for name, each, _ in fields_of(changed) if name == key[0])
        setattr(parent, field.name, (value,) if is_tuple else value)
        is_type = isinstance(value, (int, domain.kind)) and abs(value) < 2**1000
        try:
            finalize(changed, vocab_size=5)
        except UserError as error:
            assert key[0] in str(error) and '\n' not in str(error)
            assert len(str(error)) < 400
        else:
            assert is_type and domain.holds(value), value


@pytest.mark.parametrize(
    'key, value',
    [
        ('model.norm_epsilon', math.nan),
        ('model.init.std', math.inf),
        ('model.rope.scaling', math.nan),
        ('seed', 2**32),
        ('seed', -1),
        ('sample.seed', 2**63),
        ('lora.rank', 2**31),
        ('tokenizer.vocab_size', 2**31),
        ('sample.temperature', math.inf),
        ('sample.repetition_penalty', math.inf),
        ('sample.num_samples', 10**6),
        ('optimizer.learning_rate', math.inf),
        ('train.clip_norm', math.nan),
        ('optimizer.weight_decay', math.nan),
        ('optimizer.beta1', 1.0),
        ('optimizer.beta2', 2.0),
        ('train.z_loss', math.nan),
        ('train.step_timeout', math.nan),
        ('train.num_epochs', math.inf),
        ('data.num_threads', -1),
        ('data.weight', math.inf),
        ('mesh.data', 0),
        ('model.num_layers', True),
    ],
)
def test_numbers_that_cannot_work_are_refused(key, value):
    config = RunConfig()
    set_value(config, key, value)
    with pytest.raises(UserError, match=rf'^config\.{key}='):
        finalize(config, vocab_size=5)


def test_numbers_of_a_layer_kind_that_cannot_work_are_refused():
    config = RunConfig()
    config.model.layer_kinds = (0, -1)
    with pytest.raises(UserError, match=r'^config\.model\.layer_kinds\[1\]\.window=-1 must be'):
        finalize(config, vocab_size=5)


def test_a_length_in_tokens_beyond_the_steps_of_a_run_is_refused():
    config = RunConfig()
    config.train.num_epochs = 1e9
    with pytest.raises(UserError, match=r'config\.train\.num_epochs=1e\+09 makes'):
        finalize(config, vocab_size=5, train_tokens=10**12)


SIGNED = ('presence_penalty', 'frequency_penalty')


@pytest.mark.parametrize('mode', MODES)
def test_numbers_of_flags_are_taken_or_refused(mode):
    sample = {field.name for field in dataclasses.fields(SampleConfig)}
    for value in FLAG_VALUES:
        flags = absl_flags.FlagValues()
        MODES[mode].define_flags(flags)
        for name in flags:
            if flags[name].flag_type() not in ('int', 'float', 'multi int'):
                continue
            try:
                flags([mode, f'--{name}={value}'])
            except absl_flags.IllegalFlagValueError as error:
                assert f'--{name}' in str(error)
                continue
            if name in sample:
                given = SampleConfig(**{name: flags[name].value})
                if (name, value) == ('seed', str(2**31)) or (name in SIGNED and value == '-1'):
                    check_domains(given)
                else:
                    with pytest.raises(UserError, match=rf'^config\.sample\.{name}='):
                        check_domains(given, 'config.sample')
            else:
                number = flags[name].value
                number = number[0] if isinstance(number, list) else number
                assert 0 <= number <= INT32_MAX, (name, value)


def test_every_config_is_walked():
    # A union whose members are not all in CONFIGS would hide the knobs of the others.
    kinds = typing.get_type_hints(RunConfig).values()
    members = {each for kind in kinds for each in typing.get_args(kind) if inspect.isclass(each)}
    assert members == set(OPTIMIZERS)


@pytest.mark.parametrize(
    'branch, value',
    [
        ('train', None),
        ('train', []),
        ('optimizer', None),
        ('optimizer', 'lyon'),
        ('seed', None),
        ('model', {'window_pattern': [None]}),
        ('model', {'num_layers': True}),
        ('model', {'norm_epsilon': 10**400}),
    ],
)
def test_a_damaged_config_json_is_one_line(branch, value, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(to_json(RunConfig()) | {branch: value}))
    with pytest.raises(UserError, match=rf'config\.json: config\.{branch}'):
        run.read_config(tmp_path)


@pytest.mark.parametrize('content', ['null', '[]', '1'])
def test_a_config_json_of_another_kind_is_one_line(content, tmp_path):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(UserError, match=r'config\.json: config='):
        run.read_config(tmp_path)


@pytest.mark.parametrize('change', ['config.model = None', 'config.data = 3', 'config.seed = ""'])
def test_a_config_file_that_makes_half_a_tree_is_one_line(change, tmp_path):
    path = tmp_path / 'half.py'
    path.write_text(
        'from gpt_jax.config import RunConfig\n\n\ndef get_config(variant):\n'
        f'    config = RunConfig()\n    {change}\n    return config\n'
    )
    with pytest.raises(UserError, match=rf'half\.py: {change.split()[0]}='):
        load_config(str(path))


@pytest.mark.parametrize(
    'flags',
    [
        ['--workdir=runs/a\0b'],
        ['--workdir', 'a\0b'],
        ['--mode=generate', '--workdir=a', '--prompt_file=a\0b'],
        ['--mode=evaluate', '--workdir=a', '--text=a\0b'],
        ['--mode=evaluate', '--workdir=a', '--tasks=blimp', '--task_data=a\0b'],
        ['--mode=export', '--workdir=a', '--out=a\0b'],
        ['--mode=import_weights', '--workdir=a', '--source=a\0b'],
        ['--config=configs/quickstart.py', '--config.data.source=a\0b'],
        ['--config=a\0b'],
    ],
)
def test_a_flag_with_a_nul_is_one_line(flags, capsys):
    assert main(flags) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == f'error: the argument {flags[-1]!r} has a NUL byte; remove it'


@pytest.mark.parametrize(
    'key',
    ['data.source', 'data.chat_template', 'data.cache_dir', 'data.mixture', 'tokenizer.path']
    + ['train.init_from', 'eval.task_data'],
)
def test_a_path_of_a_config_with_a_nul_is_one_line(key):
    config = RunConfig()
    value = 'a\0b' if get_value(config, key) == '' else ('c=1', 'a\0b=1')
    set_value(config, key, value)
    with pytest.raises(UserError, match=rf"^config\.{key}='a\\x00b(=1)?' has a NUL byte"):
        finalize(config, vocab_size=10)


@pytest.mark.parametrize(
    'use',
    [
        lambda gpt, path: gpt.fit(pathlib.Path(path), steps=1),
        lambda gpt, path: gpt.evaluate(pathlib.Path(path)),
        lambda gpt, path: gpt.save(path),
        lambda gpt, path: gpt.export(path),
        lambda gpt, path: GPT.load(path),
        lambda gpt, path: GPT.from_pretrained(path),
    ],
    ids=['fit', 'evaluate', 'save', 'export', 'load', 'from_pretrained'],
)
def test_a_path_with_a_nul_is_a_user_error_in_python(use):
    gpt = GPT(num_layers=1, num_heads=1, d_model=16, max_seq_len=8)
    with pytest.raises(UserError, match=r'a\x00b|a\\x00b'):
        use(gpt, 'a\0b')


@pytest.mark.parametrize('to_path', [object_store.to_path, object_store.local_path])
def test_a_path_with_a_nul_is_one_line(to_path):
    with pytest.raises(UserError, match='--workdir=.* has a NUL byte'):
        to_path('runs/a\0b', key='--workdir')
