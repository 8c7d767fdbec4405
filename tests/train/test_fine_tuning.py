"""Steps that train a part of the parameters: adapters, or what is not frozen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from gpt_jax.config import RunConfig, finalize
from gpt_jax.fingerprint import fingerprint_leaves, named_leaves
from gpt_jax.model.gpt import GPT
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.optim import SGD, AdamW
from gpt_jax.parallel.mesh import ProgramKind, make_mesh
from gpt_jax.train.program import make_program
from tests.tiny_config import get_config

STEPS = 4
VOCAB = 65


def configure(**settings) -> RunConfig:
    """A small run with accumulation, an average and adapters that have dropout.

    `settings` are keys of the config with two underscores for each dot.
    """
    config = get_config('adamw')
    config.model.num_heads, config.model.num_kv_heads = 4, 2
    config.train.batch_size, config.train.steps_per_call = 16, 2
    config.train.num_steps = STEPS
    config.eval.every = config.checkpoint.save_every = 0
    config.lora.rank, config.lora.dropout = 4, 0.2
    config.lora.targets = ('blocks/attention/.*/kernel', 'blocks/mlp/down/kernel')
    for name, value in settings.items():
        *path, last = name.split('__')
        setattr(functools.reduce(getattr, path, config), last, value)
    return finalize(config, vocab_size=VOCAB)


def batches(config: RunConfig) -> list[dict[str, np.ndarray]]:
    """Batches that are masked to different degrees; a quarter of the rows wholly."""
    draw = np.random.default_rng(0)
    rows, length = config.train.batch_size, config.model.max_seq_len
    return [
        {
            'tokens': draw.integers(0, VOCAB, (rows, length + 1)).astype(np.int32),
            'loss_mask': (draw.random((rows, length)) < draw.choice([0, 0.3, 0.9, 1], (rows, 1)))
            .astype(np.float32),
        }
        for _ in range(STEPS)
    ]  # fmt: skip


def start(program, config):
    """A state whose weights are those of the seed, whatever of them is trained."""
    return program.init(jax.random.key(config.seed))


def train(config: RunConfig):
    """Rows of metrics, then the loss of an evaluation; and the state."""
    program = make_program(config, make_mesh(config.mesh))
    state, rows, data = start(program, config), [], batches(config)
    for first in range(0, STEPS, program.steps_per_call):
        state, metrics = program.advance(state, data[first : first + program.steps_per_call])
        names = ('loss', 'grad_norm', 'param_norm')
        rows.append(np.stack([np.atleast_1d(metrics[name]) for name in names], 1))
    params = program.join(state.params, state.base)
    sums = program.eval_step(params, program.place(data[0]))
    return np.append(np.concatenate(rows), float(sums.cross_entropy) / float(sums.weight)), state


@functools.cache
def on_one_device() -> np.ndarray:
    return train(configure())[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    'settings',
    [
        {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2},
        {'mesh__data': 4, 'mesh__program': ProgramKind.PMAP},
        {'model__scan_layers': 'on', 'model__remat': 'full', 'train__steps_per_call': 1},
    ],
    ids=['mesh', 'pmap', 'scan and remat'],
)
def test_adapters_learn_the_same_everywhere(settings):
    np.testing.assert_allclose(train(configure(**settings))[0], on_one_device(), rtol=1e-5)


def test_memory_is_that_of_the_adapters():
    program = make_program(config := configure(), make_mesh(config.mesh))
    state = program.abstract_state
    adapters = named_leaves(state.params)
    assert all(path.endswith(('/lora_a', '/lora_b')) for path in adapters)
    count = sum(leaf.size for leaf in adapters.values())
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert count < 0.3 * sum(leaf.size for leaf in jax.tree.leaves(state.base))
    assert 2 * count <= moments <= 2 * count + 2  # and the two counters
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)


def test_moments_are_sharded_like_their_adapters():
    config = configure(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    state = make_program(config, make_mesh(config.mesh)).abstract_state
    specs = {path: leaf.sharding.spec for path, leaf in named_leaves(state.params).items()}
    assert specs['blocks/attention/query/kernel/lora_a'] == PartitionSpec(None, 'fsdp', None)
    assert specs['blocks/attention/query/kernel/lora_b'] == PartitionSpec(
        None, None, 'tensor', None
    )
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert {leaf.sharding.spec for leaf in moments} == set(specs.values())


def test_the_first_loss_is_exactly_that_of_the_base():
    """B is zero, so the merged weights are the base's, bit for bit."""
    quiet = {'model__dropout': 0.0, 'model__attention_dropout': 0.0, 'train__steps_per_call': 1}
    losses = []
    for rank in (4, 0):
        program = make_program(
            config := configure(lora__rank=rank, **quiet), make_mesh(configure().mesh)
        )
        state, metrics = program.advance(start(program, config), batches(config)[:1])
        losses.append(float(metrics['loss']))
    assert losses[0] == losses[1]


def masked_loss(config: RunConfig, params, batch) -> jax.Array:
    """The mean negative log-likelihood of the tokens that count, from the model's logits."""
    model, tokens = GPT(config.model), jnp.asarray(batch['tokens'])
    executed = to_executed(params, config.model, scan=False)
    logits, _ = model.apply({'params': executed}, tokens[:, :-1])
    scores = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(scores, tokens[:, 1:, None], 2)[..., 0]
    return (nll * batch['loss_mask']).sum() / batch['loss_mask'].sum()


def test_a_step_is_the_gradient_of_the_merged_weights():
    """By hand: the derivative of the masked loss with respect to A and B through W + A B."""
    config = configure(
        optimizer=SGD(learning_rate=0.5, momentum=0.0, clip_norm=0.0),
        model__dropout=0.0,
        model__attention_dropout=0.0,
        lora__dropout=0.0,
        lora__alpha=8.0,
        schedule__warmup_steps=0,
        schedule__kind='constant',
        train__steps_per_call=1,
    )
    program = make_program(config, make_mesh(config.mesh))
    state = start(program, config)
    draw = np.random.default_rng(1)  # B too, or A would get no gradient
    given = jax.tree.map(lambda x: 0.1 * draw.normal(size=x.shape).astype(np.float32), state.params)
    base, batch = jax.device_get(state.base), batches(config)[0]

    def merge(adapters):
        merged = jax.tree.map(jnp.asarray, base)
        for kind, part in adapters['blocks'].items():
            for name, pair in part.items():
                a, b = pair['kernel']['lora_a'], pair['kernel']['lora_b']
                weight = merged['blocks'][kind][name]['kernel']
                product = jnp.stack(
                    [x.reshape(-1, 4) @ y.reshape(4, -1) for x, y in zip(a, b, strict=True)]
                )
                merged['blocks'][kind][name]['kernel'] = weight + 2.0 * product.reshape(
                    weight.shape
                )
        return merged

    by_hand = jax.jit(jax.value_and_grad(lambda x: masked_loss(config, merge(x), batch)))
    loss, gradient = by_hand(given)
    expected = jax.tree.map(lambda x, g: x - 0.5 * g, given, gradient)
    shardings = jax.tree.map(lambda x: x.sharding, state.params)
    state = state.replace(params=jax.device_put(given, shardings))
    state, metrics = program.advance(state, [batch])
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics['grad_norm'], optax.tree.norm(gradient), rtol=1e-4)
    np.testing.assert_allclose(
        ravel_pytree(jax.device_get(state.params))[0], ravel_pytree(expected)[0], atol=1e-6
    )


@pytest.mark.parametrize('mesh', [{}, {'mesh__fsdp': 2, 'mesh__tensor': 2}], ids=['one', 'mesh'])
def test_frozen_parameters_stay_as_they_are(mesh):
    """Also one of which the bits would change if zero were added: -0.0."""
    config = configure(lora__rank=0, train__frozen=('embedding/table', '.*/bias'), **mesh)
    program = make_program(config, make_mesh(config.mesh))
    params = program.join(*[getattr(start(program, config), name) for name in ('params', 'base')])
    params = jax.tree.map(lambda x: jnp.where(x == 0, -0.0, x), params)
    before = fingerprint_leaves(params)
    state = program.begin(params, jax.random.key(0))
    assert not any('bias' in path for path in named_leaves(state.opt_state))
    state, metrics = program.advance(state, batches(config)[:2])
    after = fingerprint_leaves(program.join(state.params, state.base))
    same = {path for path in before if before[path] == after[path]}
    assert same == {path for path in before if path == 'embedding/table' or path.endswith('/bias')}
    assert len(same) > 8


def test_what_is_not_frozen_learns_as_without():
    """Freezing only leaves gradients out: the others get the same first update."""
    settings = {
        'lora__rank': 0,
        'optimizer': AdamW(clip_norm=0.0, weight_decay=0.0),
        'train__steps_per_call': 1,
    }
    updated = []
    for frozen in ((), ('blocks/.*',)):
        config = configure(train__frozen=frozen, **settings)
        program = make_program(config, make_mesh(config.mesh))
        state, _ = program.advance(start(program, config), batches(config)[:1])
        updated.append(named_leaves(program.join(state.params, state.base)))
    whole, partly = updated
    np.testing.assert_allclose(whole['embedding/table'], partly['embedding/table'], atol=1e-6)
    assert not np.allclose(whole['blocks/mlp/up/kernel'], partly['blocks/mlp/up/kernel'], atol=1e-5)
