"""The mixture of experts against a loop over tokens, and as a part of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.config import finalize
from gpt_jax.errors import UserError
from gpt_jax.kernels import experts_dispatch
from gpt_jax.model.config import ExpertKernel, Kernels
from gpt_jax.model.gpt import GPT, count_active_params, count_params, init_params
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.model.mlp import experts
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.parallel.rules import on_mesh
from gpt_jax.train.program import make_program
from tests.model_configs import EXPERTS, make_config
from tests.tiny_config import get_config

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 70, (2, 12)), jnp.int32)
KERNELS = [ExpertKernel.XLA, ExpertKernel.RAGGED, ExpertKernel.BLOCKED]


def layer_of(kernel=ExpertKernel.XLA, **changes):
    """The MLP of one layer, its parameters, inputs, and its output with what it sows."""
    config = make_config(mlp=EXPERTS | changes, use_bias=False)
    module = config.mlp.make(config, kernels=Kernels(experts=kernel), name='mlp')
    x = jax.random.normal(jax.random.key(1), (24, config.d_model))
    params = nn.unbox(module.init(jax.random.key(0), x)['params'])
    if 'bias' in params:
        params['bias'] = jnp.array([0.3, -0.2, 0.0, 0.1])
    out, sown = module.apply({'params': params}, x, mutable=['losses', 'metrics'])
    return config.mlp, params, x, out, sown


def gated(up, gate):
    return up * gate / (1 + np.exp(-gate))


VARIANTS = {
    'softmax': {},
    'raw gates': dict(normalize_gates=False, experts_per_token=3),
    'one expert per token': dict(experts_per_token=1, normalize_gates=False),
    'sigmoid, bias, shared': dict(
        scores='sigmoid', balance='bias', shared_experts=2, gate_scale=2.5
    ),
}


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('changes', VARIANTS.values(), ids=VARIANTS)
def test_each_token_gets_the_gated_sum_of_its_experts(changes, kernel):
    options, params, x, out, _ = layer_of(kernel, **changes)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for token, actual in zip(np.asarray(x, np.float64), np.asarray(out), strict=True):
        logits = token @ p['router']['kernel']
        exp = np.exp(logits - logits.max())
        scores = exp / exp.sum() if options.scores == 'softmax' else 1 / (1 + np.exp(-logits))
        chosen = np.argsort(-(scores + p.get('bias', 0)))[: options.experts_per_token]
        gates = scores[chosen]
        if options.normalize_gates:
            gates = gates / gates.sum()
        outputs = [gated(token @ p['up'][e], token @ p['gate'][e]) @ p['down'][e] for e in chosen]
        expected = options.gate_scale * (gates @ np.stack(outputs))
        if options.shared_experts:
            s = {name: leaf['kernel'] for name, leaf in p['shared'].items()}
            expected = expected + gated(token @ s['up'], token @ s['gate']) @ s['down']
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_one_expert_is_the_dense_mlp():
    dense = make_config(mlp='swiglu', use_bias=False, d_ff=48)
    one = dict(_type='mixture_of_experts', num_experts=1, experts_per_token=1, balance='none')
    moe = make_config(mlp=one, use_bias=False, d_ff=48)
    params = nn.unbox(init_params(dense, jax.random.key(0)))
    mlp = params['blocks']['mlp']
    stacked = {name: leaf['kernel'][:, None] for name, leaf in mlp.items()}
    router = {'router': {'kernel': jnp.ones((dense.num_layers, dense.d_model, 1))}}
    blocks = params['blocks'] | {'mlp': stacked | router}

    def loss(params, config):
        executed = to_executed(params, config, scan=False)
        logits, _ = GPT(config).apply({'params': executed}, TOKENS)
        return -jax.nn.log_softmax(logits)[:, :-1].mean(), logits

    run = jax.value_and_grad(loss, has_aux=True)
    (_, expected), dense_grads = run(params, dense)
    (_, logits), grads = run(params | {'blocks': blocks}, moe)
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)
    for name, leaf in dense_grads['blocks']['mlp'].items():
        actual = grads['blocks']['mlp'][name][:, 0]
        np.testing.assert_allclose(actual, leaf['kernel'], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(grads['blocks']['mlp']['router']['kernel'], 0, atol=1e-7)


def test_the_losses_are_those_of_the_papers():
    options, params, x, _, sown = layer_of(balance_loss=0.5, router_z_loss=0.25)
    logits = np.asarray(x @ params['router']['kernel'], np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.argsort(-logits)[:, : options.experts_per_token]
    load = np.bincount(chosen.reshape(-1), minlength=4) / chosen.size
    losses = sown['losses']
    balance = 0.5 * 4 * np.sum(load * probabilities.mean(0))
    np.testing.assert_allclose(losses['balance_loss'][0], balance, rtol=1e-5)
    z = 0.25 * np.mean(np.log(np.exp(logits).sum(-1)) ** 2)
    np.testing.assert_allclose(losses['router_z_loss'][0], z, rtol=1e-5)
    metrics = {name: float(value[0]) for name, value in sown['metrics'].items()}
    np.testing.assert_allclose(metrics['expert_load_max'], 4 * load.max(), rtol=1e-5)
    np.testing.assert_allclose(metrics['expert_load_min'], 4 * load.min(), rtol=1e-5)


def test_drops_are_those_of_the_buffers_of_all_devices(monkeypatch):
    config = make_config(mlp=EXPERTS, use_bias=False)
    module = config.mlp.make(config, kernels=Kernels(experts=ExpertKernel.XLA), name='mlp')
    x = jax.random.normal(jax.random.key(1), (24, config.d_model))
    params = nn.unbox(module.init(jax.random.key(0), x)['params'])
    mesh = make_mesh(MeshConfig(data=2, expert=4))

    def share():
        with on_mesh(mesh):
            run = jax.jit(lambda p, x: module.apply({'params': p}, x, mutable=['metrics'])[1])
            return float(run(params, x)['metrics']['expert_dropped'][0])

    assert share() == 0
    monkeypatch.setattr(experts_dispatch, '_room', lambda tokens, choices: 1)
    chosen = np.argsort(-np.asarray(x @ params['router']['kernel']))[:, :2]
    counts = [np.bincount(rows.reshape(-1)) for rows in np.split(chosen, 8)]
    dropped = sum(int(np.maximum(count - 1, 0).sum()) for count in counts)
    assert dropped > 0 and share() == pytest.approx(dropped / 48)


def train(steps=3, **mlp):
    config = get_config('adamw')
    config.model.mlp = EXPERTS | mlp
    config.train.steps_per_call = 1
    config = finalize(config, vocab_size=65)
    program = make_program(config, make_mesh(config.mesh))
    state = program.init(jax.random.key(0))
    shape = (config.train.batch_size, config.model.max_seq_len + 1)
    batch = {'tokens': np.random.default_rng(0).integers(0, 65, shape).astype(np.int32)}
    states, rows = [jax.device_get(state.params)], []
    for _ in range(steps):
        state, metrics = program.advance(state, [batch])
        states.append(jax.device_get(state.params))
        rows.append(jax.device_get(metrics))
    return states, rows


def test_a_bias_moves_by_its_step_and_the_norm_of_gradients_does_not_see_it(monkeypatch):
    states, rows = train(balance='bias', bias_step=0.25, router_z_loss=0.0)
    first, second = (state['blocks']['mlp']['bias'] for state in states[:2])
    np.testing.assert_array_equal(np.unique(first), [0.0])
    assert (
        set(np.unique(second)) <= {-0.25, 0.0, 0.25} and (second > 0).any() and (second < 0).any()
    )
    assert 'balance_loss' not in rows[0] and '_load' not in rows[0]
    monkeypatch.setattr(experts, 'LOAD_SIGNAL', 0.0)
    still, plain = train(balance='bias', bias_step=0.25, router_z_loss=0.0, steps=1)
    np.testing.assert_array_equal(still[1]['blocks']['mlp']['bias'], first)
    assert rows[0]['grad_norm'] == pytest.approx(plain[0]['grad_norm'], rel=1e-6)


def test_losses_of_the_router_are_trained_and_reported():
    _, rows = train(balance_loss=1.0, router_z_loss=0.1)
    assert {'balance_loss', 'router_z_loss', 'expert_entropy'} <= rows[0].keys()
    assert rows[0]['balance_loss'] >= 2 * 0.99  # 1 for each of the two layers, when balanced
    assert rows[-1]['router_z_loss'] < rows[0]['router_z_loss']
    _, without = train(balance_loss=0.0, router_z_loss=0.0)
    assert rows[0]['grad_norm'] != without[0]['grad_norm']


def test_active_parameters_are_those_of_the_chosen_experts():
    config = make_config(mlp=EXPERTS, use_bias=False)
    whole = config.num_layers * 3 * config.d_model * config.mlp.d_expert * 4
    assert count_params(config) - count_active_params(config) == whole // 2


def test_more_experts_per_token_than_experts_are_refused():
    with pytest.raises(UserError, match='experts_per_token=5 is more than .*num_experts=4'):
        make_config(mlp=EXPERTS | dict(experts_per_token=5))
