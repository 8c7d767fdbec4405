"""Optimizer states as trees: which of their leaves belong to which parameter.

`optax.tree.map_params` answers this by a dry run without shapes, which neither masked
optimizers (Muon) nor ones that reshape (Adafactor) survive, so leaves are matched by path.
"""

from typing import Any

from gpt_jax.optim.param_groups import PyTree, map_with_path


def follow_parameters(state: PyTree, params: PyTree, values: PyTree, *, default: Any) -> PyTree:
    """A tree like `state`: for each moment the leaf of `values` of its parameter.

    A moment is a leaf with the shape of a parameter and a path that ends in the parameter's
    path. Every other leaf (step counts, factored moments) becomes `default`.

    Args:
        state: the optimizer's state, or its shapes.
        params: the parameters, or their shapes.
        values: a tree like `params`, of shardings for instance.
        default: what the other leaves become.
    """
    known = {}
    map_with_path(
        lambda path, leaf, value: known.update({path: (leaf.shape, value)}), params, values
    )

    def follow(path, leaf):
        names = path.split('/')
        endings = ('/'.join(names[start:]) for start in range(len(names)))
        shape, value = next((known[end] for end in endings if end in known), (None, default))
        return value if leaf.shape == shape else default

    return map_with_path(follow, state)
