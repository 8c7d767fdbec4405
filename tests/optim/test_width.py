"""Updates of weights that outgrow the base model, against those without its factors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt_jax.errors import UserError
from gpt_jax.model.config import ModelConfig, finalize_model
from gpt_jax.model.gpt import abstract_params, parameter_groups
from gpt_jax.optim import SGD, Adafactor, AdamW, Lion, Muon, make_optimizer
from gpt_jax.optim.lora import LoraConfig, init_adapters
from gpt_jax.optim.width import rate_multiplier
from gpt_jax.parameter import ParameterGroups, Role, map_with_path

RATE, GROWTH = 0.01, 4
EXACT = dict(learning_rate=RATE, weight_decay=0.0)
ADAMW = AdamW(epsilon=0.0, **EXACT)


PATHS = (
    'embedding/table',
    'blocks/attention/output/kernel',
    'blocks/attention/query/bias',
    'blocks/mlp/down',
    'blocks/mlp/router/kernel',
)


def groups_of(parametrization: str = 'mup') -> ParameterGroups:
    """A model four times as wide as its base."""
    config = ModelConfig(
        vocab_size=20,
        max_seq_len=6,
        num_layers=2,
        num_heads=4,
        d_model=16,
        mlp=dict(_type='mixture_of_experts', num_experts=3),
        parametrization=parametrization,
        base=dict(d_model=16 // GROWTH),
    )
    finalize_model(config)
    declared = parameter_groups(config).declared
    return ParameterGroups({path: declared[path] for path in PATHS})


GROUPS, STANDARD = groups_of(), groups_of('standard')


def random_params(seed: int):
    random = np.random.default_rng(seed)
    draw = lambda each: jnp.asarray(random.standard_normal(each.value.shape), jnp.float32)  # noqa: E731
    return {path: draw(each) for path, each in GROUPS.declared.items()}


def update(config, groups, gradients=None):
    params = random_params(0)
    optimizer = make_optimizer(config, optax.constant_schedule(config.learning_rate), groups)
    state = optimizer.init(params)
    gradients = random_params(1) if gradients is None else gradients
    for _ in range(2):
        updates, state = jax.jit(optimizer.update)(gradients, state, params)
    return updates


# By optimizer, the factor of updates of weights with these growths of fan-in and fan-out: those of
# table 8 of the paper, with tables of embeddings that are inputs and outputs (1, 4), a router (4,
# 1) and hidden matrices (4, 4). Gradients are those of the wide model as they are, so the factor of
# SGD is that of its learning rate.
FACTORS = {
    'adamw': (ADAMW, {(1, 4): 1, (4, 4): 1 / 4, (4, 1): 1 / 4}),
    'lion': (Lion(**EXACT), {(1, 4): 1, (4, 4): 1 / 4, (4, 1): 1 / 4}),
    'sgd': (SGD(**EXACT), {(1, 4): 4, (4, 4): 1, (4, 1): 1 / 4}),
    'adafactor': (
        Adafactor(parameter_scale=False, update_clip=1e9, **EXACT),
        {(1, 4): 1, (4, 4): 1 / 4, (4, 1): 1 / 4},
    ),
    # The root of fan-out / fan-in beside Muon's own, which is 1 for both routers, as 3 < 4.
    'muon': (Muon(adamw_epsilon=0.0, **EXACT), {(1, 4): 1, (4, 4): 1, (4, 1): 1 / 2}),
    'muon, consistent RMS': (
        Muon(adamw_epsilon=0.0, consistent_rms=0.2, **EXACT),
        {(1, 4): 1, (4, 4): 1 / 2, (4, 1): 1 / 4},
    ),
}


@pytest.mark.parametrize('name', FACTORS)
def test_updates_are_those_of_the_tables(name):
    config, factors = FACTORS[name]
    ours, theirs = update(config, GROUPS), update(config, STANDARD)
    seen = set()
    for path, each in GROUPS.declared.items():
        factor = factors[tuple(each.growth)]
        seen.add(tuple(each.growth))
        np.testing.assert_allclose(ours[path], factor * theirs[path], rtol=2e-4, err_msg=path)
    assert seen >= factors.keys()


@pytest.mark.parametrize('kind', [AdamW, Lion, SGD, Adafactor, Muon])
def test_decay_is_the_same_share_at_every_width(kind):
    """Without gradients nothing but decay moves a weight."""
    config = kind(learning_rate=RATE, weight_decay=0.1)
    if kind is Adafactor:
        config.parameter_scale = False
    if kind is SGD:
        config.momentum = 0.0
    zeros = jax.tree.map(jnp.zeros_like, random_params(0))
    ours, theirs = (update(config, groups, zeros) for groups in (GROUPS, STANDARD))
    params = random_params(0)
    for path, each in GROUPS.declared.items():
        np.testing.assert_allclose(ours[path], theirs[path], rtol=1e-5, atol=1e-9, err_msg=path)
        if each.role is Role.HIDDEN:
            np.testing.assert_allclose(ours[path], -RATE * 0.1 * params[path], rtol=1e-5)


def test_epsilon_is_that_of_the_base_model():
    """Gradients of a wide model are as many times smaller as its outputs are more."""
    config = AdamW(learning_rate=RATE, weight_decay=0.0, epsilon=1.0)
    gradients = random_params(1)
    smaller = map_with_path(
        lambda path, leaf: leaf / GROUPS.declared[path].growth.outputs, gradients
    )
    ours, theirs = update(config, GROUPS, smaller), update(config, STANDARD, gradients)
    for path, each in GROUPS.declared.items():
        np.testing.assert_allclose(
            ours[path] * each.growth.inputs, theirs[path], rtol=1e-5, err_msg=path
        )


def test_the_spectral_norm_of_muon_is_the_root_of_fan_out_over_fan_in():
    """Relative to that of the base model, for shapes on both sides of a square."""
    for config in (Muon(), Muon(consistent_rms=0.2)):
        for path, each in GROUPS.declared.items():
            if each.role is Role.HIDDEN:
                inputs, outputs = each.fans
                base = inputs / each.growth.inputs, outputs / each.growth.outputs
                norms = config.update_norm(inputs, outputs), config.update_norm(*base)
                wanted = (each.growth.outputs / each.growth.inputs) ** 0.5
                assert rate_multiplier(config, each) * norms[0] == pytest.approx(
                    wanted * norms[1]
                ), path


def test_adapters_get_rates_by_their_own_fans():
    """As LoRA+ (arxiv.org/abs/2402.12354): A's rate falls with the width, B's does not."""
    config = ModelConfig(
        vocab_size=20, num_heads=4, d_model=16, parametrization='mup', base=dict(d_model=4)
    )
    finalize_model(config)
    path = 'blocks/attention/query/kernel'
    kernel = abstract_params(config)['blocks']['attention']['query']['kernel']
    boxed = jax.eval_shape(
        lambda key: init_adapters(
            {path: kernel.replace(value=jnp.zeros(kernel.value.shape))},
            LoraConfig(rank=2),
            key,
            parameter_groups(config),
        ),
        jax.random.key(0),
    )
    rates = {name: rate_multiplier(AdamW(), each) for name, each in boxed.items()}
    assert boxed[f'{path}/lora_a'].growth == (4, 1)
    assert boxed[f'{path}/lora_b'].growth == (1, 4)
    assert rates == {f'{path}/lora_a': 1 / 4, f'{path}/lora_b': 1.0}


def test_rates_relative_to_parameters_are_refused():
    with pytest.raises(UserError, match=r'set config\.optimizer\.parameter_scale=False'):
        update(Adafactor(), GROUPS)
    update(Adafactor(), STANDARD)
