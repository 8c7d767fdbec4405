"""Correspondence between the leaves of an optimizer state and the parameters.

`optax.tree.map_params` finds it by a dry run without shapes. That fails for masked optimizers
(Muon) and for those that reshape (Adafactor), so leaves are matched by path here.
"""

from typing import Any

from gpt_jax.parameter import PyTree, map_with_path


def follow_parameters(state: PyTree, params: PyTree, values: PyTree, *, default: Any) -> PyTree:
    """Returns a tree like `state`, with each moment replaced by its parameter's leaf of `values`.

    A moment is a leaf with the shape of a parameter and a path that ends in the parameter's
    path. Every other leaf (step counts, factored moments) becomes `default`.

    Args:
        state: the optimizer's state, or its shapes.
        params: the parameters, or their shapes.
        values: a tree like `params`, for example of shardings.
        default: the value of all other leaves.
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
