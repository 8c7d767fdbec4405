import json

import pytest

pytest.importorskip('optuna')

import optuna

from gpt_jax.errors import UserError
from gpt_jax.sweep import results, worker
from gpt_jax.sweep.definition import Trial
from tests.sweep.fake_runs import STEPS, FakeRuns


def choose(trial) -> Trial:
    x = trial.suggest_float('x', 1e-3, 1, log=True)
    kind = trial.suggest_categorical('kind', ['plain', 'odd'])
    trial.suggest_categorical('width', [64, 4096])
    return Trial(variant=kind, overrides={'x': x})


@pytest.fixture
def shared(monkeypatch, tmp_path):
    """A study with a complete, a pruned and a failed trial, and one that runs."""
    runs = FakeRuns(monkeypatch, tmp_path / 'sweep')
    grid = {'x': [0.5, 0.25, 0.75], 'kind': ['odd'], 'width': [64]}
    pruner = optuna.pruners.ThresholdPruner(upper=1.6)

    def crash(x, step):
        if x == 0.75:
            raise RuntimeError('no device')

    runs.before = crash
    runs.loss = lambda x, step: x + 1 / step + (x == 0.25)
    shared = runs.share(suggest=choose, grid=grid, pruner=pruner, retries=0)
    worker.run_trials(shared, trials=3, report=lambda: None)
    shared.study.ask()
    return shared


def test_the_record_of_a_trial_has_all_facts(shared):
    found = results.collect(shared)
    assert [str(each['state']) for each in found['trials']] == [
        *('complete', 'pruned', 'failed', 'running')
    ]
    assert found['best'] == 0 and found['metric'] == 'eval/loss'
    assert found['knobs'] == {
        'x': {'choices': None, 'log': True},
        'kind': {'choices': ['plain', 'odd'], 'log': False},
        'width': {'choices': None, 'log': True},
    }
    assert {'optuna', 'jax', 'python', 'code'} <= set(found['versions'])
    complete, pruned, failed, _ = found['trials']
    assert complete['params'] == {'x': 0.5, 'kind': 'odd', 'width': 64}
    assert complete['value'] == 0.5 + 1 / STEPS == complete['curve'][str(STEPS)]
    assert (shared.folder / complete['metrics']).is_file()
    assert complete['command'].startswith('python -m gpt_jax.main --config x.py:odd --workdir ')
    assert complete['machine'] and complete['date'] and complete['seconds'] > 0
    assert pruned['value'] is None and 'at step 1' in pruned['reason']
    assert failed['reason'] == 'no device'


def test_other_columns_and_the_time_of_training_are_kept(tmp_path):
    """A run writes all rows; the record has those that the sweep file names."""
    rows = [
        {'step': 5, 'train/tokens': 50, 'train/tokens_per_second': 10, 'eval/accuracy': 0.5},
        {'step': 10, 'train/tokens': 100, 'train/tokens_per_second': 5, 'eval/accuracy': None},
    ]
    path = tmp_path / 'sweep/trials/0/metrics.jsonl'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (path.parent / 'provenance.json').write_text('{"data": "abc"}')
    curves = results.read_columns(path.parent, ['eval/accuracy', 'eval/none'])
    assert curves == {
        'columns': {'eval/accuracy': {'5': 0.5, '10': None}, 'eval/none': {}},
        'training_seconds': {'5': 5.0, '10': 15.0},
    }
    assert results.read_columns(tmp_path, []) == {'columns': {}, 'training_seconds': {}}


def test_the_answer_is_written_when_no_trial_is_left(monkeypatch, tmp_path):
    def answer(found, folder):
        (folder / 'figure.txt').write_text('drawn')
        return {'best': found['trials'][found['best']]['params']['x'], 'finding': 'a text'}

    runs = FakeRuns(monkeypatch, tmp_path / 'sweep')
    shared = runs.share(grid={'x': [0.5, 0.25]}, answer=answer)
    worker.run_trials(shared, trials=1, report=lambda: None)
    assert results.answer(shared, trials=2) is None
    worker.run_trials(shared, trials=2, report=lambda: None)
    found = results.answer(shared, trials=2)
    assert found == {'best': 0.25, 'finding': 'a text'}
    assert results.format_answer(found).split() == [
        'answer',
        'best',
        '0.25',
        'finding',
        'a',
        'text',
    ]
    assert json.loads((runs.folder / 'results.json').read_text())['answer'] == found
    assert (runs.folder / 'figure.txt').is_file()
    wrong = runs.share(grid={'x': [0.5, 0.25]}, answer=lambda found, folder: found['nothing'])
    with pytest.raises(UserError, match="^sweep.answer: KeyError: 'nothing'"):
        results.answer(wrong, trials=2)
    assert results.answer(runs.share(), trials=2) is None


def test_files_are_written_during_the_sweep_and_after(shared):
    found = results.collect(shared)
    written = results.write(shared, found)
    assert json.loads(written[0].read_text()) == json.loads(json.dumps(found))
    assert [path.name for path in written][:2] == ['results.json', 'results.html']


def test_the_picture_is_drawn(shared):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    picture = results.write_all(shared)[-1]
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_the_table_has_the_best_trials_and_the_time_left(shared):
    table = results.format_progress(results.collect(shared), trials=10)
    title, header, running, best, *_ = table.splitlines()
    assert title.startswith('fake: 3 of 10 trials (1 running, 1 complete, 1 pruned, 1 failed), ')
    assert title.endswith(' min left')
    assert header.split() == ['trial', 'state', 'eval/loss', 'x', 'kind', 'width', 'time']
    assert running.split()[:2] == ['3', 'running']
    assert best.split()[:6] == ['0', '*', 'complete', '0.6111', '0.5', 'odd']


def test_a_long_table_is_cut(monkeypatch, tmp_path):
    runs = FakeRuns(monkeypatch, tmp_path / 'sweep')
    shared = runs.share(direction='maximize')
    worker.run_trials(shared, trials=15, report=lambda: None)
    lines = results.format_progress(results.collect(shared), trials=15).splitlines()
    assert len(lines) == 2 + 12 + 1 and lines[-1] == '  and 3 more in results.json'
    values = [float(line.replace('*', '').split()[2]) for line in lines[2:-1]]
    assert values == sorted(values, reverse=True)
    assert ' left' not in lines[0]
