"""The weights as decoding reads them: integers, and what stays float."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from gpt_jax import GPT
from gpt_jax.inference.config import SampleConfig, WeightType
from gpt_jax.inference.decode import Decoder
from gpt_jax.inference.generate import Generator
from gpt_jax.inference.weights import prepare_weights
from gpt_jax.kernels.matmul_int8 import Int8Matrix
from gpt_jax.model.attention import Latent
from gpt_jax.model.block import Block
from gpt_jax.model.mlp.experts import MixtureOfExperts
from gpt_jax.model.weight_rounding import round_weights
from tests.inference.test_decode import GREEDY, PROMPTS, VOCAB, generate, make_model

ARCHITECTURES = {
    'gpt2': dict(num_layers=2, use_bias=True),
    'llama': dict(num_layers=2, position='rope', num_kv_heads=2, tie_embeddings=True),
    'latent': dict(position='rope', attention=Latent(kv_rank=8, rope_dim=4)),
    'experts': dict(mlp=MixtureOfExperts(num_experts=4, experts_per_token=2), init_std=0.1),
}


def decoder(config, params, **options):
    return Decoder(config, params, vocab_size=VOCAB, eot_id=VOCAB, **options)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_text_is_that_of_the_rounded_weights(name):
    config, params = make_model(**ARCHITECTURES[name])
    rounded = decoder(config, round_weights(params, config, 'int8'))
    sampling = dict(temperature=1.0, max_new_tokens=30)
    expected, _ = generate(rounded, PROMPTS, **sampling)
    assert all(len(set(text)) > 5 for text in expected)
    ours = decoder(config, params, weight_dtype=WeightType.INT8)
    assert generate(ours, PROMPTS, **sampling)[0] == expected
    assert generate(ours, PROMPTS[:1], **sampling)[0] == expected[:1]


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_matrices_are_integers(name):
    config, params = make_model(**ARCHITECTURES[name])
    leaves = traverse_util.flatten_dict(prepare_weights(params, config, WeightType.INT8), sep='/')
    integers = {path for path, leaf in leaves.items() if isinstance(leaf, Int8Matrix)}
    matrices = {path for path in leaves if path.endswith(('kernel', 'table'))}
    floats = {'position/table'}
    floats |= {path for path in matrices if path.endswith(('router/kernel', 'kv_up/kernel'))}
    assert integers == matrices - floats
    assert {'latent': 1, 'experts': 1}.get(name, 0) == len(floats - {'position/table'})
    for path in integers:
        assert leaves[path].values_OI.dtype == jnp.int8


def test_consume_empties_the_tree():
    config, params = make_model(**ARCHITECTURES['llama'])
    expected, _ = generate(decoder(config, params), PROMPTS, **GREEDY)
    copied = jax.tree.map(jnp.copy, params)
    assert generate(decoder(config, copied, consume=True), PROMPTS, **GREEDY)[0] == expected
    assert copied == {}
    assert len(jax.tree.leaves(params)) > 5


def test_layers_that_are_alike_are_traced_once(monkeypatch):
    calls = []
    enter = Block._enter
    monkeypatch.setattr(Block, '_enter', lambda *args: calls.append(args) or enter(*args))
    counts = []
    for layers in (2, 7):
        config, params = make_model(num_layers=layers, d_model=24, num_heads=2)
        generate(decoder(config, params), PROMPTS[:1], max_new_tokens=1)
        counts.append(len(calls))
        calls.clear()
    assert counts[0] == counts[1] > 0


def test_the_weights_take_a_quarter():
    config, params = make_model(d_model=256, num_layers=2, num_heads=4)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    small = prepare_weights(params, config, WeightType.INT8)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(small)) < 0.28 * size
    assert np.isfinite(np.asarray(small['blocks']['layer_0']['mlp']['up']['kernel'].scale_O)).all()


def test_calls_with_other_weights():
    """A call converts them anew; the next one converts them back."""
    gpt = GPT(num_layers=1, num_heads=2, d_model=16, max_seq_len=32)
    options = dict(max_new_tokens=20, seed=1, temperature=1.0)
    exact = gpt.generate('Alice', **options)
    rounded = round_weights(gpt.params, gpt.config.model, 'int8')
    [expected] = Generator(gpt.config.model, rounded, gpt.tokenizer).generate(
        ['Alice'], SampleConfig(**options)
    )
    assert gpt.generate('Alice', weight_dtype='int8', **options) == 'Alice' + expected.text
    assert gpt.generate('Alice', **options) == exact
