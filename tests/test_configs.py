"""Every shipped config is loaded, finalized and built from shapes, as a run would."""

import pathlib

import jax
import pytest

from gpt_jax.config import MOVED_CONFIGS, RunConfig, finalize, load_config, run_name
from gpt_jax.config_tree import freeze, from_json, to_json
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.parameter import map_with_path
from gpt_jax.train import program
from tests.golden_file import check_golden

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
SPECS = {
    'quickstart': 1024,
    'shakespeare_char:cpu': 66,
    'shakespeare_char:gpu': 66,
    'grokking': 100,
    'induction': 53,
    'induction:one_layer': 53,
    'gpt1': 40478,
    'gpt2:124m': 50257,
    'gpt2:355m': 50257,
    'gpt2:774m': 50257,
    'gpt2:1558m': 50257,
    'gpt3:125m': 50257,
    'gpt3:350m': 50257,
    'gpt3:760m': 50257,
    'gpt3:1300m': 50257,
    'llama3_1b': 128256,
    'modern_124m': 50257,
    'olmoe_1b_7b': 50304,
    'moe_cpu:moe': 1024,
    'moe_cpu:dense': 1024,
    'finetune': 512,  # of the default model, where a run has its source's
    'finetune:lora': 512,
    'finetune:chat': 512,
    'finetune:chat_lora': 512,
}


def _load(spec: str, vocab_size: int) -> RunConfig:
    name, _, variant = spec.partition(':')
    config = load_config(f'{CONFIGS / name}.py' + (f':{variant}' if variant else ''))
    return finalize(config, vocab_size=vocab_size, train_tokens=10**9)


@pytest.mark.parametrize('spec', SPECS)
def test_parameters_of_every_config(spec, monkeypatch):
    monkeypatch.setattr(program, 'check_host_memory', lambda *args: None)  # nothing is made here
    config = _load(spec, SPECS[spec])
    made = program.make_program(config, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    lines = []

    def describe(path, leaf):
        shape = 'x'.join(map(str, leaf.shape))
        lines.append(f'{path:<40} {shape:<20} {leaf.dtype.name} {leaf.sharding.spec}')

    map_with_path(describe, made.abstract_state.params)
    total = sum(leaf.size for leaf in jax.tree.leaves(made.abstract_state.params))
    check_golden(
        f'parameters/{spec.replace(":", "-")}.txt', '\n'.join([*lines, f'{total:,} stored', ''])
    )


@pytest.mark.parametrize('spec', SPECS)
def test_config_survives_json(spec):
    config = _load(spec, SPECS[spec])
    assert freeze(from_json(to_json(config), RunConfig)) == config


def test_every_config_file_is_listed():
    names = {path.stem for path in CONFIGS.glob('*.py')} - {'base'}
    assert names == {spec.partition(':')[0] for spec in SPECS}


@pytest.mark.parametrize('name', sorted({spec.partition(':')[0] for spec in SPECS}))
def test_unknown_variants_are_refused(name):
    with pytest.raises(Exception, match='unknown variant :nonsense'):
        load_config(f'{CONFIGS / name}.py:nonsense')


@pytest.mark.parametrize('name', sorted({spec.partition(':')[0] for spec in SPECS}))
def test_a_config_opens_with_the_command_that_runs_it(name):
    assert f'--config configs/{name}.py' in (CONFIGS / f'{name}.py').read_text(encoding='utf-8')


@pytest.mark.parametrize(('old', 'new'), MOVED_CONFIGS.items())
def test_the_old_name_of_a_config_loads_it(old, new):
    assert to_json(load_config(str(CONFIGS / old))) == to_json(load_config(str(CONFIGS / new)))
    # The workdir of its runs stays, so that the same command resumes them.
    assert run_name(f'configs/{old}') == old.removesuffix('.py')


def test_a_single_text_is_a_tuple_of_one():
    config = RunConfig()
    config.sample.stop, config.eval.tasks = '\n\n', 'blimp,piqa'
    final = finalize(config, vocab_size=256)
    assert final.sample.stop == ('\n\n',) and final.eval.tasks == ('blimp', 'piqa')
