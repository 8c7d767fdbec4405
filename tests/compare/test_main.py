"""Finished workdirs compared by the command line."""

import json

import numpy as np
import pytest

from gpt_jax import files
from gpt_jax.compare.__main__ import main
from gpt_jax.config_tree import to_json
from tests.tiny_config import get_config

EVERY, LAST = 10, 40


def write_runs(folder, *, shift=0.0, seeds=range(5), noise_seed=0, learning_rate=1e-3):
    """Writes the files of finished runs whose losses fall by 0.1 per evaluation."""
    random = np.random.default_rng(noise_seed)
    for seed in seeds:
        config = get_config()
        config.seed, config.optimizer.learning_rate = seed, learning_rate
        workdir = folder / f'seed_{seed}'
        workdir.mkdir(parents=True)
        files.write_json(workdir / 'config.json', to_json(config))
        rows, tokens = [], config.train.batch_size * config.model.max_seq_len
        for step in range(EVERY, LAST + 1, EVERY):
            loss = 3 - step / 100 + seed / 50 + shift + random.normal(0, 0.001)
            speed = {'train/tokens': step * tokens, 'train/tokens_per_second': tokens * 5.0}
            rows += [{'step': step, **speed}, {'step': step, 'eval/loss': loss}]
        text = ''.join(json.dumps(row) + '\n' for row in rows)
        files.write_text(workdir / 'metrics.jsonl', text)


@pytest.fixture
def compare(tmp_path, capsys):
    def run(*arguments):
        names = [str(tmp_path / each) if each in 'abc' else each for each in arguments]
        status = main(names)
        out = capsys.readouterr()
        return status, out.out + out.err

    return run


def test_a_real_difference(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b', shift=-0.05, noise_seed=1, learning_rate=2e-3)
    status, text = compare('a', 'b')
    assert status == 0
    assert 'Real: eval/loss of b is 0.05' in text and 'lower than of a' in text
    assert max(map(len, text.splitlines()[:6])) <= 80
    (result,) = json.loads((tmp_path / 'compare_a_b.json').read_text())['results']
    assert result['verdict'] == 'real'
    assert result['steps_worth'] == pytest.approx(5, abs=0.3)  # 0.05 at 0.1 per ten steps
    assert result['seconds_to_target'] == pytest.approx(result['steps_to_target'] / 5)


def test_runs_against_themselves_are_identical_and_not_tested(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b')
    assert 'Identical: b and a' in compare('a', 'b')[1]


def test_small_differences_are_not_real_only_within_the_margin(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b', noise_seed=1)
    assert 'Not real: b and a differ by less than 0.01' in compare('a', 'b')[1]
    assert 'Undecided' in compare('a', 'b', '--margin', '0.0001')[1]


def test_identical_runs_do_not_count_in_the_correction(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b')
    write_runs(tmp_path / 'c', noise_seed=1)
    alone, both = tmp_path / 'alone.json', tmp_path / 'both.json'
    compare('a', 'c', '--output', str(alone))
    compare('a', 'b', 'c', '--output', str(both))
    p = [json.loads(x.read_text())['results'][-1]['p_difference'] for x in (alone, both)]
    assert p[0] == p[1]


def test_more_seeds_after_a_test_are_refused_unless_planned(tmp_path, compare):
    def write(seeds):
        write_runs(tmp_path / 'a', seeds=seeds)
        write_runs(tmp_path / 'b', seeds=seeds, noise_seed=1)

    write(range(3))
    assert compare('a', 'b', '--seeds', '3')[0] == 0
    assert compare('a', 'b', '--seeds', '3')[0] == 0  # the same seeds are no new test
    planned = ('--looks', '2', '--output', str(tmp_path / 'planned.json'))
    assert compare('a', 'b', *planned)[0] == 0
    write(range(3, 5))
    status, text = compare('a', 'b', '--seeds', '5')
    assert status == 2 and 'already tested with seeds [0, 1, 2]' in text
    assert compare('b', 'a', '--seeds', '5')[0] == 2  # the other way round is the same test
    assert compare('a', 'b', *planned)[0] == 0
    assert json.loads((tmp_path / 'planned.json').read_text())['level'] == 0.025
    write(range(5, 6))
    assert compare('a', 'b', *planned)[0] == 2


def test_refusals(tmp_path, compare):
    write_runs(tmp_path / 'a')
    assert 'b has no runs' in compare('a', 'b')[1]
    write_runs(tmp_path / 'b', seeds=range(4))
    assert 'b has no run with config.seed=4' in compare('a', 'b')[1]
    assert 'has 5 seeds, not --seeds=3' in compare('a', 'b', '--seeds', '3')[1]
    write_runs(tmp_path / 'c', seeds=[0])
    write_runs(tmp_path / 'd', seeds=[1], learning_rate=2e-3)
    (tmp_path / 'd' / 'seed_1').rename(tmp_path / 'c' / 'seed_1')
    assert 'differ in more than config.seed' in compare('a', 'c')[1]
    metrics = tmp_path / 'b' / 'seed_2' / 'metrics.jsonl'
    metrics.write_text(''.join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert 'has no eval/loss of its last step 40' in compare('a', 'b')[1]
