"""benchmarks/nanogpt.py as a user types it, with a checkout that stands in for nanoGPT's."""

import importlib.util
import pathlib
import re
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / 'benchmarks'
TINY = {
    'config': 'configs/shakespeare_char.py:cpu',
    'num_layers': 1,
    'num_heads': 2,
    'd_model': 16,
    'max_seq_len': 8,
    'batch_size': 2,
    'vocab_size': 65,
    'peer_vocab_size': 65,
    'use_bias': False,
}
# nanoGPT's interface, none of its code.
STAND_IN = """
import dataclasses

import torch


@dataclasses.dataclass
class GPTConfig:
    block_size: int = 1
    vocab_size: int = 1
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 1
    dropout: float = 1.0
    bias: bool = True


class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config == GPTConfig(8, 65, 1, 2, 16, 0.0, False)
        print('number of parameters: a few')  # lines that are no answers, as nanoGPT prints them
        self.table = torch.nn.Embedding(config.vocab_size, config.n_embd)
        self.output = torch.nn.Linear(config.n_embd, config.vocab_size, bias=config.bias)

    def forward(self, idx, targets=None):
        assert self.training and idx.shape == targets.shape == (2, 8)
        logits = self.output(self.table(idx))
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(
            self.parameters(), lr=100 * learning_rate, betas=betas, weight_decay=weight_decay
        )
"""


@pytest.fixture
def nanogpt(monkeypatch):
    """The script as a module, with a recipe of moments."""
    if importlib.util.find_spec('torch') is None:
        pytest.skip('torch, which nanoGPT needs, is not installed')
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location('benchmark_nanogpt', BENCHMARKS / 'nanogpt.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'benchmark_nanogpt', module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(module.RECIPES, 'tiny', module.Recipe(**TINY))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')  # ours is kept on the CPU by conftest.py
    return module


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / 'model.py').write_text(STAND_IN)
    return f'--nanogpt={tmp_path}'


def test_pairs_both_steps(nanogpt, checkout, capfd):
    override = '--override=config.train.steps_per_call=2'
    arguments = [checkout, '--recipe=tiny', '--rounds=3', '--steps=5', override]
    nanogpt.main(arguments)
    printed = capfd.readouterr().out
    assert 'float32, 2 step(s) per call' in printed
    assert f'float32, eager, {2 * 65 * 16:,} parameters' in printed
    rounds = re.findall(r'round \d: ours ([\d.]+) ms, nanoGPT ([\d.]+) ms, others', printed)
    assert len(rounds) == 3
    assert 'tiny, all rounds: 3 of 5 steps of 16 tokens' in printed
    losses = {
        name: float(re.search(rf'{name}: .*ms/step.*loss ([\d.]+)', printed)[1])
        for name in nanogpt.SIDES
    }
    assert losses['nanoGPT'] < 3  # log 65 = 4.17: 20 steps on one batch were really taken
    assert losses['ours'] < 4.17
    median, least, most = map(
        float, re.search(r'ratio ([\d.]+) \(([\d.]+) to ([\d.]+)\)', printed).groups()
    )
    ratios = sorted(float(theirs) / float(ours) for ours, theirs in rounds)
    assert [least, median, most] == pytest.approx(ratios, rel=0.05, abs=0.01)


def test_refuses_to_compare_unlike_sizes(nanogpt):
    setup = {'recipe': TINY, 'overrides': ['config.model.num_layers=2']}
    with pytest.raises(SystemExit, match="config.model.num_layers=2 is not the recipe's 1"):
        nanogpt.make_ours(setup)


def test_needs_a_checkout(nanogpt, tmp_path, capsys):
    with pytest.raises(SystemExit):
        nanogpt.main([f'--nanogpt={tmp_path}'])
    assert 'the folder with model.py' in capsys.readouterr().err
