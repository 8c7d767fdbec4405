"""AdamW and SGD against PyTorch, with decay on the matrices only."""

import jax
import numpy as np
import optax
import pytest

from gpt_jax.optim import SGD, AdamW, make_optimizer
from gpt_jax.optim.schedule import ScheduleConfig, make_schedule
from tests.optim.parameters import GROUPS, flatten, nest, random_tree

STEPS = 20
SCHEDULE = ScheduleConfig(warmup_steps=5)


def run_ours(config, params, gradients):
    schedule = make_schedule(SCHEDULE, learning_rate=config.learning_rate, num_steps=STEPS)
    optimizer = make_optimizer(config, schedule, GROUPS)
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def run_torch(torch, make, config, params, gradients):
    tensors = {
        path: torch.nn.Parameter(torch.tensor(np.asarray(leaf)))
        for path, leaf in flatten(params).items()
    }
    mask = flatten(GROUPS.decay_mask(params))
    optimizer = make(
        [
            {'params': [t for path, t in tensors.items() if mask[path]]},
            {'params': [t for path, t in tensors.items() if not mask[path]], 'weight_decay': 0.0},
        ]
    )
    schedule = make_schedule(SCHEDULE, learning_rate=config.learning_rate, num_steps=STEPS)
    for step, gradient in enumerate(gradients):
        for group in optimizer.param_groups:
            group['lr'] = float(schedule(step))
        for path, leaf in flatten(gradient).items():
            tensors[path].grad = torch.tensor(np.asarray(leaf))
        optimizer.step()
    return nest({path: tensor.detach().numpy() for path, tensor in tensors.items()})


@pytest.mark.parametrize(
    'config',
    [
        AdamW(learning_rate=1e-2, weight_decay=0.3),
        SGD(learning_rate=1e-2, weight_decay=0.3, nesterov=True),
        SGD(learning_rate=1e-2, momentum=0.0),
    ],
    ids=['adamw', 'sgd-nesterov', 'sgd-plain'],
)
def test_equals_torch(config):
    torch = pytest.importorskip('torch', reason='torch is the reference; it is pinned on 3.11 only')
    params = random_tree(0, scale=0.1)
    gradients = [random_tree(seed, scale=0.1) for seed in range(1, STEPS + 1)]
    makers = {
        AdamW: lambda groups: torch.optim.AdamW(
            groups,
            lr=1.0,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        ),
        SGD: lambda groups: torch.optim.SGD(
            groups,
            lr=1.0,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        ),
    }
    expected = flatten(run_torch(torch, makers[type(config)], config, params, gradients))
    for path, leaf in flatten(run_ours(config, params, gradients)).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-6, err_msg=path)
