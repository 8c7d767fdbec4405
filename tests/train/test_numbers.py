"""Numbers of a config are arguments of the compiled step."""

import jax
import numpy as np
import pytest

from gpt_jax.config import finalize
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.train.program import make_program
from tests.tiny_config import VARIANTS, get_config

KINDS = ('constant', 'linear', 'cosine', 'wsd', 'inverse_sqrt')
BATCH = {'tokens': np.zeros((8, 33), np.int32)}


def program_of(variant='adamw', kind='cosine', factor=1.0, **steps):
    """A program of a tiny model; `factor` changes every number of the optimizer."""
    config = get_config(variant)
    config.model.num_layers, config.model.d_model = 1, 16
    config.train.batch_size, config.train.ema_decay = 8, 0.9 * factor
    config.train.clip_norm *= factor
    config.train.num_steps = steps.get('num_steps', 20)
    config.schedule.kind = kind
    config.schedule.warmup_steps = steps.get('warmup_steps', 5)
    config.schedule.final_fraction *= factor
    config.seed = steps.get('seed', 0)
    for name in config.optimizer.__dataclass_fields__:
        if isinstance(value := getattr(config.optimizer, name), float):
            setattr(config.optimizer, name, value * factor)
    return make_program(finalize(config, vocab_size=65), make_mesh(MeshConfig(data=1)))


def text(program):
    return program.lower(program.abstract_state, [BATCH]).as_text()


@pytest.mark.parametrize('variant', VARIANTS)
def test_other_numbers_of_an_optimizer_are_the_same_program(variant):
    assert text(program_of(variant)) == text(program_of(variant, factor=0.9))


@pytest.mark.parametrize('kind', KINDS)
def test_another_length_of_the_schedule_is_the_same_program(kind):
    other = program_of(kind=kind, factor=0.9, num_steps=300, warmup_steps=0, seed=2**32 - 1)
    assert text(program_of(kind=kind)) == text(other)


def test_numbers_of_another_run_train_as_that_run():
    """One compiled step, given the numbers of two configs in turn."""
    programs = [program_of(), program_of(factor=0.5, warmup_steps=0, num_steps=9)]
    step = programs[0].train_step
    rates = []
    for program in programs:
        state, metrics = step(
            programs[0].init(jax.random.key(0)), programs[0].place(BATCH), program.numbers
        )
        rates.append(float(metrics['learning_rate']))
    assert step.__wrapped__._cache_size() == 1
    assert rates == pytest.approx(
        [programs[0].numbers['schedule']['peak'] / 6, programs[1].numbers['schedule']['peak']],
        rel=1e-6,
    )
