"""Finished workdirs compared by the command line."""

import json

import pytest

from gpt_jax.compare.__main__ import main
from tests.compare.written_runs import write_runs


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder of its own; returns the status and the words of the output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main(arguments)
        out = capsys.readouterr()
        return status, ' '.join((out.out + out.err).split())

    return run


def results(path):
    return json.loads(path.read_text(encoding='utf-8'))


def test_a_real_difference(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b', shift=-0.05, noise_seed=1, learning_rate=2e-3)
    status, text = compare('a', 'b', '--out', 'out.json')
    assert status == 0
    assert 'Real: eval/loss of b is 0.05' in text and 'lower than of a' in text
    found = results(tmp_path / 'out.json')
    (result,) = found['comparisons']
    assert result['verdict'] == 'real'
    assert result['steps_worth'] == pytest.approx(5, abs=0.3)  # 0.05 at 0.1 per ten steps
    steps, seconds = (found['reached']['b'][key] for key in ('steps', 'seconds'))
    assert [*seconds.values()] == pytest.approx([each / 5 for each in steps.values()])
    assert result['sentence'].split() == text[text.index('Real:') :].split()[:-3]


def test_the_tables_fit_the_terminal(tmp_path, capsys, monkeypatch):
    write_runs(tmp_path / 'quickstart')
    write_runs(tmp_path / 'quickstart-adamw', shift=0.05, noise_seed=1, seeds=range(5))
    for columns in (80, 120):
        monkeypatch.setenv('COLUMNS', str(columns))
        assert main([str(tmp_path / 'quickstart'), str(tmp_path / 'quickstart-adamw')]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= columns


def test_the_picture_shows_each_pair(tmp_path, compare):
    figure = pytest.importorskip('matplotlib.figure')
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b', shift=-0.05, noise_seed=1)
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure.Figure, 'savefig', lambda self, *_, **__: drawn.append(self))
        assert compare('a', 'b', '--plot', 'differences.png')[0] == 0
    (axes,) = drawn[0].axes
    assert max(len(line.get_xdata()) for line in axes.lines) == 5
    assert [label.get_text() for label in axes.get_yticklabels()] == ['b: real']
    compare('a', 'b', '--plot', 'differences.png')
    assert (tmp_path / 'differences.png').read_bytes().startswith(b'\x89PNG')


def test_steps_worth_changes_its_sign_with_the_sides(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b', shift=-0.05, noise_seed=1)
    worth = []
    for sides in ('ab', 'ba'):
        compare(*sides, '--out', 'out.json')
        worth.append(results(tmp_path / 'out.json')['comparisons'][0]['steps_worth'])
    assert worth[0] == -worth[1] > 0


def test_runs_that_never_reach_the_target_are_counted(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b', noise_seed=1)
    # The runs of seed s end at 2.6 + s / 50.
    _, text = compare('a', 'b', '--target', '2.65', '--out', 'out.json')
    assert '2 of 5' in text
    reached = results(tmp_path / 'out.json')['reached']['b']
    assert [reached['steps'][seed] is None for seed in '01234'] == [False] * 3 + [True] * 2
    assert reached['steps']['1'] == pytest.approx(37, abs=0.3)
    assert ' - - 5 of 5' in compare('a', 'b', '--target', '1')[1]


def test_a_metric_that_is_maximized(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b', shift=-0.05, noise_seed=1)
    up = ('--metric', 'eval/accuracy', '--direction', 'maximize', '--out', 'out.json')
    _, text = compare('a', 'b', *up)
    assert 'Real: eval/accuracy of b is 0.012' in text and 'higher than of a' in text
    found = results(tmp_path / 'out.json')
    assert found['comparisons'][0]['steps_worth'] == pytest.approx(5, abs=0.3)
    assert '0 of 5' in text
    _, text = compare('a', 'b', '--metric', 'eval/los')
    assert 'choose --metric from eval/accuracy, eval/loss, train/tokens' in text


def test_runs_against_themselves_are_identical_and_not_tested(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b')
    assert 'Identical: b and a' in compare('a', 'b')[1]
    assert not (tmp_path / 'a' / 'compared.json').exists()


def test_small_differences_are_not_real_only_within_the_margin(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b', noise_seed=1)
    assert 'Not real: b and a differ by less than 0.01' in compare('a', 'b')[1]
    text = compare('a', 'b', '--margin', '0.0001')[1]
    assert 'Undecided' in text and 'To see 0.0001 with a chance of 80% you need' in text


def test_sides_with_other_seeds_are_compared_too(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b', seeds=range(5, 10), noise_seed=1)
    assert 'Real' in compare('a', 'b')[1]  # the losses of these runs grow with the seed
    write_runs(tmp_path / 'c', seeds=range(1, 6))
    assert 'pairs need equal seeds, or none in common' in compare('a', 'c')[1]


def test_identical_and_diverged_sides_do_not_count_in_the_correction(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b')
    write_runs(tmp_path / 'c', noise_seed=1)
    write_runs(tmp_path / 'd', noise_seed=2, diverged=[0])
    p = []
    for sides in (('a', 'c'), ('a', 'b', 'd', 'c')):
        compare(*sides, '--out', 'out.json')
        p.append(results(tmp_path / 'out.json')['comparisons'][-1]['p_difference'])
    assert p[0] == p[1]


def test_diverged_runs_are_reported_and_nothing_is_tested(tmp_path, compare):
    write_runs(tmp_path / 'a')
    write_runs(tmp_path / 'b', shift=-0.05, noise_seed=1, diverged=[1, 3])
    status, text = compare('a', 'b', '--out', 'out.json')
    assert status == 0
    assert 'Diverged: 2 runs of b (seeds 1, 3) ended without a finite eval/loss.' in text
    assert 'The other 3 differ by -0.05' in text and 'nothing is tested' in text
    found = results(tmp_path / 'out.json')
    (result,) = found['comparisons']
    assert result['verdict'] == 'diverged' and result['p_difference'] is None
    assert [*result['differences']] == ['0', '2', '4']
    assert found['reached']['b']['steps']['1'] is None
    write_runs(tmp_path / 'c', diverged=range(5))
    assert '5 runs of c' in compare('a', 'c')[1]
    assert '5 runs of c' in compare('c', 'a')[1]
    assert 'a run of' not in compare('c', 'b')[1]


def test_more_seeds_after_a_test_are_refused_unless_planned(tmp_path, compare):
    def write(seeds):
        for root in ('', 'planned/'):
            write_runs(tmp_path / f'{root}a', seeds=seeds)
            write_runs(tmp_path / f'{root}b', seeds=seeds, noise_seed=1)

    planned = ('planned/a', 'planned/b', '--looks', '2', '--out', 'out.json', '--seeds')
    write(range(3))
    assert compare('a', 'b', '--seeds', '3')[0] == 0
    assert compare('a', 'b', '--seeds', '3')[0] == 0  # the same seeds are no new test
    assert compare(*planned, '3')[0] == 0
    write(range(3, 5))
    status, text = compare('a', 'b')
    assert status == 2 and 'already tested with the seeds [0, 1, 2]' in text
    assert compare('b', 'a')[0] == 2  # the other way round is the same test
    write_runs(tmp_path / 'c', noise_seed=2)
    assert compare('c', 'a', 'b')[0] == 0  # b against c and a against c: tests of other pairs
    assert compare('a', 'b', 'c')[0] == 2
    assert compare('a', 'b', '--looks', '2')[0] == 2
    assert '97.5 % interval' in compare(*planned, '5')[1]
    assert results(tmp_path / 'out.json')['level'] == 0.025
    write(range(5, 6))
    assert compare(*planned, '6')[0] == 2


def test_one_seed_shows_no_noise(tmp_path, compare):
    write_runs(tmp_path / 'a', seeds=[0])
    write_runs(tmp_path / 'b', seeds=[0], noise_seed=1)
    assert 'Undecided: one seed of b shows no noise' in compare('a', 'b', '--seeds', '1')[1]
    workdirs = ('x=a/seed_0', 'y=b/seed_0')
    assert 'Undecided: one seed of y' in compare(*workdirs, '--seeds', '1')[1]


def test_refusals(tmp_path, compare):
    write_runs(tmp_path / 'a')
    assert 'b is no config file (FILE.py) and no folder of runs' in compare('a', 'b')[1]
    write_runs(tmp_path / 'b', seeds=range(4))
    assert 'b has 4 seeds, not --seeds=5' in compare('a', 'b')[1]
    write_runs(tmp_path / 'c', seeds=[0])
    write_runs(tmp_path / 'd', seeds=[1], learning_rate=2e-3)
    (tmp_path / 'd' / 'seed_1').rename(tmp_path / 'c' / 'seed_1')
    (tmp_path / 'd').rmdir()
    assert 'differ in more than config.seed' in compare('c', 'x=c', '--seeds', '2')[1]
    write_runs(tmp_path / 'd', batches=3)
    assert 'a and d have different config.eval.batches (2 and 3)' in compare('a', 'd')[1]
    write_runs(tmp_path / 'e')
    metrics = tmp_path / 'e' / 'seed_2' / 'metrics.jsonl'
    metrics.write_text(''.join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert 'e/seed_2 is not finished' in compare('a', 'e')[1]
    metrics.unlink()
    assert 'e/seed_2 has no metrics.jsonl' in compare('a', 'e')[1]
