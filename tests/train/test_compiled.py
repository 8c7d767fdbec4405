"""The compiled step: facts that a slower program would break on any machine.

The bounds are what the pinned versions compile, with a little room; a change that needs more
should say what it buys.
"""

import collections
import math
import re

import jax
import numpy as np
import pytest

from gpt_jax.config import finalize
from gpt_jax.main import main
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.train.program import make_program
from tests.command_line import TINY
from tests.tiny_config import get_config

pinned = pytest.mark.skipif(
    jax.__version__ != '0.10.2', reason='the bounds are those of the pinned jax 0.10.2'
)
BATCH, LENGTH, VOCAB = 8, 32, 1000


@pytest.fixture(scope='module')
def compiled():
    config = get_config()
    config.model.dropouts.residual = config.model.dropouts.attention = 0.0
    config.train.grad_accumulation = 1
    config.train.ema_decay = 0.0
    config.train.loss_chunk_bytes = 4 * 2 * LENGTH * 1024  # two rows of logits at a time
    config = finalize(config, vocab_size=VOCAB)
    program = make_program(config, make_mesh(config.mesh))
    batch = {'tokens': np.zeros((BATCH, LENGTH + 1), np.int32)}
    # tests/conftest.py chooses the other code generator, which fuses less.
    options = {'xla_cpu_use_fusion_emitters': True} if jax.__version__ == '0.10.2' else {}
    return program.lower(program.abstract_state, [batch]).compile(options)


@pytest.fixture(scope='module')
def operations(compiled) -> collections.Counter:
    """Counts each operation of the whole module."""
    pattern = r'^\s*(?:ROOT )?%?[\w.\-]+ = \(?\S+.*? ([a-z][\w\-]*)\('
    return collections.Counter(re.findall(pattern, compiled.as_text(), re.MULTILINE))


def test_the_logits_never_exist_whole(compiled):
    sizes = {
        math.prod(map(int, shape.split(',')))
        for shape in re.findall(r'(?:f32|bf16)\[([\d,]+)\]', compiled.as_text())
    }
    chunk = 2 * LENGTH * 1024
    assert chunk in sizes, 'the logits of a chunk are there'
    assert max(sizes) < BATCH * LENGTH * VOCAB


@pinned
def test_products_are_not_surrounded_by_copies(operations):
    # Two layers of eight products and the loss's one, each with two more for its gradients.
    assert operations['dot'] == (2 * 8 + 1) * 3
    assert operations['fusion'] <= 340
    # Sixteen of each are kernels and their gradients, which this makes faster (model/product.py).
    assert operations['transpose'] <= 58
    assert operations['copy'] <= 124


@pinned
def test_temporary_memory(compiled):
    assert compiled.memory_analysis().temp_size_in_bytes <= 2.8e6


def test_the_state_is_updated_in_place(compiled):
    memory = compiled.memory_analysis()
    state = memory.argument_size_in_bytes - BATCH * (LENGTH + 1) * 4
    assert memory.alias_size_in_bytes >= 0.99 * state


def test_nothing_compiles_twice(tmp_path):
    """Not over steps, evaluations and samples, nor after a resume (whose process is new)."""
    counts = collections.Counter()

    def count(event: str, _: float, **names: str) -> None:
        if event.endswith('backend_compile_duration'):
            counts[names.get('fun_name')] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for num_steps in (20, 40):
            counts.clear()
            arguments = [f'--config.train.num_steps={num_steps}', '--config.sample.every=10']
            assert main([f'--config={TINY}', f'--workdir={tmp_path}', *arguments]) == 0
            assert counts['jit(train_steps)'] == 1
            assert counts['jit(train_step)'] == 0
            assert counts['jit(eval_step)'] == 1
            assert counts['jit(draw_tokens)'] <= 1
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
