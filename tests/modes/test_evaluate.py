"""`--mode evaluate --tasks` and benchmarks during training, from the command line."""

import json
import pathlib
import shutil

import pytest

from gpt_jax.main import main
from tests.command_line import TINY, rows
from tests.evaluate.test_rows import blimp_row, write
from tests.pod import run_pod

PAIRS = 8
PIQA = [
    {'goal': f'Alice {i}', 'sol1': 'down' * i, 'sol2': 'up', 'label': i % 2} for i in range(1, 10)
]
ALL_ROWS = ('--mode=evaluate', '--tasks=blimp,piqa', '--task_limit=0')  # the run's limit is 5


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> pathlib.Path:
    """Rows of two benchmarks and a text."""
    folder = tmp_path_factory.mktemp('data')
    write(folder / 'blimp.jsonl', *[blimp_row(name, i) for i in range(PAIRS) for name in 'ab'])
    write(folder / 'piqa.jsonl', *PIQA)
    (folder / 'perplexity.txt').write_text('Alice was late. ' * 8, encoding='utf-8')
    return folder


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data) -> pathlib.Path:
    """The workdir of a run with benchmarks on the way."""
    workdir = tmp_path_factory.mktemp('runs') / 'tiny'
    arguments = [
        '--config.tokenizer.kind=byte',
        '--config.train.num_steps=8',
        '--config.model.num_layers=1',
        '--config.checkpoint.save_every=4',
        '--config.eval.tasks=blimp,perplexity',
        '--config.eval.tasks_every=4',
        f'--config.eval.task_data={data}',
        '--config.eval.task_limit=5',
    ]
    assert main([f'--config={TINY}', f'--workdir={workdir}', *arguments]) == 0
    return workdir


def evaluate(workdir, data, *arguments: str) -> dict[str, dict]:
    assert main([*ALL_ROWS, f'--workdir={workdir}', f'--task_data={data}', *arguments]) == 0
    return {
        path.stem: json.loads(path.read_text()) for path in (workdir / 'evaluations/8').iterdir()
    }


def test_benchmarks_during_training(trained, data):
    measured = {row['step']: row for row in rows(trained) if 'eval/blimp/acc' in row}
    assert list(measured) == [4, 8]
    names = ('acc', 'acc_stderr')
    expected = {f'{prefix}/blimp/{name}' for prefix in ('eval', 'eval_ema') for name in names}
    assert expected < set(measured[8])
    arguments = ['--tasks=blimp,perplexity', f'--workdir={trained}', '--task_limit=5']
    assert main(['--mode=evaluate', f'--task_data={data}', *arguments]) == 0
    for name in ('blimp', 'perplexity'):  # the same by the mode
        stored = json.loads((trained / f'evaluations/8-limit-5/{name}.json').read_text())
        for metric, value in stored['metrics'].items():
            assert measured[8][f'eval/{name}/{metric}'] == pytest.approx(value, rel=1e-5)


def test_a_table_and_files(trained, data, capsys):
    capsys.readouterr()
    shutil.rmtree(trained / 'evaluations', ignore_errors=True)
    stored = evaluate(trained, data)
    printed = capsys.readouterr().out
    assert f'{trained}, step 8\n' in printed
    lines = [' '.join(line.split()) for line in printed.splitlines()]
    for start in ('blimp 16 acc', 'piqa 9 acc_norm', 'blimp by paradigm (2)', 'b acc'):
        assert any(line.startswith(start) for line in lines), printed
    assert stored['piqa']['rows'] == 9
    assert set(stored['piqa']['metrics']) == {'acc', 'acc_stderr', 'acc_norm', 'acc_norm_stderr'}
    assert set(stored['blimp']['tables']) == {'paradigm', 'phenomenon', 'field'}


def test_what_is_done_is_not_done_again(trained, data, tmp_path, capsys):
    workdir = tmp_path / 'run'
    shutil.copytree(trained, workdir)
    evaluate(workdir, data)
    path = workdir / 'evaluations' / '8' / 'piqa.json'
    forged = json.loads(path.read_text()) | {'rows': 12345}
    path.write_text(json.dumps(forged))
    capsys.readouterr()
    assert evaluate(workdir, data)['piqa']['rows'] == 12345, 'read, not run'
    printed = capsys.readouterr().out
    assert 'piqa is done already' in printed
    assert '12,345' in printed
    assert evaluate(workdir, data, '--again')['piqa']['rows'] == 9
    for change in ('--task_limit=3', '--weights=ema', '--step=4'):
        path.write_text(json.dumps(forged))
        evaluate(workdir, data, change)
        folder = {'--weights=ema': '8-ema', '--step=4': '4'}.get(change, '8-limit-3')
        stored = json.loads((workdir / 'evaluations' / folder / 'piqa.json').read_text())
        assert stored['rows'] == (3 if change == '--task_limit=3' else 9), change
        if change == '--task_limit=3':
            assert json.loads(path.read_text()) == forged, 'the result of all rows stays'


def test_wrong_input_is_one_line(trained, data, tmp_path, capsys):
    def error(*arguments: str) -> str:
        capsys.readouterr()
        assert main(['--mode=evaluate', f'--workdir={trained}', *arguments]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        return line

    assert "--tasks: 'piqua' is not a task; did you mean piqa?" in error('--tasks=piqua')
    assert 'has nothing called sciq; give a file sciq*.jsonl' in error(
        '--tasks=sciq', f'--task_data={data}'
    )
    assert 'piqa needs its rows' in error('--tasks=piqa', '--task_data=')
    assert 'one of --tasks, --harness and --text' in error('--tasks=piqa', '--text=x')
    assert '--task_limit=-1: -1 is not an integer in the range' in error(
        '--tasks=piqa', '--task_limit=-1', f'--task_data={data}'
    )
    assert 'config.eval.stride=99 must be at most config.model.max_seq_len=32' in error(
        '--tasks=perplexity', f'--task_data={data}', '--config.eval.stride=99'
    )
    before = rows(trained)
    arguments = [f'--config={TINY}', '--config.eval.tasks=blimp', f'--workdir={tmp_path / "new"}']
    capsys.readouterr()
    assert main(arguments) == 2
    assert 'blimp needs its rows' in capsys.readouterr().err
    assert not (tmp_path / 'new' / 'metrics.jsonl').exists(), 'refused before the first step'
    assert rows(trained) == before


@pytest.mark.slow
def test_two_processes_and_two_devices(trained, data, tmp_path):
    alone = evaluate(trained, data, '--again')
    workdir = tmp_path / 'run'
    shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns('evaluations'))
    arguments = [*ALL_ROWS, f'--workdir={workdir}', f'--task_data={data}', '--config.mesh.data=-1']
    output = run_pod('2x1', *arguments)
    assert '[0] ' in output
    assert '[1] ' not in output, 'one process prints'
    for name, stored in alone.items():
        other = json.loads((workdir / f'evaluations/8/{name}.json').read_text())
        for metric, value in stored['metrics'].items():
            assert other['metrics'][metric] == pytest.approx(value, rel=1e-5), name
    again = run_pod('2x1', *arguments)
    assert 'blimp is done already' in again


@pytest.mark.parametrize('position', ['alibi', 'rope', 'sinusoidal', 'none', 'learned'])
def test_another_context_than_the_trained_one(position, tmp_path, capsys):
    """The same numbers as of a run that says it was trained with it; learned positions end."""
    workdir, longer = tmp_path / 'run', tmp_path / 'longer'
    knobs = [f'--config.model.position={position}', '--config.train.num_steps=2']
    assert main([f'--config={TINY}', f'--workdir={workdir}', *knobs]) == 0
    arguments = ['--mode=evaluate', f'--workdir={workdir}', '--config.model.max_seq_len=96']
    capsys.readouterr()
    if position == 'learned':
        assert main(arguments) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert 'config.model.max_seq_len=96' in line and 'learned positions end there' in line
        return
    assert main(arguments) == 0
    found = json.loads((workdir / 'eval.json').read_text())
    shutil.copytree(workdir, longer)
    stored = json.loads((longer / 'config.json').read_text())
    stored['model']['max_seq_len'] = 96
    (longer / 'config.json').write_text(json.dumps(stored))
    for other in (longer, workdir):
        assert main(['--mode=evaluate', f'--workdir={other}']) == 0
    expected, shorter = (json.loads((each / 'eval.json').read_text()) for each in (longer, workdir))
    assert found == expected
    assert found['tokens'] == shorter['tokens']
    assert found['loss'] != shorter['loss']


def test_what_8_bit_weights_cost(trained, capsys):
    perplexities = []
    for flags in ([], ['--config.sample.weight_dtype=int8']):
        capsys.readouterr()
        assert main(['--mode=evaluate', f'--workdir={trained}', *flags]) == 0
        title = 'step 8-int8, validation' if flags else 'step 8, validation'
        assert title in capsys.readouterr().out
        perplexities.append(json.loads((trained / 'eval.json').read_text())['perplexity'])
    exact, rounded = perplexities
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=5e-3)
