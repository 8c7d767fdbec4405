"""The timed step is the one of training: compiled once, the same state, the pipeline's batches."""

import itertools

import jax
import numpy as np
import pytest

from gpt_jax.benchmark import training
from gpt_jax.benchmark.training import TrainingBenchmark, synthetic_batches
from gpt_jax.config import RunConfig, finalize
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.telemetry import chips
from gpt_jax.train.flops import train_flops_per_token
from gpt_jax.train.program import make_program
from tests.tiny_config import get_config


@pytest.fixture(scope='module')
def config() -> RunConfig:
    config = get_config()
    config.train.steps_per_call = 2
    return finalize(config, vocab_size=65)


@pytest.fixture(scope='module')
def program(config):
    return make_program(config, make_mesh(config.mesh))


def test_synthetic_batches_have_the_pipelines_shape(config):
    first, second = itertools.islice(synthetic_batches(config), 2)
    assert first is second
    assert first['tokens'].shape == (8, 33)
    assert first['tokens'].dtype == np.int32
    assert first['tokens'].max() == 64


def test_packed_batches_have_segments():
    config = get_config()
    config.data.segment_ids = True
    batch = next(synthetic_batches(finalize(config, vocab_size=65)))
    assert batch['segment_ids'].shape == batch['tokens'].shape


def test_measures_the_step_of_training_compiled_once(config):
    program = make_program(config, make_mesh(config.mesh))  # one that nobody compiled yet
    events = []
    listener = lambda event, _, **names: events.append((event, names.get('fun_name')))  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    running = TrainingBenchmark(program, config, synthetic_batches(config))
    report = running.measure(warmup=1, groups=3, steps=3)  # rounded up to 2 and 4
    jax.monitoring.unregister_event_duration_listener(listener)
    compiled = [name for event, name in events if event.endswith('backend_compile_duration')]
    assert compiled.count('jit(train_steps)') == 1
    assert program.train_steps.__wrapped__._cache_size() == 1

    # The same steps by hand.
    state = program.init(jax.random.key(config.seed))
    batches = synthetic_batches(config)
    for _ in range((2 + 2 + 3 * 4) // 2):
        state, metrics = program.advance(state, list(itertools.islice(batches, 2)))
    assert report['loss'] == float(metrics['loss'][-1])

    assert len(report['step_ms_groups']) == 3
    low, median, high = sorted(report['step_ms_groups'])
    assert (report['step_ms_min'], report['step_ms'], report['step_ms_max']) == (low, median, high)
    assert report['tokens_per_second'] == pytest.approx(256 / (median / 1e3))
    assert report['model_flops_per_step'] == 256 * train_flops_per_token(config.model, length=32)
    assert report['mfu'] is None and report['peak_flops'] is None, 'a CPU has no published peak'
    assert report['peak_memory_bytes'] > 2**20
    assert report['seconds_to_first_step'] == sum(report['start_up_seconds'].values())
    assert report['compile_seconds'] == report['start_up_seconds']['compile']


def test_waiting_for_data_is_counted(program, config, monkeypatch):
    clock = itertools.count()  # one second passes between two looks at it
    monkeypatch.setattr(training.time, 'perf_counter', lambda: float(next(clock)))
    running = TrainingBenchmark(program, config, synthetic_batches(config))
    assert running.run(8) == (2 * 4 + 1, 4)


def test_utilisation_counts_every_device(config, program, monkeypatch):
    monkeypatch.setitem(chips.CHIPS, 'cpu', chips.Chip(1e9, 2**30, 1e9))
    result = training.flops(config, program, tokens=100, seconds=0.5)
    assert result['mfu'] == pytest.approx(result['model_flops_per_step'] / 0.5e9)
    config = get_config()
    config.mesh.data, config.model.execution.remat = 4, 'full'
    config = finalize(config, vocab_size=65)
    program = make_program(config, make_mesh(config.mesh))
    result = training.flops(config, program, tokens=100, seconds=0.5)
    assert result['mfu'] == pytest.approx(result['model_flops_per_step'] / 2e9)
    assert result['mfu'] < result['hfu'] < result['mfu'] * 4 / 3


class _Device:
    def __init__(self, platform, **statistics):
        self.platform, self._statistics = platform, statistics

    def memory_stats(self):
        return self._statistics or None


def test_peak_memory_names_its_source(program, monkeypatch):
    def peak(*devices):
        mesh = type('Mesh', (), {'devices': np.array(devices, object)})
        monkeypatch.setattr(jax, 'local_devices', lambda: devices)
        return training.peak_memory(type('Program', (), {'mesh': mesh}), compiled)

    batch = next(synthetic_batches(finalize(get_config(), vocab_size=65)))
    compiled = program.lower(program.abstract_state, [batch]).compile()
    told = [_Device('gpu', peak_bytes_in_use=7), _Device('gpu', peak_bytes_in_use=9)]
    assert peak(*told) == (9, 'device.memory_stats()')
    planned, source = peak(_Device('tpu', bytes_in_use=3))
    assert planned > 10_000 and 'memory_analysis' in source
    resident, source = peak(_Device('cpu'))
    assert resident > 2**25 and 'resident' in source
