"""The command line as users type it: the modes, and one clear line for every wrong input."""

import io
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import jax
import pytest

from gpt_jax import GPT
from gpt_jax.config import RunConfig
from gpt_jax.config_tree import flatten, to_json
from gpt_jax.errors import UserError
from gpt_jax.main import main
from gpt_jax.parallel import peers
from gpt_jax.telemetry import streams
from gpt_jax.train import trainer
from tests.command_line import ROOT, TINY, Command, fingerprints, rows, run_anew
from tests.tiny_config import TEXT


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> pathlib.Path:
    """The workdir of a finished tiny run."""
    workdir = tmp_path_factory.mktemp('runs') / 'tiny'
    assert main([f'--config={TINY}', f'--workdir={workdir}']) == 0
    return workdir


def _error(capsys, *arguments: str) -> str:
    """Runs `main`, expects status 2 and exactly one line on stderr; returns it."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith('error: ')
    return lines[0]


def test_train_leaves_what_scripts_rely_on(trained):
    table = rows(trained)
    steps = [row['step'] for row in table if 'train/loss' in row]
    assert steps == list(range(2, 41, 2))
    assert [row['step'] for row in table if 'eval/loss' in row] == [10, 20, 30, 40]
    row = next(row for row in table if 'train/loss' in row)
    assert {'train/accuracy', 'train/grad_norm', 'train/param_norm', 'train/learning_rate'} < set(
        row
    )
    assert {'eval/perplexity', 'eval/bits_per_byte', 'eval_ema/loss'} < set(table[-1])
    config = json.loads((trained / 'config.json').read_text())
    assert config['optimizer']['_type'] == 'AdamW'
    assert config['model']['d_ff'] == 128
    provenance = json.loads((trained / 'provenance.json').read_text())
    assert set(provenance) == {'command', 'overrides', 'git_commit', 'environment', 'data'}
    assert re.fullmatch(r'\d+ x cpu', provenance['environment']['devices'])
    assert provenance['environment']['jax'] == jax.__version__
    assert list((trained / 'tensorboard').iterdir())
    first, last = (row['train/loss'] for row in (table[0], table[-2]))
    assert last < first


def test_a_complete_run_says_so(trained, capsys):
    before = rows(trained)
    assert main([f'--config={TINY}', f'--workdir={trained}']) == 0
    assert 'is complete: 40 steps' in capsys.readouterr().out
    assert rows(trained) == before


def test_evaluate(trained, capsys, tmp_path):
    assert main(['--mode=evaluate', f'--workdir={trained}']) == 0
    whole = json.loads((trained / 'eval.json').read_text())
    assert 'bits_per_byte' in capsys.readouterr().out
    assert {'loss', 'perplexity', 'bits_per_byte', 'tokens'} <= set(whole)
    text = TEXT.read_text(encoding='utf-8')
    assert whole['tokens'] == len(text) - int(len(text) * 0.8) - 1
    assert main(['--mode=evaluate', f'--workdir={trained}', '--step=best', '--weights=ema']) == 0
    averaged = json.loads((trained / 'eval.json').read_text())
    assert averaged['loss'] != whole['loss']
    (tmp_path / 'some.txt').write_text('Alice was late', encoding='utf-8')
    assert main(['--mode=evaluate', f'--workdir={trained}', f'--text={tmp_path / "some.txt"}']) == 0
    assert json.loads((trained / 'eval.json').read_text())['tokens'] == 13


def test_generate(trained, capsys, tmp_path):
    arguments = ['--mode=generate', f'--workdir={trained}', '--max_new_tokens=12', '--seed=3']

    def text(*more: str) -> str:
        capsys.readouterr()
        assert main([*arguments, *more]) == 0
        return capsys.readouterr().out

    streamed = text('--prompt=Alice ')
    assert streamed.startswith('Alice ')
    assert len(streamed.rstrip('\n')) <= len('Alice ') + 12
    assert text('--prompt=Alice ') == streamed, 'a seed gives the same text'
    (tmp_path / 'prompt.txt').write_text('Alice ', encoding='utf-8')
    assert text(f'--prompt_file={tmp_path / "prompt.txt"}') == streamed
    assert text('--prompt=Alice ', '--num_samples=3').count('--- sample') == 3
    assert text('--prompt=Alice ', '--prompt=Down', '--temperature=0').count('--- sample') == 2
    assert 'e' not in text('--prompt=Alic', '--stop=e', '--temperature=0')
    capsys.readouterr()
    assert main([*arguments, '--prompt=Alice ', '--draft_tokens=3']) == 0
    with_drafts = capsys.readouterr()
    assert with_drafts.out == streamed
    assert ' a pass, ' in with_drafts.err and 'of the drafts accepted' in with_drafts.err


def test_prepare(capsys):
    assert main([f'--config={TINY}', '--mode=prepare']) == 0
    assert 'validation' in capsys.readouterr().out
    assert main([f'--config={TINY}', '--mode=prepare', '--config.data.split=hash:0']) == 0
    output = capsys.readouterr().out
    assert 'train' in output and 'validation' not in output


def test_fresh_starts_over(tmp_path, capsys):
    arguments = [f'--config={TINY}', f'--workdir={tmp_path}', '--config.train.num_steps=4']
    assert main(arguments) == 0
    before = rows(tmp_path)
    assert main([*arguments, '--fresh']) == 0
    assert 'resuming' not in capsys.readouterr().out
    assert rows(tmp_path) == before


def test_workdir_alone_trains_on(tmp_path, capsys):
    assert main([f'--config={TINY}', f'--workdir={tmp_path}', '--config.train.num_steps=4']) == 0
    assert main([f'--workdir={tmp_path}', '--config.train.num_steps=6']) == 0
    assert 'config.train.num_steps: 4 -> 6' in capsys.readouterr().out
    assert rows(tmp_path)[-1]['step'] == 6


def test_length_in_epochs_and_tokens(tmp_path):
    arguments = [f'--config={TINY}', '--config.train.log_every=1', '--config.eval.every=0']
    main([*arguments, f'--workdir={tmp_path / "a"}', '--config.train.num_tokens=700'])
    assert rows(tmp_path / 'a')[-1]['step'] == 3  # 256 tokens a step
    main([*arguments, f'--workdir={tmp_path / "b"}', '--config.train.num_epochs=0.5'])
    text = TEXT.read_text(encoding='utf-8')
    assert rows(tmp_path / 'b')[-1]['step'] == -(-int(len(text) * 0.8) // 512)


def test_help_explains_each_mode(capsys):
    assert main(['--help']) == 0
    output = capsys.readouterr().out
    for word in ('train ', 'prepare ', 'evaluate ', 'generate ', '--fresh', '--prompt', '--step'):
        assert word in output
    assert max(map(len, output.splitlines())) <= 80


def test_help_lists_each_knob_with_type_value_and_comment(capsys):
    assert main(['--help', f'--config={TINY}', '--mode=generate']) == 0
    output = capsys.readouterr().out
    words = ' '.join(output.split())
    assert '.batch_size=8 int: sequences per step, over all devices' in words
    assert '.norm=layernorm layernorm|rmsnorm' in words
    assert '--temperature' in output and '--benchmark_steps' not in output
    for key in flatten(to_json(RunConfig())):
        if not key.endswith('._type') and not key.startswith('config.optimizer'):
            assert f'  .{key.rpartition(".")[2]}=' in output, key


WRONG = {
    'nothing': ([], '--config FILE.py'),
    'no such config': (['--config=configs/none.py'], '--config=configs/none.py: no such file'),
    'no such variant': ([f'--config={TINY}:adm'], 'unknown variant :adm; this file has :adamw'),
    'near a config': (['--config=configs/quickstrat.py'], 'did you mean configs/quickstart.py?'),
    'no such mode': (
        [f'--config={TINY}', '--mode=trian'],
        '--mode=trian is not a mode; did you mean train?',
    ),
    'optimizer by flag': (
        [f'--config={TINY}', '--config.optimizer=lyon'],
        "config.optimizer='lyon' is not one of adamw, lion, adafactor, muon, sgd",
    ),
    'value for a branch': (
        [f'--config={TINY}', '--config.model=3'],
        'config.model holds knobs and takes no value: set config.model.vocab_size',
    ),
    'no such flag': ([f'--config={TINY}', '--foo=1'], 'foo'),
    'stray word': ([f'--config={TINY}', 'train'], "unexpected argument 'train'"),
    'unknown key': ([f'--config={TINY}', '--config.model.d_modl=3'], 'did you mean d_model?'),
    'key below a value': ([f'--config={TINY}', '--config.seed.x=3'], 'config.seed is a value'),
    'wrong type': ([f'--config={TINY}', '--config.model.d_model=abc'], 'config.model.d_model=abc'),
    'wrong choice': ([f'--config={TINY}', '--config.model.norm=x'], 'layernorm|rmsnorm'),
    'wrong tuple': ([f'--config={TINY}', '--config.model.window_pattern=(1,x)'], 'layer_kinds'),
    'shape': (
        [f'--config={TINY}', '--config.model.d_model=33'],
        'config.model.d_model=33 is not divisible by config.model.num_heads=2',
    ),
    'heads': ([f'--config={TINY}', '--config.model.num_kv_heads=3'], 'config.model.num_kv_heads=3'),
    'accumulation': (
        [f'--config={TINY}', '--config.train.grad_accumulation=3'],
        'config.train.grad_accumulation=3',
    ),
    'small vocabulary': (
        [f'--config={TINY}', '--config.model.vocab_size=10'],
        'config.model.vocab_size=10 is smaller than the tokenizer',
    ),
    'missing corpus': (
        [f'--config={TINY}', '--config.data.source=/nowhere/text.txt'],
        '/nowhere/text.txt',
    ),
    'no such corpus': ([f'--config={TINY}', '--config.data.corpus=txt'], 'config.data.corpus'),
    'source without its corpus': (
        [f'--config={TINY}', '--config.data.corpus=python_stdlib'],
        'set config.data.corpus=text to read',
    ),
    'no such sink': ([f'--config={TINY}', "--config.train.sinks=('csv',)"], 'csv'),
    'kernel that cannot run': (
        [f'--config={TINY}', '--config.model.execution.attention_kernel=cudnn'],
        'config.model.execution.attention_kernel=cudnn',
    ),
    'text shorter than a window': (
        [f'--config={TINY}', '--config.model.max_seq_len=100000'],
        'config.model.max_seq_len',
    ),
    'learning rate': ([f'--config={TINY}', '--config.optimizer.learning_rate=0'], 'learning_rate'),
    'character of the sample': (
        [f'--config={TINY}', '--config.sample.prompt=§'],
        "config.sample.prompt: character '§' (U+00A7",
    ),
    'long sample': (
        [f'--config={TINY}', f'--config.sample.prompt={"a" * 33}'],
        'config.sample.prompt has 33 tokens, the context holds 32',
    ),
    'character of a benchmark': (
        [
            f'--config={TINY}',
            '--config.eval.tasks=perplexity',
            f'--config.eval.task_data={ROOT / "tests/golden/losses.txt"}',
        ],
        'perplexity: character',
    ),
    'no validation': (
        [f'--config={TINY}', '--config.data.split=hash:0'],
        'config.data.split=hash:0 leaves nothing to validate on',
    ),
    'negative clipping': (
        [f'--config={TINY}', '--config.optimizer.clip_norm=-1'],  # the key has moved
        'config.train.clip_norm=-1.0 must not be negative',
    ),
    'no chunk': ([f'--config={TINY}', '--config.train.loss_chunk_bytes=-1'], 'loss_chunk_bytes=-1'),
    'average of bfloat16': (
        [f'--config={TINY}', '--config.model.precision.params=bfloat16'],
        'config.train.ema_decay=0.9 needs config.model.precision.params=float32',
    ),
    'two lengths': (
        [f'--config={TINY}', '--config.train.num_steps=9', '--config.train.num_epochs=3'],
        'config.train.num_steps follows from config.train.num_epochs=3: set that one',
    ),
    'no run': (['--mode=generate', '--workdir=/nowhere/run'], '/nowhere/run'),
}


@pytest.mark.parametrize('arguments, expected', WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_line(arguments, expected, capsys, tmp_path):
    if arguments and not any(argument.startswith('--workdir') for argument in arguments):
        arguments = [*arguments, f'--workdir={tmp_path / "run"}']
    assert expected in _error(capsys, *arguments)
    assert not (tmp_path / 'run').exists(), 'a refused run left something'


@pytest.mark.parametrize(
    ('content', 'expected'),
    [(b'', 'config.data.source has no text'), (b'abc \xff\xfe def' * 100, 'text.txt is not')],
    ids=['empty corpus', 'not UTF-8'],
)
def test_wrong_text(content, expected, capsys, tmp_path):
    (tmp_path / 'text.txt').write_bytes(content)
    line = _error(
        capsys,
        f'--config={TINY}',
        f'--workdir={tmp_path / "run"}',
        f'--config.data.source={tmp_path / "text.txt"}',
        f'--config.data.cache_dir={tmp_path / "cache"}',
    )
    assert expected in line


def test_wrong_uses_of_a_run(trained, capsys, tmp_path):
    generate = ['--mode=generate', f'--workdir={trained}']
    assert '33 tokens, the context holds 32' in _error(capsys, *generate, '--prompt', 'a' * 33)
    assert 'U+00A7' in _error(capsys, *generate, '--prompt=§')
    assert 'there is no checkpoint of step 7' in _error(capsys, *generate, '--step=7')
    assert 'config.sample.top_p' in _error(capsys, *generate, '--top_p=2')
    assert f'config.model.num_layers=3, but the run in {trained} has 2' in _error(
        capsys, *generate, '--config.model.num_layers=3'
    )
    assert '--out=gs://bucket/run: name a folder of this machine' in _error(
        capsys, '--mode=export', f'--workdir={trained}', '--out=gs://bucket/run'
    )
    assert '--prompt_file: cannot read /nowhere' in _error(
        capsys, *generate, '--prompt_file=/nowhere'
    )
    train = [f'--config={TINY}', f'--workdir={trained}', '--config.train.num_steps=50']
    assert 'config.train.batch_size: 8 -> 4' in _error(
        capsys, *train, '--config.train.batch_size=4'
    )
    assert 'shape' in _error(capsys, *train, '--config.model.d_model=64')
    assert 'tokenizer' in _error(
        capsys, *train, '--config.tokenizer.kind=byte', '--config.model.vocab_size=512'
    )
    GPT.load(trained).save(tmp_path)
    assert f'--config.train.init_from={tmp_path}' in _error(capsys, f'--workdir={tmp_path}')


def test_how_a_run_is_computed_can_be_chosen(trained):
    losses = []
    for dtype in ('float32', 'bfloat16'):
        arguments = [f'--workdir={trained}', f'--config.model.precision.compute={dtype}']
        # The architecture that it has may be said again.
        assert main(['--mode=evaluate', *arguments, '--config.model.num_layers=2']) == 0
        losses.append(json.loads((trained / 'eval.json').read_text())['loss'])
    assert 0 < abs(losses[1] - losses[0]) < 0.02


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match='no such file'):
        main(['--config=configs/none.py', '--debug'])


def test_a_second_writer_is_refused(tmp_path, capsys):
    arguments = [f'--config={TINY}', f'--workdir={tmp_path}']
    with Command(*arguments, '--config.train.num_steps=100000') as other:
        while not (tmp_path / 'config.json').exists():
            assert other.poll() is None, other.output()
            time.sleep(0.01)
        assert f'in use by process {other.pid}' in _error(capsys, *arguments)


def test_full_disk(tmp_path):
    """A limit on the size of files stands for the disk: the run ends in one line."""
    process = subprocess.run(
        [
            'bash',
            '-c',
            'ulimit -f 20; exec "$@"',
            'bash',
            os.sys.executable,
            '-m',
            'gpt_jax.main',
            f'--config={TINY}',
            f'--workdir={tmp_path}',
            '--config.runtime.compilation_cache=false',
        ],
        env={k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 2, process.stdout + process.stderr
    assert process.stderr.strip().splitlines()[-1].startswith('error: cannot write')
    assert 'Traceback' not in process.stderr
    assert not [path for path in (tmp_path / 'checkpoints').glob('*') if path.name.isdecimal()]


def test_runs_as_a_module(tmp_path):
    assert 'usage:' in run_anew('--help')
    assert 'error: ' in run_anew('--config=nothing.py', status=2)


def test_prompt_from_stdin(trained, capsys, monkeypatch):
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(b'Alice ')))
    arguments = ['--mode=generate', f'--workdir={trained}', '--max_new_tokens=3', '--prompt=-']
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith('Alice ')


def test_attention_within_documents(tmp_path, capsys):
    arguments = [f'--config={TINY}', '--config.train.num_steps=2', '--config.data.segment_ids=true']
    separated = TEXT.read_text(encoding='utf-8').replace('\n\n', '<|endoftext|>')
    (tmp_path / 'text.txt').write_text(separated, encoding='utf-8')
    arguments += [
        f'--config.data.source={tmp_path / "text.txt"}',
        '--config.data.separator=<|endoftext|>',
    ]
    assert main([*arguments, f'--workdir={tmp_path / "run"}']) == 0
    assert main(['--mode=evaluate', f'--workdir={tmp_path / "run"}']) == 0


def test_a_damaged_checkpoint_is_set_aside(tmp_path, capsys):
    """One flipped bit in the newest checkpoint: the run goes on from the one before, exactly."""
    whole, damaged = tmp_path / 'whole', tmp_path / 'damaged'
    assert main([f'--config={TINY}', f'--workdir={whole}']) == 0
    assert main([f'--config={TINY}', f'--workdir={damaged}']) == 0
    arrays = [path for path in (damaged / 'checkpoints/40/params').rglob('*') if path.is_file()]
    largest = max(arrays, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    capsys.readouterr()
    assert main([f'--config={TINY}', f'--workdir={damaged}']) == 0
    output = capsys.readouterr().out
    assert 'checkpoints/40 is damaged' in output
    assert 'resuming at step 30' in output
    assert rows(damaged) == rows(whole)
    assert fingerprints(damaged, 40) == fingerprints(whole, 40)


def test_a_run_that_diverges_stops_and_keeps_what_was_good(tmp_path, capsys):
    line = _error(
        capsys,
        f'--config={TINY}',
        f'--workdir={tmp_path}',
        '--config.optimizer.learning_rate=1e30',
        '--config.optimizer.clip_norm=0',
        '--config.train.max_bad_steps=3',
        '--config.train.steps_per_call=1',
    )
    assert '3 steps in a row up to step' in line
    assert 'config.optimizer.learning_rate' in line
    step = int(line.split('up to step ')[1].split()[0])
    assert not [path for path in (tmp_path / 'checkpoints').glob('*') if path.name.isdecimal()]
    assert rows(tmp_path)[-1]['step'] <= step


def test_a_prompt_is_marked_on_a_terminal(trained, capsys, monkeypatch):
    arguments = ['--mode=generate', f'--workdir={trained}', '--max_new_tokens=4', '--prompt=Al']
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith('\033[1mAl\033[0m')
    monkeypatch.setenv('NO_COLOR', '1')
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith('Al')


def test_a_reader_that_leaves_ends_what_only_prints(trained, monkeypatch, capsys):
    """As SIGPIPE does, and silently; a training run goes on (test_streams)."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, 'w', encoding='utf-8') as file:
        monkeypatch.setattr(sys, 'stdout', streams.guarded(file))
        assert main(['--mode=generate', f'--workdir={trained}', '--max_new_tokens=4']) == 141
        monkeypatch.undo()
    assert capsys.readouterr().err == ''


def test_going_back_and_what_a_run_warns_of(tmp_path, capsys):
    run = [f'--config={TINY}', f'--workdir={tmp_path}', '--config.train.num_steps=20']
    run.append('--config.sample.at_end=True')
    assert main([*run, '--config.schedule.warmup_steps=30']) == 0
    assert 'the learning rate reaches 0.000387 only' in capsys.readouterr().out
    assert (tmp_path / 'samples' / '20.txt').read_text(encoding='utf-8').strip()
    before = rows(tmp_path)
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b''.join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert main([*run, '--config.schedule.warmup_steps=30', '--resume_step=10']) == 0
    printed = capsys.readouterr().out
    assert 'resuming at step 10' in printed
    assert 'has lost its rows after step 4, up to step 10' in printed
    assert rows(tmp_path) == before[:2] + [row for row in before if row['step'] > 10]


def test_a_validation_split_that_is_too_short_is_refused_at_the_start(
    tmp_path, capsys, monkeypatch
):
    def refuse(*_, **__):
        raise UserError('val has 1 tokens')

    monkeypatch.setattr(trainer, 'eval_batches', refuse)
    arguments = [f'--config={TINY}', f'--workdir={tmp_path / "run"}']
    assert main([*arguments, '--config.train.num_steps=2']) == 2
    captured = capsys.readouterr()
    assert 'val has 1 tokens' in captured.err
    assert 'compiling' not in captured.out


@pytest.mark.parametrize(
    ('error', 'status'),
    [
        (jax.errors.JaxRuntimeError('UNKNOWN: Gloo AllReduce failed: Connection reset'), 75),
        (ValueError('UNKNOWN: Gloo AllGather failed: Connection reset by peer'), 75),
        (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory'), 1),
        (ValueError('an axis is too long'), 1),
    ],
)
def test_the_error_of_a_lost_process_asks_for_another_start(monkeypatch, capsys, error, status):
    def fail(argv, *, debug):
        raise error

    ended = []
    monkeypatch.setattr('gpt_jax.main._main', fail)
    monkeypatch.setattr(peers, 'num_processes', lambda: 2)
    monkeypatch.setattr(peers, 'wait_for_termination', lambda: None)
    monkeypatch.setattr(peers, 'fail', lambda status, reason: ended.append(status))
    assert main([]) == status and ended == [status]
    assert type(error).__name__ in capsys.readouterr().err
