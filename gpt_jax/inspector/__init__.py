"""See inside a model: read and change every named point of its forward pass."""

from gpt_jax.inspector.edits import Edit, add, mean, replace, zero
from gpt_jax.inspector.forward import Change, forward, run_forward
from gpt_jax.inspector.inspection import Inspection, NamedArray
from gpt_jax.inspector.inspector import Inspector
from gpt_jax.inspector.points import TRANSFORMER_LENS, Point, points_of

__all__ = [
    'Change',
    'Edit',
    'Inspection',
    'Inspector',
    'NamedArray',
    'Point',
    'TRANSFORMER_LENS',
    'add',
    'forward',
    'mean',
    'points_of',
    'replace',
    'run_forward',
    'zero',
]
