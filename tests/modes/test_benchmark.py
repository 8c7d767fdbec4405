"""`--mode benchmark` as a user types it."""

import json

from gpt_jax.main import main
from tests.command_line import TINY

SHORT = [
    '--benchmark_warmup=1',
    '--benchmark_groups=2',
    '--benchmark_steps=2',
    '--config.train.steps_per_call=2',
]


def _benchmark(tmp_path, *arguments: str) -> int:
    return main(
        [
            '--mode=benchmark',
            f'--config={TINY}',
            f'--workdir={tmp_path / "run"}',
            *SHORT,
            *arguments,
        ]
    )


def test_measures_without_data_and_writes_only_what_is_asked(tmp_path, capsys):
    out = tmp_path / 'out.json'
    arguments = ['--config.model.vocab_size=65', '--config.data.source=/nowhere']
    assert _benchmark(tmp_path, *arguments, f'--benchmark_out={out}') == 0
    printed = capsys.readouterr().out
    assert 'median of 2 groups of 2 steps' in printed
    assert 'no published peak' in printed
    report = json.loads(out.read_text())
    assert report['step_ms'] > 0
    assert report['tokens_per_second'] > 0
    assert report['mfu'] is None
    assert report['data'] == 'random tokens'
    assert report['overrides']['model.vocab_size'] == 65
    assert report['config']['model']['d_ff'] == 128
    assert report['machine']['device_kind'] == 'cpu'
    assert report['machine']['device_count'] == 1
    assert list(report['start_up_seconds']) == [
        *('imports', 'devices', 'program', 'initialise', 'trace and lower', 'compile'),
        'first call',
    ]
    assert 'profile' not in report
    assert [path.name for path in tmp_path.iterdir()] == ['out.json']


def test_the_runs_data(tmp_path, capsys):
    out = tmp_path / 'out.json'
    assert _benchmark(tmp_path, '--benchmark_data', f'--benchmark_out={out}') == 0
    report = json.loads(out.read_text())
    assert report['data'] == 'pipeline'
    assert report['data_wait_seconds'] > 0
    assert report['start_up_seconds']['data'] > 0
    assert not (tmp_path / 'run').exists()


def test_profile(tmp_path, capsys):
    out = tmp_path / 'out.json'
    arguments = ['--config.model.vocab_size=65', '--profile', '--profile_steps=2']
    assert _benchmark(tmp_path, *arguments, f'--benchmark_out={out}') == 0
    printed = capsys.readouterr().out
    profile = json.loads(out.read_text())['profile']
    assert profile['steps'] == 2
    assert profile['groups']['products'] > 0
    assert (tmp_path / 'run' / 'profile').is_dir()
    assert profile['trace'].startswith(str(tmp_path / 'run' / 'profile'))
    assert f'xprof --logdir {tmp_path / "run" / "profile"}' in printed


def test_an_unknown_vocabulary_is_one_line(tmp_path, capsys):
    assert _benchmark(tmp_path) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert '--config.model.vocab_size=66' in line and '--benchmark_data' in line


def test_generation(tmp_path, capsys):
    out = tmp_path / 'out.json'
    arguments = ['--config.model.vocab_size=65', '--benchmark_decode', f'--benchmark_out={out}']
    assert _benchmark(tmp_path, *arguments, '--decode_tokens=32') == 2
    assert 'the context holds 32' in capsys.readouterr().err
    # Long enough to tell from the prompt, whose time is taken off the whole.
    sizes = ['--decode_batch=1', '--decode_batch=2', '--decode_prompt=8', '--decode_tokens=1000']
    sizes.append('--config.model.max_seq_len=1024')
    assert _benchmark(tmp_path, *arguments, *sizes) == 0
    printed = capsys.readouterr().out
    assert 'batch 2' in printed and 'cache    512 bytes per token\n' in printed
    rows = json.loads(out.read_text())['decoding']
    assert [row['batch_size'] for row in rows] == [1, 2]
    assert all(row['decode_tokens_per_second'] > 0 for row in rows)
    assert all(row['prefill_tokens_per_second'] > 0 for row in rows)
    assert all(row['floor_ms_per_token'] > 0 for row in rows)


def test_decoding_fits_the_context_by_default(tmp_path, capsys):
    """The tiny model's context holds 32 tokens, fewer than the defaults of longer ones."""
    arguments = ['--config.model.vocab_size=65', '--benchmark_decode', '--decode_batch=1']
    assert _benchmark(tmp_path, *arguments) == 0
    assert 'tokens/s' in capsys.readouterr().out
