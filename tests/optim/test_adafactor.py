import functools

import jax
import numpy as np
import optax
import pytest

from gpt_jax.optim import Adafactor, make_optimizer
from tests.optim.parameters import GROUPS, SHAPES, N, flatten, random_tree

# Small enough for the tiny shapes, and than N, so that a layer axis could be taken for a row.
CONFIG = Adafactor(min_factored_size=3, weight_decay=0.1)


def final_updates(optimizer, params, gradients):
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
    return flatten(updates)


def make_plain(decay):
    """optax.adafactor, with our decay: times the learning rate, after the parameter's scale."""
    return optax.chain(
        optax.adafactor(
            None, min_dim_size_to_factor=CONFIG.min_factored_size, multiply_by_parameter_scale=True
        ),
        optax.scale(-1),  # optax.adafactor already descends
        optax.add_decayed_weights(decay),
        optax.scale(-CONFIG.learning_rate),
    )


@functools.cache
def stacked_updates():
    """Parameters, three gradients, and the last of the updates."""
    params, gradients = random_tree(0), [random_tree(seed, scale=seed) for seed in (1, 2, 3)]
    optimizer = make_optimizer(CONFIG, optax.constant_schedule(CONFIG.learning_rate), GROUPS)
    return params, gradients, final_updates(optimizer, params, gradients)


@pytest.mark.parametrize('path', [path for path in SHAPES if path.startswith('blocks/')])
def test_a_stacked_update_is_the_update_of_each_layer_alone(path):
    params, gradients, stacked = stacked_updates()
    shape = GROUPS.matrix_shape(path, SHAPES[path])
    plain = make_plain(CONFIG.weight_decay if path.endswith('kernel') else 0.0)
    for layer in range(N):
        leaves = [flatten(tree)[path].reshape(shape)[layer] for tree in (params, *gradients)]
        expected = final_updates(plain, leaves[0], leaves[1:])['']
        np.testing.assert_allclose(
            stacked[path].reshape(shape)[layer].reshape(expected.shape), expected, rtol=2e-5
        )


def test_kernels_are_factored_and_layers_are_not():
    state = make_optimizer(CONFIG, optax.constant_schedule(CONFIG.learning_rate), GROUPS).init(
        random_tree(0)
    )
    moments = {
        path.split('/v_')[1]: leaf.shape for path, leaf in flatten(state).items() if '/v_' in path
    }
    factored = {
        path.removeprefix('row/'): (shape, moments[path.replace('row/', 'col/')])
        for path, shape in moments.items()
        if path.startswith('row/') and shape[-1] > 1
    }
    assert factored == {
        'embedding/table': ((8,), (20,)),
        'position/table': ((6,), (8,)),
        'blocks/attention/query/kernel': ((3, 8), (3, 8)),
        'blocks/attention/key/kernel': ((3, 4), (3, 8)),
        'blocks/attention/value/kernel': ((3, 4), (3, 8)),
        'blocks/attention/output/kernel': ((3, 8), (3, 8)),
        'blocks/mlp/up/kernel': ((3, 8), (3, 16)),
        'blocks/mlp/gate/kernel': ((3, 8), (3, 16)),
        'blocks/mlp/down/kernel': ((3, 8), (3, 16)),
        'output/table': ((8,), (20,)),
    }


def test_the_defaults_factor_gpt2():
    shapes = {'query': (12, 768, 12, 64), 'output': (12, 12, 64, 768)}
    params = {
        'blocks': {
            'attention': {
                name: {'kernel': jax.ShapeDtypeStruct(shape, np.float32)}
                for name, shape in shapes.items()
            }
        }
    }
    state = jax.eval_shape(
        make_optimizer(Adafactor(), optax.constant_schedule(0.1), GROUPS).init, params
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 5 * 12 * 768


def test_all_layers_may_be_frozen():
    """Then nothing is stacked, and the rest is updated as before."""
    rest = lambda tree: {name: part for name, part in tree.items() if name != 'blocks'}  # noqa: E731
    optimizer = make_optimizer(CONFIG, optax.constant_schedule(CONFIG.learning_rate), GROUPS)
    params, gradients = random_tree(0), random_tree(1)
    whole = final_updates(optimizer, params, [gradients])
    alone = final_updates(optimizer, rest(params), [rest(gradients)])
    assert alone and all(not path.startswith('blocks/') for path in alone)
    for path, update in alone.items():
        np.testing.assert_array_equal(update, whole[path])
