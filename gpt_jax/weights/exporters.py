"""Which formats a run's weights are written in: the counterpart of `READERS`."""

import enum
from collections.abc import Callable

from gpt_jax.config_tree import suggest
from gpt_jax.errors import UserError
from gpt_jax.weights.export import export_safetensors, export_transformers
from gpt_jax.weights.gguf_export import export_gguf
from gpt_jax.weights.llama2c_export import export_llama2c


class StoredType(enum.StrEnum):
    """What tensors are written as; not every format has each."""

    FLOAT32 = 'float32'
    BFLOAT16 = 'bfloat16'
    FLOAT16 = 'float16'
    Q8_0 = 'q8_0'


EXPORTERS: dict[str, Callable[..., list[str]]] = {
    'hf': export_transformers,
    'safetensors': export_safetensors,
    'gguf': export_gguf,
    'llama2c': export_llama2c,
}


def find_exporter(name: str) -> Callable[..., list[str]]:
    """What writes a format, and names its files: `export_transformers` or one called as it is.

    Raises:
        UserError: there is no such format.
    """
    if name not in EXPORTERS:
        raise UserError(f'there is no format {name!r} to export to; {suggest(name, [*EXPORTERS])}')
    return EXPORTERS[name]
