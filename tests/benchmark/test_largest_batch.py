"""The search for the largest batch, and what it compiles."""

import importlib.util
import pathlib

import pytest

from gpt_jax.model.config import AttentionKernel, Remat

SCRIPT = pathlib.Path(__file__).parents[2] / 'benchmarks/largest_batch.py'


@pytest.fixture(scope='module')
def script():
    spec = importlib.util.spec_from_file_location('benchmark_largest_batch', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('bend', [-0.3, 0, 0.3])
def test_the_largest_number_is_confirmed(bend, script):
    """The memory of a step need not grow quite evenly."""

    def size_of(sequences):
        return 10 + 3 * sequences + bend * max(0, sequences - 8)

    largest = script.confirm(size_of, script.foretell(size_of, 100), 100)
    assert size_of(largest) <= 100 < size_of(largest + 1)


def test_not_even_one(script):
    assert script.confirm(lambda n: 200 * n, script.foretell(lambda n: 200 * n, 100), 100) == 0


def test_a_step_of_one_device_without_micro_batches(script):
    config = script.run_config('774m', Remat.NONE, 3, AttentionKernel.CUDNN)
    assert (config.model.d_model, config.model.max_seq_len) == (1280, 1024)
    assert (config.train.batch_size, config.train.grad_accumulation) == (3, 1)
