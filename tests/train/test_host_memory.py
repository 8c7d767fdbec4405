"""A state that the machine cannot hold is refused before anything is allocated or written."""

import jax
import pytest

from gpt_jax import GPT
from gpt_jax.config import RunConfig, finalize
from gpt_jax.errors import UserError
from gpt_jax.main import main
from gpt_jax.model.gpt import abstract_params
from gpt_jax.train import host_memory
from tests.command_line import TINY


@pytest.mark.parametrize(
    'key, value',
    [
        ('model.d_model', 1_200_000),
        ('model.num_layers', 2**31 - 1),
        ('model.max_seq_len', 2**31 - 1),
        ('model.vocab_size', 2**31 - 128),
        ('lora.rank', 2**31 - 1),
        ('train.batch_size', 2**31 - 1),
    ],
)
def test_too_large_a_size_is_one_line(key, value, monkeypatch):
    monkeypatch.setattr(host_memory, 'physical_memory', lambda: 2**36)
    config = RunConfig()
    branch, name = key.split('.')
    setattr(getattr(config, branch), name, value)
    with pytest.raises(UserError, match=rf'need [\d,.]+ GiB, this .*{name}'):
        host_memory.check_host_memory(finalize(config, vocab_size=5))


def test_the_state_is_counted_with_the_optimizer(monkeypatch):
    config = finalize(RunConfig(), vocab_size=5)
    leaves = jax.tree.leaves(abstract_params(config.model))
    needed = 3 * sum(leaf.size * 4 for leaf in leaves)  # the weights and two moments
    monkeypatch.setattr(host_memory, 'physical_memory', lambda: needed - 1)
    with pytest.raises(UserError, match='this machine has'):
        host_memory.check_host_memory(config)
    monkeypatch.setattr(host_memory, 'physical_memory', lambda: int(needed * 1.01))
    host_memory.check_host_memory(config)


def test_a_run_is_refused_before_its_workdir_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host_memory, 'physical_memory', lambda: 1000)
    assert main([f'--config={TINY}', f'--workdir={tmp_path / "run"}']) == 2
    assert 'GiB of memory; lower config.model' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_a_model_of_the_library_is_refused(monkeypatch):
    monkeypatch.setattr(host_memory, 'physical_memory', lambda: 1000)
    with pytest.raises(UserError, match='this machine has'):
        GPT(d_model=32, num_heads=2, num_layers=1, max_seq_len=8)
