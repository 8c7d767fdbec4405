"""LoRA's adapters: their shapes, what merging computes, and which parameters are trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.errors import UserError
from gpt_jax.fingerprint import named_leaves
from gpt_jax.model.gpt import init_params, parameter_groups
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.optim.lora import LoraConfig
from gpt_jax.optim.trainable import Trainable
from tests.model_configs import make_config

KEY = jax.random.key(3)
KERNELS = ('blocks/attention/(query|output)/kernel', 'blocks/mlp/up/kernel')
MODEL = make_config(d_model=16, num_layers=3, num_heads=2)
GROUPS = parameter_groups(MODEL)
LORA = Trainable(lora=LoraConfig(rank=2, alpha=6.0, targets=KERNELS), groups=GROUPS)


def boxed_params():
    return init_params(MODEL, jax.random.key(0))


def random_adapters(params):
    """Adapters that change something: B too is random."""
    adapters, _ = LORA.split(params, KEY)
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.array(draw.normal(size=x.shape), jnp.float32), adapters)


def test_adapters_have_the_axes_of_their_kernel():
    adapters, base = LORA.split(boxed_params(), KEY)
    named = {
        path: (leaf.value.shape, leaf.names)
        for path, leaf in flat(adapters, is_leaf=lambda x: isinstance(x, nn.Partitioned)).items()
    }
    assert named == {
        'blocks/attention/output/kernel/lora_a': (
            (3, 2, 8, 2),
            ('layers', 'heads', 'head_dim', None),
        ),
        'blocks/attention/output/kernel/lora_b': ((3, 2, 16), ('layers', None, 'embed')),
        'blocks/attention/query/kernel/lora_a': ((3, 16, 2), ('layers', 'embed', None)),
        'blocks/attention/query/kernel/lora_b': (
            (3, 2, 2, 8),
            ('layers', None, 'heads', 'head_dim'),
        ),
        'blocks/mlp/up/kernel/lora_a': ((3, 16, 2), ('layers', 'embed', None)),
        'blocks/mlp/up/kernel/lora_b': ((3, 2, 64), ('layers', None, 'mlp')),
    }
    assert jax.tree.structure(base) == jax.tree.structure(boxed_params())


def flat(tree, **options):
    pairs = jax.tree_util.tree_leaves_with_path(tree, **options)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in pairs}


def test_merging_adds_the_scaled_product_to_each_layer():
    params = nn.unbox(boxed_params())
    adapters = random_adapters(params)
    merged, before = named_leaves(LORA.join(adapters, params)), named_leaves(params)
    pairs = named_leaves(adapters)
    for path, weight in before.items():
        expected = np.array(weight, np.float64)
        if f'{path}/lora_a' in pairs:
            for layer in range(3):
                a = np.array(pairs[f'{path}/lora_a'][layer], np.float64)
                b = np.array(pairs[f'{path}/lora_b'][layer], np.float64)
                product = a.reshape(-1, 2) @ b.reshape(2, -1)
                expected[layer] += 6 / 2 * product.reshape(weight.shape[1:])
            np.testing.assert_allclose(merged[path], expected, rtol=1e-5, atol=1e-5)
        else:
            assert merged[path] is weight
    assert sum(f'{path}/lora_a' in pairs for path in before) == 3


@pytest.mark.parametrize('scan', [True, False], ids=['scanned', 'unrolled'])
def test_both_layouts_merge_to_the_same(scan):
    params = nn.unbox(boxed_params())
    adapters = random_adapters(params)
    stored = to_executed(LORA.join(adapters, params), MODEL, scan=scan)
    executed = LORA.join(
        to_executed(adapters, MODEL, scan=scan), to_executed(params, MODEL, scan=scan)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), executed, stored)


def test_fresh_adapters_change_nothing():
    params = nn.unbox(boxed_params())
    adapters, base = LORA.split(params, KEY)
    jax.tree.map(np.testing.assert_array_equal, LORA.join(adapters, base), params)
    a = named_leaves(adapters)['blocks/mlp/up/kernel/lora_a']
    assert 0.15 < float(a.std()) < 0.35  # 1 / sqrt(16)


def test_weights_of_less_precision_keep_their_dtype():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nn.unbox(boxed_params()))
    adapters, base = LORA.split(params, KEY)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adapters)} == {'float32'}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(LORA.join(adapters, base))} == {'bfloat16'}


def test_dropout_zeroes_input_features_and_scales_the_rest():
    trainable = Trainable(lora=LoraConfig(rank=2, dropout=0.25, targets=KERNELS), groups=GROUPS)
    adapters, _ = trainable.split(nn.unbox(boxed_params()), KEY)
    masks = named_leaves(trainable.dropout_masks(adapters, jax.random.key(1)))
    for path, mask in masks.items():
        if path.endswith('lora_b'):
            np.testing.assert_array_equal(mask, 1)
        else:
            assert mask.shape[-1] == 1
            assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.75)}
            assert 0.5 < float((mask > 0).mean()) < 0.95
    layers = masks['blocks/mlp/up/kernel/lora_a']
    assert not np.array_equal(layers[0], layers[1])
    assert trainable.dropout_masks(adapters, None) is None


def test_frozen_parameters_come_apart_and_together_again():
    params = nn.unbox(boxed_params())
    trainable = Trainable(frozen=('embedding/table', 'blocks/mlp/.*'))
    trained, base = trainable.split(params, KEY)
    assert {path.split('/')[0] for path in named_leaves(base)} == {'embedding', 'blocks'}
    assert not {path for path in named_leaves(trained) if path.startswith('blocks/mlp/')}
    assert named_leaves(trained).keys() | named_leaves(base).keys() == named_leaves(params).keys()
    jax.tree.map(np.testing.assert_array_equal, trainable.join(trained, base), params)


@pytest.mark.parametrize(
    ('trainable', 'message'),
    [
        (
            Trainable(frozen=('blocks/mpl/.*',)),
            r"^config.train.frozen: 'blocks/mpl/\.\*' matches none of blocks/attention/key/bias, ",
        ),
        (Trainable(frozen=('blocks/(',)), 'is no regular expression'),
        (Trainable(frozen=('.*',)), 'leaves no parameter to train'),
        (
            Trainable(lora=LoraConfig(rank=1, targets=('embedding/table',)), groups=GROUPS),
            "^config.lora.targets: 'embedding/table' matches none of blocks/attention/key/kernel, ",
        ),
        (
            Trainable(lora=LoraConfig(rank=1, targets=()), groups=GROUPS),
            '^config.lora.targets is empty; name',
        ),
    ],
)
def test_wrong_patterns(trainable, message):
    with pytest.raises(UserError, match=message):
        trainable.split(nn.unbox(boxed_params()), KEY)
