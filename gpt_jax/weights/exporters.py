"""Export formats of a run's weights: the counterpart of `READERS`."""

import enum
import functools
from collections.abc import Callable

from gpt_jax.config_tree import suggest
from gpt_jax.errors import UserError
from gpt_jax.weights.export import export_safetensors, export_transformers
from gpt_jax.weights.gguf_export import export_gguf
from gpt_jax.weights.llama2c_export import export_llama2c
from gpt_jax.weights.transformers_folder import FAMILIES
from gpt_jax.weights.web_export import export_web


class StoredType(enum.StrEnum):
    """The type of exported tensors; not every format supports each."""

    FLOAT32 = 'float32'
    BFLOAT16 = 'bfloat16'
    FLOAT16 = 'float16'
    Q8_0 = 'q8_0'
    INT8 = 'int8'


EXPORTERS: dict[str, Callable[..., list[str]]] = {
    'hf': export_transformers,
    'safetensors': export_safetensors,
    'gguf': export_gguf,
    'llama2c': export_llama2c,
    'web': export_web,
}


def find_exporter(name: str) -> Callable[..., list[str]]:
    """Returns the exporter of a format, a function with the signature of `export_transformers`.

    A `model_type` of transformers is a format too: 'hf' chooses the first that fits.

    Raises:
        UserError: there is no such format.
    """
    if name in (kind for family in FAMILIES for kind in family.model_types) and name != 'gpt_jax':
        return functools.partial(export_transformers, model_type=name)
    if name not in EXPORTERS:
        raise UserError(f'there is no format {name!r} to export to; {suggest(name, [*EXPORTERS])}')
    return EXPORTERS[name]
