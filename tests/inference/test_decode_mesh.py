"""Generation with weights that are split over devices: the same text, and no weight moves."""

import functools
import itertools
import re

import jax
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax.config_tree import freeze
from gpt_jax.inference import programs
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.decode import Decoder
from gpt_jax.inference.sampling import make_rule
from gpt_jax.model.attention import Latent
from gpt_jax.model.gpt import abstract_params, init_params
from gpt_jax.parallel.mesh import MeshConfig, make_mesh
from gpt_jax.parallel.rules import parameter_shardings
from tests.model_configs import make_config

PROMPTS = ((5,), (11, 60, 2, 33), (1, 2, 3, 4, 5, 6, 7, 8, 9))
VOCAB, WIDTH, MLP = 300, 64, 192  # told apart by their sizes
MODEL = dict(
    vocab_size=VOCAB,
    max_seq_len=96,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    d_model=WIDTH,
    d_ff=MLP,
    init_std=0.3,
)
LLAMA = dict(position='rope', norm='rmsnorm', mlp='swiglu', use_bias=False, tie_embeddings=False)
LATENT = dict(attention=freeze(Latent(kv_rank=32, rope_dim=8)), num_kv_heads=0)
SAMPLINGS = {
    'greedy': dict(temperature=0.0),
    'sampled': dict(temperature=1.0, top_p=0.9, repetition_penalty=1.2, draft_tokens=2, seed=3),
}


@functools.cache
def make_model(**changes):
    config = make_config(**MODEL | changes)
    boxed = abstract_params(config)
    params = nn.unbox(jax.jit(functools.partial(init_params, config))(jax.random.key(0)))
    return config, boxed, params


def make_decoder(mesh: dict | None = None, **changes) -> Decoder:
    """With its weights on one device, or as the rules split them over a mesh."""
    config, boxed, params = make_model(**changes)
    if mesh is not None:
        shardings = parameter_shardings(boxed, make_mesh(MeshConfig(**mesh)))
        params = jax.device_put(params, shardings)
    return Decoder(config, params, vocab_size=VOCAB, eot_id=VOCAB)


def generate(decoder: Decoder, **sampling) -> list[list[int]]:
    """Beyond the context, so that a text goes on from its last part too."""
    sampling = SampleConfig(max_new_tokens=110, **sampling)
    pieces = decoder.generate(PROMPTS, sampling)
    return [list(itertools.chain(*row)) for row in zip(*pieces, strict=True)]


@functools.cache
def on_one_device(sampling: str, **changes) -> list[list[int]]:
    return generate(make_decoder(**changes), **SAMPLINGS[sampling])


@pytest.mark.slow
@pytest.mark.parametrize(
    ('mesh', 'changes'),
    [
        (dict(data=8), {}),
        (dict(data=1, fsdp=8), LLAMA),
        (dict(data=1, tensor=8), {}),  # more than there are key/value heads
        (dict(data=2, fsdp=2, tensor=2), LLAMA),
        (dict(data=1, fsdp=2, context=2, tensor=2), {}),
        (dict(data=1, fsdp=4, tensor=2), LLAMA | LATENT),
    ],
    ids=lambda values: ' '.join(f'{name}={value}' for name, value in values.items()),
)
def test_the_text_is_that_of_one_device(mesh, changes):
    split = make_decoder(mesh, **changes)
    for name, sampling in SAMPLINGS.items():
        text = generate(split, **sampling)
        assert text == on_one_device(name, **changes)
        assert all(len(set(row)) > 20 for row in text)


def test_a_width_that_the_devices_do_not_divide():
    changes = dict(d_model=36, num_heads=4, head_dim=8)
    split, alone = make_decoder(dict(data=1, fsdp=8), **changes), make_decoder(**changes)
    assert generate(split, temperature=0.0) == generate(alone, temperature=0.0)


def test_weights_stay_where_they_are():
    """A token costs sums of activations; each device holds its part of the weights and no more."""
    decoder = make_decoder(dict(data=1, fsdp=4, tensor=2), **LLAMA)
    prompt = np.zeros((1, 32), np.int32)
    length, ended = np.full(1, 3, np.int32), np.zeros(1, bool)
    options = dict(settings=decoder._settings)
    state = decoder._call(
        programs.prefill, decoder.params, prompt, length, ended, slots=128,
        penalises=False, **options,
    )  # fmt: skip
    rule = make_rule([SampleConfig(temperature=0.0)], vocab_size=VOCAB)
    key_data = programs.row_key_data(0, np.zeros(1, int))
    leaves, tree = jax.tree.flatten((decoder.params, state))

    @jax.jit
    def draw(leaves):
        params, state = jax.tree.unflatten(tree, leaves)
        return programs.draw_tokens(
            params, state, key_data, rule, np.full(1, 5, np.int32), drafts=0, ranks=False, **options
        )

    compiled = decoder._call(draw.lower, leaves).compile()
    sizes = [
        np.prod([int(size) for size in shape.split(',') if size])
        for shapes in re.findall(
            r'= (.*?) (?:all-gather|all-to-all|collective-permute|all-reduce)(?:-start)?\(',
            compiled.as_text(),
        )
        for shape in re.findall(r'\w+\[([\d,]*)\]', shapes)
    ]
    assert sizes and max(sizes) <= VOCAB + 128, 'logits are the largest'
    weights = jax.tree.leaves(decoder.params)
    own = sum(leaf.addressable_data(0).nbytes for leaf in weights)
    assert own < sum(leaf.nbytes for leaf in weights) / 7.5
    assert compiled.memory_analysis().temp_size_in_bytes < own


def test_where_every_device_has_all_each_process_writes_alone():
    decoder = make_decoder(dict(data=8))
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(decoder.params))
