"""Sources with random weights, written as other programs write them."""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import numpy as np

from gpt_jax.config_tree import freeze
from gpt_jax.model.config import DType, ModelConfig, finalize_model
from gpt_jax.model.gpt import GPT, abstract_params, init_params
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind, make_tokenizer
from gpt_jax.weights import load_params, open_source
from gpt_jax.weights.export import export_transformers

TEXT = 'The quick brown fox jumps over the lazy dog. ' * 20
GPT2 = dict(vocab_size=300, max_seq_len=32, num_layers=3, num_heads=4, d_model=32)
LLAMA = GPT2 | dict(
    num_kv_heads=2,
    position='rope',
    norm='rmsnorm',
    mlp='swiglu',
    use_bias=False,
    d_ff=48,
    tie_embeddings=False,
)


def make_model(**values) -> ModelConfig:
    """A finalized, frozen architecture."""
    config = ModelConfig(**values)
    finalize_model(config)
    return freeze(config)


def random_params(config: ModelConfig, seed: int = 0):
    """Parameters with no zeros or ones in them, so that nothing can be swapped unseen."""
    params = nn.unbox(init_params(config, jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jax.numpy.asarray(rng.normal(0, 0.2, x.shape) + (x == 1), x.dtype), params
    )


def weight_shapes(config: ModelConfig):
    """The shapes that `load_params` fills on the first device."""
    return nn.unbox(abstract_params(config))


def logits(config: ModelConfig, params, tokens) -> np.ndarray:
    """Of the plain forward pass in float32."""
    executed = to_executed(params, config, scan=False)
    return np.asarray(_jitted(config)({'params': executed}, tokens)[0])


@functools.cache
def _jitted(config: ModelConfig):
    return jax.jit(GPT(config).apply)


@functools.cache
def bpe_tokenizer(vocab_size: int = 300):
    """A small byte-level BPE; the text gives fewer ids than asked for."""
    config = TokenizerConfig(kind=TokenizerKind.BPE, vocab_size=vocab_size)
    return make_tokenizer(config, lambda: [TEXT])


def write_folder(folder: pathlib.Path, dtype: DType = DType.FLOAT32, **values):
    """A folder of transformers with random weights; returns `(config, params)`."""
    config = make_model(**values)
    params = random_params(config)
    export_transformers(folder, config, params, bpe_tokenizer(), dtype=dtype)
    return config, params


def load(where: pathlib.Path, **changes):
    """Opens a source and loads it: `(source, params)`."""
    source = open_source(str(where))
    config = dataclasses.replace(source.model, **changes)
    return source, load_params(source, weight_shapes(config))
