import collections
import re

import jax
import optax
import pytest

from gpt_jax.optim import SGD, Adafactor, AdamW, Lion, Muon, make_optimizer
from gpt_jax.optim.state import follow_parameters
from gpt_jax.parameter import Role
from tests.optim.parameters import GROUPS, SHAPES, flatten, nest, random_tree

HIDDEN = [path for path in SHAPES if GROUPS.role(path) is Role.HIDDEN]
VECTORS = [path for path in SHAPES if GROUPS.role(path) is Role.VECTOR]
# Adafactor keeps the moments of these with the heads as one axis.
JOINED = [path for path in SHAPES if re.search(r'/(query|key|value|output)/', path)]
JOINED.remove('blocks/attention/output/bias')


@pytest.mark.parametrize(
    'config, moments',
    [
        (AdamW(), {path: 2 for path in SHAPES}),
        (Lion(), {path: 1 for path in SHAPES}),
        (SGD(), {path: 1 for path in SHAPES}),
        (SGD(momentum=0.0), {}),
        (Muon(), {path: 1 if path in HIDDEN else 2 for path in SHAPES}),
        (Adafactor(), {path: 1 for path in SHAPES if path not in JOINED}),
        (Adafactor(min_factored_size=2), {path: 1 for path in VECTORS if path not in JOINED}),
    ],
    ids=['adamw', 'lion', 'sgd', 'sgd-plain', 'muon', 'adafactor', 'adafactor-factored'],
)
def test_each_parameter_has_its_moments(config, moments):
    optimizer = make_optimizer(config, optax.constant_schedule(config.learning_rate), GROUPS)
    params = jax.eval_shape(lambda: random_tree(0))
    paths = nest({path: path for path in SHAPES})
    owners = follow_parameters(
        jax.eval_shape(optimizer.init, params), params, paths, default='nobody'
    )
    counts = collections.Counter(flatten(owners).values())
    assert counts.pop('nobody') >= 1
    assert counts == moments
