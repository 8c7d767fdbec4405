import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from gpt_jax.optim import Muon, adamw, make_optimizer
from gpt_jax.optim.adamw import AdamW
from gpt_jax.parameter import Role
from tests.optim.parameters import GROUPS, SHAPES, N, flatten, random_tree

HIDDEN = [path for path in SHAPES if GROUPS.role(path) is Role.HIDDEN]


def two_updates(optimizer, params, gradients):
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
    return flatten(updates)


@pytest.mark.parametrize('consistent_rms', [0.0, 0.2])
def test_a_stacked_update_is_the_update_of_each_layer_alone(consistent_rms):
    config = Muon(weight_decay=0.1, consistent_rms=consistent_rms)
    params, gradients = random_tree(0), [random_tree(1), random_tree(2)]
    stacked = two_updates(
        make_optimizer(config, optax.constant_schedule(config.learning_rate), GROUPS),
        params,
        gradients,
    )
    alone = contrib.muon(
        config.learning_rate,
        weight_decay=config.weight_decay,
        consistent_rms=consistent_rms or None,
    )
    for path in HIDDEN:
        shape = GROUPS.matrix_shape(path, SHAPES[path])
        for layer in range(N):
            matrices = [
                {'kernel': flatten(tree)[path].reshape(shape)[layer]}
                for tree in (params, *gradients)
            ]
            expected = two_updates(alone, matrices[0], matrices[1:])['kernel']
            np.testing.assert_allclose(
                stacked[path].reshape(shape)[layer], expected, atol=1e-6, err_msg=path
            )


def test_an_update_moves_every_direction_alike():
    config = Muon(weight_decay=0.0, momentum=0.0, learning_rate=1.0)
    updates = two_updates(
        make_optimizer(config, optax.constant_schedule(config.learning_rate), GROUPS),
        random_tree(0),
        [random_tree(1)],
    )
    for path in HIDDEN:
        matrices = np.asarray(updates[path]).reshape(GROUPS.matrix_shape(path, SHAPES[path]))
        scale = np.sqrt(max(1, matrices.shape[2] / matrices.shape[1]))
        singular = np.linalg.svd(matrices, compute_uv=False) / scale
        assert singular.min() > 0.5 and singular.max() < 1.3, (path, singular)


def test_the_rest_is_adamw_at_its_own_rate():
    config = Muon(weight_decay=0.1, adamw_ratio=0.25)
    params, gradients = random_tree(0), [random_tree(1), random_tree(2)]
    updates = two_updates(
        make_optimizer(config, optax.constant_schedule(config.learning_rate), GROUPS),
        params,
        gradients,
    )
    reference = adamw.make(
        AdamW(weight_decay=0.1), optax.constant_schedule(0.25 * config.learning_rate), GROUPS
    )
    expected = two_updates(reference, params, gradients)
    for path in SHAPES:
        if path in HIDDEN:
            assert not np.allclose(updates[path], expected[path], atol=1e-4), path
        else:
            np.testing.assert_allclose(updates[path], expected[path], atol=1e-7, err_msg=path)


def test_a_zero_gradient_is_no_nan():
    zeros = jax.tree.map(jnp.zeros_like, random_tree(0))
    updates = two_updates(
        make_optimizer(Muon(), optax.constant_schedule(Muon().learning_rate), GROUPS),
        zeros,
        [zeros],
    )
    for path, update in updates.items():
        np.testing.assert_array_equal(update, 0, err_msg=path)
