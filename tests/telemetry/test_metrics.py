"""Rows on disk: exact, readable by others, and continued without a trace by a resumed run."""

import importlib.util
import json
import math
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import types

import numpy as np
import pytest
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from gpt_jax import object_store
from gpt_jax.errors import UserError
from gpt_jax.telemetry import bucket_upload, metrics

ROOT = pathlib.Path(__file__).parents[2]


def read_rows(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def read_events(workdir) -> list[tuple[int, str, float]]:
    """Every scalar of every event file, by a reader that shares no code with the writer."""
    scalars = []
    for path in sorted((workdir / 'tensorboard').iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], 'little')
            assert len(data) >= 16 + length, f'{path} ends in a torn record'
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            scalars += [
                (event.step, value.tag, value.simple_value) for value in event.summary.value
            ]
            data = data[16 + length :]
    return scalars


def write_steps(workdir, steps, *, resume_step, loss=0.5) -> None:
    with metrics.MetricsWriter(
        workdir, ('jsonl', 'tensorboard'), resume_step=resume_step
    ) as writer:
        for step in steps:
            writer.write(step, {'train/loss': loss + step})


def test_rows_have_the_step_first_and_flat_keys(tmp_path):
    write_steps(tmp_path, [1], resume_step=None)
    assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 1, "train/loss": 1.5}\n'
    assert read_events(tmp_path) == [(1, 'train/loss', 1.5)]


def test_floats_read_back_bit_for_bit(tmp_path):
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, float(np.float32(0.1)), -0.0]
    with metrics.MetricsWriter(tmp_path, ('jsonl',), resume_step=None) as writer:
        writer.write(1, {f'value/{index}': value for index, value in enumerate(values)})
        writer.write(2, {'train/loss': np.float32(0.1), 'train/tokens': 2**60 + 1})
    first, second = read_rows(tmp_path)
    assert [first[f'value/{index}'].hex() for index in range(6)] == [v.hex() for v in values]
    assert second == {'step': 2, 'train/loss': float(np.float32(0.1)), 'train/tokens': 2**60 + 1}


def test_values_that_json_cannot_say_are_null(tmp_path):
    with metrics.MetricsWriter(tmp_path, ('jsonl', 'tensorboard'), resume_step=None) as writer:
        writer.write(1, {'a': math.nan, 'b': math.inf, 'c': -math.inf})
    assert read_rows(tmp_path) == [{'step': 1, 'a': None, 'b': None, 'c': None}]
    assert [value for _, _, value in read_events(tmp_path)][1:] == [math.inf, -math.inf]


@pytest.mark.parametrize('torn', ['{"step": 3, "train/lo', '{"step": 3, "train/loss": 7.5}'])
def test_a_resumed_run_removes_later_rows_and_a_torn_line(tmp_path, torn):
    write_steps(tmp_path, range(1, 8), resume_step=None)
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write(torn)
    write_steps(tmp_path, range(5, 7), resume_step=4, loss=0.25)
    expected = [(step, 0.5 + step) for step in range(1, 5)] + [(5, 5.25), (6, 6.25)]
    assert [(row['step'], row['train/loss']) for row in read_rows(tmp_path)] == expected
    assert [(step, value) for step, _, value in read_events(tmp_path)] == expected
    assert not list(tmp_path.rglob('*.tmp*'))


DAMAGED_LINES = {
    'half a row': b'{"step": 2, "train/lo\n',
    'two rows in one': b'{"step": 2, "train{"step": 2, "train/loss": 3}\n',
    'bytes': b'\xff\xfe\x00\x80\n',
    'no object': b'[1, 2]\n"text"\n3\nnull\n',
    'no step': b'{}\n{"step": null}\n{"step": "2"}\n{"step": NaN}\n{"step": [2]}\n',
    'deep': b'[' * 100_000 + b'\n',
}


@pytest.mark.parametrize('damage', DAMAGED_LINES)
def test_damaged_lines_are_left_out_and_removed(tmp_path, damage):
    write_steps(tmp_path, [1, 2], resume_step=None)
    first, second = (tmp_path / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
    (tmp_path / 'metrics.jsonl').write_bytes(first + DAMAGED_LINES[damage] + second)
    rows = [{'step': 1, 'train/loss': 1.5}, {'step': 2, 'train/loss': 2.5}]
    assert metrics.read_rows(tmp_path) == rows
    assert metrics.last_row(tmp_path, 5) == 2
    write_steps(tmp_path, [3], resume_step=2)
    assert read_rows(tmp_path) == [*rows, {'step': 3, 'train/loss': 3.5}]


def test_a_damaged_event_file_is_continued(tmp_path):
    random = np.random.default_rng(0)
    write_steps(tmp_path / 'whole', [1, 2], resume_step=None)
    [path] = (tmp_path / 'whole' / 'tensorboard').iterdir()
    whole = path.read_bytes()
    wrong = b'\xff' * 9  # no event, in a record whose checksums are right
    record = struct.pack('<Q', len(wrong)) + bytes(4) + wrong
    damaged = [whole + record + struct.pack('<I', record_writer.masked_crc32c(wrong)), b'']
    damaged += [random.bytes(200), (2**63).to_bytes(8, 'little') + whole, whole[:9], bytes(300)]
    for _ in range(20):
        at = random.integers(len(whole))
        damaged.append(whole[:at] + random.bytes(1) + whole[at + 1 :])
    for number, content in enumerate(damaged):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / 'whole', workdir)
        (workdir / 'tensorboard' / path.name).write_bytes(content)
        write_steps(workdir, [3], resume_step=2)
        assert read_events(workdir)[-1] == (3, 'train/loss', 3.5)


def test_a_folder_in_place_of_the_file_is_one_line(tmp_path):
    (tmp_path / 'metrics.jsonl').mkdir()
    with pytest.raises(UserError, match=r'cannot write .*metrics\.jsonl: Is a directory'):
        metrics.MetricsWriter(tmp_path, ('jsonl',), resume_step=2)


def test_an_event_file_that_ends_in_a_torn_record_is_continued(tmp_path):
    write_steps(tmp_path, [1, 2, 3], resume_step=None)
    (path,) = (tmp_path / 'tensorboard').iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    write_steps(tmp_path, [3], resume_step=2)
    assert [step for step, _, _ in read_events(tmp_path)] == [1, 2, 3]


def test_rows_can_be_read_while_the_run_goes_on(tmp_path):
    with metrics.MetricsWriter(tmp_path, ('jsonl',), resume_step=None) as writer:
        writer.write(1, {'train/loss': 0.5})
        assert read_rows(tmp_path) == [{'step': 1, 'train/loss': 0.5}]


def test_a_running_tensorboard_is_told_to_forget(tmp_path):
    write_steps(tmp_path, [1, 2, 3], resume_step=None)
    write_steps(tmp_path, [], resume_step=2)
    newest = max((tmp_path / 'tensorboard').iterdir(), key=lambda path: path.name)
    events = [
        event_pb2.Event.FromString(payload) for _, payload in metrics._records(newest.read_bytes())
    ]
    starts = [event for event in events if event.HasField('session_log')]
    assert [(event.step, event.session_log.status) for event in starts] == [(3, 1)]


def test_a_fresh_start_removes_what_was_there(tmp_path):
    write_steps(tmp_path, [1, 2], resume_step=None)
    write_steps(tmp_path, [1], resume_step=None, loss=0.75)
    assert [row['train/loss'] for row in read_rows(tmp_path)] == [1.75]
    assert [value for _, _, value in read_events(tmp_path)] == [1.75]


def test_flushed_rows_survive_kill_9(tmp_path):
    program = (
        'import os, signal, sys; from gpt_jax.telemetry import metrics\n'
        "writer = metrics.MetricsWriter(sys.argv[1], ('jsonl', 'tensorboard'), resume_step=None)\n"
        "writer.write(1, {'train/loss': 0.5}); writer.write(2, {'train/loss': 1.5})\n"
        'writer.flush(); os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    done = subprocess.run([sys.executable, '-c', program, tmp_path], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert [row['train/loss'] for row in read_rows(tmp_path)] == [0.5, 1.5]
    assert [value for _, _, value in read_events(tmp_path)] == [0.5, 1.5]


@pytest.mark.parametrize('sink', ['jsonl', 'tensorboard'])
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, sink):
    program = (
        'import resource, sys; from gpt_jax.telemetry import metrics\n'
        f'writer = metrics.MetricsWriter(sys.argv[1], ({sink!r},), resume_step=None)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n'
        'try:\n'
        "    for step in range(200): writer.write(step, {'train/loss': 0.5}); writer.flush()\n"
        'except metrics.UserError as error: print(error); sys.exit(2)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout.startswith(f'cannot write {tmp_path}')
    assert done.stdout.count('\n') == 1 and 'File too large' in done.stdout


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='torch is not installed')
def test_pytorch_is_not_imported(tmp_path):
    program = (
        'import pathlib, sys\n'
        'from gpt_jax.telemetry import metrics\n'
        "metrics.MetricsWriter(pathlib.Path(sys.argv[1]), ('tensorboard',), resume_step=None)\n"
        "assert 'torch' not in sys.modules\n"
        'import torch\n'
        'torch.zeros(1)'
    )
    subprocess.run([sys.executable, '-c', program, tmp_path], cwd=ROOT, check=True)


def test_an_unknown_sink_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="no metrics sink 'csv'; choose from jsonl, tensorboard"):
        metrics.MetricsWriter(tmp_path, ('jsonl', 'csv'), resume_step=None)
    assert not list(tmp_path.iterdir())


def test_wandb_that_is_not_installed_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError, match='pip install wandb'):
        metrics.MetricsWriter(tmp_path, ('wandb',), resume_step=None)


def test_wandb_keeps_its_run_across_a_resume(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda row, step: calls.append((step, row)), finish=lambda: calls.append('finish')
    )
    identities = []
    module = types.SimpleNamespace(init=lambda **options: identities.append(options['id']) or run)
    monkeypatch.setitem(sys.modules, 'wandb', module)
    for resume_step in (None, 3, None):
        with metrics.MetricsWriter(tmp_path, ('wandb',), resume_step=resume_step) as writer:
            writer.write(4, {'train/loss': 0.5})
    assert calls == [(4, {'train/loss': 0.5}), 'finish'] * 3
    assert identities[0] == identities[1] != identities[2]


def local_copy(workdir, tmp_path) -> pathlib.Path:
    """Returns the rows that a reader finds in an object store."""
    folder = tmp_path / 'copy'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    object_store.download_folder(workdir, folder)
    return folder


def test_in_an_object_store_rows_are_there_when_flushed(bucket, tmp_path, monkeypatch):
    workdir = object_store.to_path(f'{bucket}/runs/a', key='--workdir')
    with metrics.MetricsWriter(workdir, ('jsonl', 'tensorboard'), resume_step=None) as writer:
        writer.write(1, {'train/loss': 1.0})
        assert not workdir.exists()
        writer.flush()
        assert [row['step'] for row in read_rows(local_copy(workdir, tmp_path))] == [1]
        with monkeypatch.context() as patch:
            patch.setattr(bucket_upload, 'PUSH_SECONDS', 0)
            writer.write(2, {'train/loss': 2.0})
        assert [row['step'] for row in read_rows(local_copy(workdir, tmp_path))] == [1, 2]
        writer.write(3, {'train/loss': 3.0})
    folder = local_copy(workdir, tmp_path)
    assert [row['step'] for row in read_rows(folder)] == [1, 2, 3]
    assert [step for step, _, _ in read_events(folder)] == [1, 2, 3]


def test_a_store_that_does_not_answer_is_an_error_before_a_checkpoint_only(s3, monkeypatch):
    workdir = object_store.to_path(f'{s3}/runs/a', key='--workdir')
    monkeypatch.setattr(bucket_upload, 'PUSH_SECONDS', 0)

    def refuse(*_):
        raise UserError('the store refused')

    writer = metrics.MetricsWriter(workdir, ('jsonl',), resume_step=None)
    with monkeypatch.context() as patch:
        patch.setattr(object_store, 'upload', refuse)
        writer.write(1, {'train/loss': 1.0})
        with pytest.raises(UserError):
            writer.flush()
    writer.write(2, {'train/loss': 2.0})
    assert (workdir / 'metrics.jsonl').read_bytes().count(b'\n') == 2
    writer.close()


def test_in_an_object_store_a_resumed_run_goes_on(s3, tmp_path):
    workdir = object_store.to_path(f'{s3}/runs/a', key='--workdir')
    write_steps(workdir, [1, 2, 3, 4], resume_step=None)
    write_steps(workdir, [3, 4, 5], resume_step=2, loss=0.25)
    folder = local_copy(workdir, tmp_path)
    losses = [(row['step'], row['train/loss']) for row in read_rows(folder)]
    assert losses == [(1, 1.5), (2, 2.5), (3, 3.25), (4, 4.25), (5, 5.25)]
    assert [step for step, _, _ in read_events(folder)] == [1, 2, 3, 4, 5]
    write_steps(workdir, [1], resume_step=None)
    folder = local_copy(workdir, tmp_path)
    assert [row['step'] for row in read_rows(folder)] == [1]
    assert [step for step, _, _ in read_events(folder)] == [1], 'a fresh start leaves nothing'


def test_files_of_other_programs_stay(tmp_path):
    write_steps(tmp_path, [1, 2], resume_step=None)
    foreign = tmp_path / 'tensorboard' / 'events.out.tfevents.1700000000.host.1234.0'
    foreign.write_bytes(b'mine')
    write_steps(tmp_path, [1], resume_step=None)
    assert foreign.read_bytes() == b'mine'
    foreign.unlink()
    assert [step for step, *_ in read_events(tmp_path)] == [1], 'its own events went'
    (tmp_path / 'metrics.jsonl').write_text('{"epoch": 1}\n{"epoch": 2}\n')
    with pytest.raises(UserError, match='metrics.jsonl has no rows of a run'):
        write_steps(tmp_path, [1], resume_step=None)
    assert (tmp_path / 'metrics.jsonl').read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
