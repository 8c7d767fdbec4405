"""A tiny parameter tree with every path that a model can have, and a loss that falls on it."""

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.model.config import ModelConfig, finalize_model
from gpt_jax.model.gpt import parameter_groups
from gpt_jax.parameter import ParameterGroups

N, D, H, G, K, F, V, T = 3, 8, 2, 1, 4, 16, 20, 6

SHAPES = {
    'embedding/table': (V, D),
    'position/table': (T, D),
    'blocks/attention_norm/scale': (N, D),
    'blocks/attention_norm/bias': (N, D),
    'blocks/attention/query/kernel': (N, D, H, K),
    'blocks/attention/query/bias': (N, H, K),
    'blocks/attention/key/kernel': (N, D, G, K),
    'blocks/attention/key/bias': (N, G, K),
    'blocks/attention/value/kernel': (N, D, G, K),
    'blocks/attention/value/bias': (N, G, K),
    'blocks/attention/query_norm/scale': (N, K),
    'blocks/attention/key_norm/scale': (N, K),
    'blocks/attention/output/kernel': (N, H, K, D),
    'blocks/attention/output/bias': (N, D),
    'blocks/attention_post_norm/scale': (N, D),
    'blocks/attention_post_norm/bias': (N, D),
    'blocks/mlp_norm/scale': (N, D),
    'blocks/mlp_norm/bias': (N, D),
    'blocks/mlp/up/kernel': (N, D, F),
    'blocks/mlp/up/bias': (N, F),
    'blocks/mlp/gate/kernel': (N, D, F),
    'blocks/mlp/gate/bias': (N, F),
    'blocks/mlp/down/kernel': (N, F, D),
    'blocks/mlp/down/bias': (N, D),
    'blocks/mlp_post_norm/scale': (N, D),
    'blocks/mlp_post_norm/bias': (N, D),
    'final_norm/scale': (D,),
    'final_norm/bias': (D,),
    'output/table': (V, D),
}


def declared() -> ParameterGroups:
    """The declarations of a model that has all these parameters."""
    config = ModelConfig(
        vocab_size=V,
        max_seq_len=T,
        num_layers=N,
        num_heads=H,
        num_kv_heads=G,
        d_model=D,
        d_ff=F,
        norm_placement='sandwich',
        mlp='swiglu',
        qk_norm=True,
        tie_embeddings=False,
    )
    finalize_model(config)
    return parameter_groups(config)


GROUPS = declared()


def nest(flat: dict) -> dict:
    """{'a/b': x} -> {'a': {'b': x}}."""
    tree = {}
    for path, leaf in flat.items():
        *folders, name = path.split('/')
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def flatten(tree) -> dict:
    """{'a': {'b': x}} -> {'a/b': x}, of any pytree."""
    return {
        jax.tree_util.keystr(keys, simple=True, separator='/'): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def random_tree(seed: int, scale: float = 1.0, dtype=jnp.float32) -> dict:
    """Normal values of every shape in `SHAPES`."""
    generator = np.random.default_rng(seed)
    return nest(
        {
            path: jnp.asarray(scale * generator.standard_normal(shape), dtype)
            for path, shape in SHAPES.items()
        }
    )


def distance(params: dict, target: dict) -> jax.Array:
    """Half the squared distance of two trees: its gradient is their difference."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True)
    return sum(0.5 * jnp.sum((a - b) ** 2) for a, b in pairs)
