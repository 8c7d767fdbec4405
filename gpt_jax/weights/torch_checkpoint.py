"""Reader of nanoGPT's and minGPT's checkpoints; torch loads them without executing pickled code.

https://github.com/karpathy/nanoGPT saves `ckpt.pt`, a dictionary with `model` and `model_args`.
https://github.com/karpathy/minGPT saves `model.pt`, the bare tensors, and `config.json` next to it
with the model's shape. A file with minGPT's tensors as `model` and a `config` is supported too.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax import files
from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.model.config import DropoutConfig, MLPKind, ModelConfig, finalize_model
from gpt_jax.weights import gpt2
from gpt_jax.weights.source import ConfigReader, Source, StoredTensor, without_keys

# minGPT's model_type: layers, heads, width.
_MINGPT_SIZES = {
    'openai-gpt': (12, 12, 768),
    'gpt2': (12, 12, 768),
    'gpt2-medium': (24, 16, 1024),
    'gpt2-large': (36, 20, 1280),
    'gpt2-xl': (48, 25, 1600),
    'gopher-44m': (8, 16, 512),
    'gpt-mini': (6, 6, 192),
    'gpt-micro': (4, 4, 128),
    'gpt-nano': (3, 3, 48),
}
_COMPILED = '_orig_mod.'  # prefix that torch.compile adds to every name


def read(path: pathlib.Path, ignore_keys: Sequence[str] = ()) -> Source:
    """Reads a `.pt` file; the source has no tokenizer.

    Raises:
        UserError: torch is not installed; the file is damaged or would execute code; or it is of
            neither program.
    """
    saved = _load(path)
    state = saved.get('model', saved)
    _check_state(path, state)
    is_nanogpt = 'model_args' in saved
    config = saved['model_args'] if is_nanogpt else saved.get('config') or _config_beside(path)
    name = f'{path}, {"model_args" if is_nanogpt else "config"}'
    if not isinstance(config, Mapping):
        raise UserError(f'{name} is no dictionary; save the checkpoint again')
    config = without_keys(config, ignore_keys, name=name)
    model = (_nanogpt if is_nanogpt else _mingpt)(config, name=name)
    state = {name.removeprefix(_COMPILED): tensor for name, tensor in state.items()}
    without_weights = gpt2.WITHOUT_WEIGHTS
    if model.tie_embeddings and 'lm_head.weight' in state:
        import torch

        table = state.get('transformer.wte.weight')
        if table is None or not torch.equal(state['lm_head.weight'], table):
            raise UserError(f'{path}: lm_head.weight is not transformer.wte.weight, as it must be')
        without_weights = f'{without_weights}|lm_head\\.weight'
    finalize_model(model)
    model = freeze(model)
    return Source(
        name=str(path),
        model=model,
        layout=gpt2.layout(model, linear=True),
        tensors={name: _tensor(tensor) for name, tensor in state.items()},
        without_weights=without_weights,
    )


def _check_state(path: pathlib.Path, state: Any) -> None:
    """Raises UserError unless `state` maps names to float tensors; masks may have any type."""
    import torch

    if not isinstance(state, Mapping) or not state:
        raise UserError(f'{path} holds no tensors by name; it is not of nanoGPT or minGPT')
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for name, tensor in state.items():
        right = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        if not (isinstance(name, str) and right):
            raise UserError(
                f'{path} holds {str(name)[:80]!r}, which is no tensor with a name; it is not of '
                f'nanoGPT or minGPT'
            )
        if re.fullmatch(gpt2.WITHOUT_WEIGHTS, name.removeprefix(_COMPILED)):
            continue
        if tensor.dtype not in floats or tensor.is_meta:
            kind = 'without numbers' if tensor.is_meta else f'of {tensor.dtype}'
            raise UserError(
                f'{path}: {name[:80]} is a tensor {kind}; convert it to float32 with torch'
            )


def _load(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f'{path} is a file of torch; install it to read the weights (pip install torch)'
        ) from error
    try:
        saved = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle can make torch raise almost any type
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'{path} is damaged, or holds more than weights and would have to be executed '
            f'({reason or type(error).__name__})'
        ) from error
    if not isinstance(saved, Mapping):
        raise UserError(f'{path} holds no tensors by name; it is not of nanoGPT or minGPT')
    return saved


def _tensor(tensor: Any) -> StoredTensor:
    def read() -> np.ndarray:
        import torch

        values = tensor.detach()  # .numpy() rejects parameters
        narrow = tensor.dtype in (torch.bfloat16, torch.float16)  # numpy has no bfloat16
        return (values.float() if narrow else values).numpy()

    return StoredTensor(tuple(tensor.shape), read)


def _nanogpt(args: Mapping[str, Any], *, name: str) -> ModelConfig:
    c = ConfigReader(args, name=name)
    dropout = c.take_float('dropout', 0.0)
    model = ModelConfig(
        vocab_size=c.take_int('vocab_size'),
        max_seq_len=c.take_int('block_size'),
        num_layers=c.take_int('n_layer'),
        num_heads=c.take_int('n_head'),
        d_model=c.take_int('n_embd'),
        use_bias=c.take_bool('bias', True),
        mlp=MLPKind.GELU,
        dropouts=DropoutConfig(residual=dropout, attention=dropout),
    )
    c.finish(())
    return model


def _mingpt(config: Mapping[str, Any], *, name: str) -> ModelConfig:
    c = ConfigReader(config, name=name)
    preset = _MINGPT_SIZES.get(str(c.take('model_type', None)), (None, None, None))
    layers, heads, width = (
        c.take_int(key, size) or size
        for key, size in zip(('n_layer', 'n_head', 'n_embd'), preset, strict=True)
    )
    if None in (layers, heads, width):
        raise UserError(f'{name} needs n_layer, n_head and n_embd, or a model_type of minGPT')
    dropout = c.take_float('resid_pdrop', 0.1)
    c.require('embd_pdrop', dropout)
    model = ModelConfig(
        vocab_size=c.take_int('vocab_size'),
        max_seq_len=c.take_int('block_size'),
        num_layers=layers,
        num_heads=heads,
        d_model=width,
        mlp=MLPKind.GELU_TANH,
        tie_embeddings=False,
        dropouts=DropoutConfig(residual=dropout, attention=c.take_float('attn_pdrop', 0.1)),
    )
    c.finish(())
    return model


def _config_beside(path: pathlib.Path) -> Mapping[str, Any]:
    beside = path.with_name('config.json')
    if not beside.is_file():
        raise UserError(
            f'{path} holds bare tensors, and there is no config.json of minGPT beside it to say '
            f'n_head; add one: {{"model": {{"n_head": …, "n_layer": …, …}}}}'
        )
    config = files.read_json(beside)
    return config.get('model', config) if isinstance(config, dict) else {}
