"""Properties of every architecture, over the model's tables."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.config_tree import freeze
from gpt_jax.model.cache import make_cache
from gpt_jax.model.config import Remat
from gpt_jax.model.gpt import GPT, abstract_params, init_params
from gpt_jax.model.layer_stack import to_executed, to_stored
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.parallel.rules import RULES, batch_sharding, parameter_shardings
from tests.model_configs import ALONE, FULL, PAIRWISE, SINGLE, make_config

TOKENS = np.random.default_rng(0).integers(0, 70, (2, 12)).astype(np.int32)
LENGTHS = np.array([5, 2], np.int32)  # of two prompts, padded on the right to 5


_jit = functools.partial(jax.jit, static_argnames='model')


@_jit
def _init(model):
    return nn.unbox(init_params(model.config, jax.random.key(0)))


@_jit
def _forward(model, params, tokens, dropout_key=None):
    return model.apply({'params': _executed(model, params)}, tokens, dropout_key=dropout_key)[0]


@_jit
def _loss_and_grads(model, params, tokens):
    """Logits of all tokens, the loss of predicting the next ones, its gradients as stored."""

    def loss(executed):
        logits, _ = model.apply({'params': executed}, tokens)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1)
        return chosen.sum(), logits

    (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(_executed(model, params))
    return logits, value, to_stored(grads, model.config, scan=model.scan)


@_jit
def _cached(model, params, tokens):
    """Logits of a prefill of 5, and of 7 tokens one by one after the first LENGTHS of it."""
    executed = _executed(model, params)
    cache = make_cache(model.config, rows=2, slots=16)
    logits, cache = model.apply({'params': executed}, tokens[:, :5], cache=cache)

    def step(cache, _):
        token_B1 = jnp.take_along_axis(tokens, cache.length_B[:, None], axis=1)
        logits, cache = model.apply({'params': executed}, token_B1, cache=cache)
        return cache, logits[:, 0]

    _, rest = jax.lax.scan(step, cache.replace(length_B=jnp.asarray(LENGTHS)), length=7)
    return logits, rest.swapaxes(0, 1)


@_jit
def _input_gradient(model, params, tokens, position):
    """d |hidden state at `position`| / d embeddings, [B, L, D]."""

    def size(offsets_BLD):
        # One row of the table for each token, so that its gradient can be told apart.
        executed = _executed(model, params)
        table = executed['embedding']['table']
        rows = table[tokens.reshape(-1)] + offsets_BLD.reshape(tokens.size, -1)
        executed['embedding'] = {'table': jnp.concatenate([rows, table[tokens.size :]])}
        ids = jnp.arange(tokens.size).reshape(tokens.shape)
        hidden, _ = model.apply({'params': executed}, ids, method='hidden')
        return jnp.abs(hidden[:, position].astype(jnp.float32)).sum()

    return jax.grad(size)(jnp.zeros((*tokens.shape, model.config.d_model)))


def _executed(model, params):
    return to_executed(params, model.config, scan=model.scan)


def check(changes):
    """Causal; decoding with a cache, scanning and remat change nothing."""
    config = make_config(**changes)
    half = config.precision.compute == 'bfloat16'
    tolerance = 0.05 if half else 2e-5
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    model = GPT(config)
    params, tokens = _init(model), jnp.asarray(TOKENS)
    logits, loss, grads = _loss_and_grads(model, params, tokens)
    assert np.isfinite(logits).all() and float(jnp.std(logits)) > 1e-3

    scanned = GPT(freeze(dataclasses.replace(config, remat='full')), scan=True)
    scanned_logits, scanned_loss, scanned_grads = _loss_and_grads(scanned, params, tokens)
    close(scanned_logits, logits)
    close(scanned_loss, loss)
    _check_grads(scanned_grads, grads, tolerance=0.1 if half else 5e-5)

    prefilled, stepped = _cached(model, params, tokens)
    close(prefilled, logits[:, :5])
    for row, length in enumerate(LENGTHS):
        close(stepped[row], logits[row, length : length + 7])

    _check_causality(scanned, params, tokens)


def _check_grads(actual, expected, *, tolerance):
    """Leaf by leaf, relative to its largest entry; key biases have a true gradient of zero."""
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))

    def close(actual, expected):
        scale = max(float(jnp.abs(expected).max()), 0.01 * largest)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)

    jax.tree.map(close, actual, expected)


def _check_causality(model, params, tokens):
    """The gradient of the output at position t reaches the embeddings of tokens 0 … t only."""
    windows = [model.config.layer_kind(i).window for i in range(model.config.num_layers)]
    for position in (0, 4, 11):
        grads = np.abs(_input_gradient(model, params, tokens, position)).sum((0, 2))
        assert (grads[position + 1 :] == 0).all(), 'a later token was seen'
        assert grads[position] > 0, 'the token itself was not seen'
        reach = sum(w - 1 for w in windows) if all(windows) else position
        assert (grads[max(0, position - reach) : position] > 0).all(), 'an earlier token was lost'


@pytest.mark.parametrize('changes', ALONE.values(), ids=ALONE.keys())
def test_each_entry_against_the_default_partners(changes):
    check(changes)


def check_on_a_mesh(changes):
    """The same numbers from 8 devices that split batch, weights, heads, MLP and vocabulary."""
    config = make_config(**changes)
    half = config.precision.compute == 'bfloat16'
    model, tokens = GPT(config), jnp.asarray(np.concatenate([TOKENS, TOKENS[:, ::-1]]))
    params = _init(model)
    expected = _loss_and_grads(model, params, tokens)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = parameter_shardings(abstract_params(config), mesh)
    placed = jax.device_put(params, shardings), jax.device_put(tokens, batch_sharding(mesh))
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
        logits, loss, grads = _loss_and_grads(model, *placed)
    tolerance = 0.05 if half else 2e-5
    np.testing.assert_allclose(logits, expected[0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(loss, expected[1], rtol=1e-2 if half else 1e-5)
    _check_grads(jax.device_get(grads), expected[2], tolerance=0.1 if half else 5e-5)


@pytest.mark.parametrize('changes', SINGLE.values(), ids=SINGLE.keys())
def test_each_entry_on_a_mesh(changes):
    check_on_a_mesh(changes)


@pytest.mark.parametrize('changes', PAIRWISE.values(), ids=PAIRWISE.keys())
def test_every_pair_of_entries(changes):
    check(changes)


@pytest.mark.exhaustive
@pytest.mark.parametrize('changes', FULL.values(), ids=FULL.keys())
def test_the_full_product(changes):
    check(changes)


def test_dropout_is_the_same_scanned_and_unrolled():
    config = make_config(dropout=0.2, attention_dropout=0.1, window_pattern=(3, 0))
    model, tokens, key = GPT(config), jnp.asarray(TOKENS), jax.random.key(7)
    params = _init(model)
    unrolled = _forward(model, params, tokens, key)
    scanned = _forward(GPT(config, scan=True), params, tokens, key)
    np.testing.assert_allclose(scanned, unrolled, rtol=2e-5, atol=2e-5)
    assert float(jnp.abs(unrolled - _forward(model, params, tokens)).max()) > 0.01


@pytest.mark.parametrize('remat', Remat)
def test_flat_activations_and_rematerialisation_change_nothing(remat):
    config = make_config(remat=remat, window_pattern=(3, 0), num_kv_heads=2, dropout=0.1)
    params, tokens = _init(GPT(config)), jnp.asarray(TOKENS)
    expected = _loss_and_grads(
        GPT(make_config(window_pattern=(3, 0), num_kv_heads=2)), params, tokens
    )
    actual = _loss_and_grads(GPT(config, flat=False), params, tokens)
    np.testing.assert_allclose(actual[0], expected[0], rtol=2e-5, atol=2e-5)
    _check_grads(actual[2], expected[2], tolerance=5e-5)
