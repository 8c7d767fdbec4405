"""Export of a trained run to llama2.c: the files `model.bin` and `tokenizer.bin` of `run.c`."""

import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.model.config import MLPKind, ModelConfig
from gpt_jax.model.position import rope_frequencies
from gpt_jax.parallel import peers
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from gpt_jax.weights import llama
from gpt_jax.weights.credits import NO_CREDITS, README, Credits
from gpt_jax.weights.export import named_tensors
from gpt_jax.weights.layout import check_complete, unsupported
from gpt_jax.weights.llama2c import BOS, BYTE_PIECES, CONTROL_PIECES, HEADER, parts
from gpt_jax.weights.model_card import model_card
from gpt_jax.weights.sampling import NO_SAMPLING
from gpt_jax.weights.sentencepiece_pieces import USER_DEFINED, Piece, list_pieces

MODEL, TOKENIZER = 'model.bin', 'tokenizer.bin'
# Settings hard-coded in run.c, in addition to those of the Llama family.
_CAPABILITIES = llama.LLAMA.capabilities | {
    'mlp.activation': (MLPKind.SWIGLU,),
    'attention.qkv_bias': (False,),
    'attention.output_bias': (False,),
    'mlp.bias': (False,),
    'norm_epsilon': (1e-5,),
    'rope.base': (10000.0,),
    'rope.scaling': (1.0,),
    'rope.yarn': (False,),
}
# llama2.c's export.py writes these two with newlines.
_STORED_TEXTS = {'<s>': '\n<s>\n', '</s>': '\n</s>\n'}


def export_llama2c(
    folder: pathlib.Path,
    model: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    *,
    dtype: str,
    credits: Credits = NO_CREDITS,
    sampling: Mapping[str, Any] = NO_SAMPLING,
) -> list[str]:
    """Writes version 0; arguments, result and errors are those of `export_transformers`.

    The format cannot store the tokenizer's chat template, nor `sampling`.
    """
    if dtype != 'float32':
        raise UserError(f'--format llama2c holds float32 only, not {dtype}; add --dtype float32')
    _check_model(model)
    pieces = _pieces(model, tokenizer)
    entries = {entry.name: entry for entry in llama.layout_in_pairs(model)}
    layout = [entries[part.name] for part in parts(model) if part.name]
    check_complete(layout, params, format='llama2.c')
    numbers = _numbers(model, params)
    if not peers.is_primary():
        for _ in numbers:
            pass
        return []
    vocab_size = model.vocab_size if model.tie_embeddings else -model.vocab_size
    header = (model.d_model, model.d_ff, model.num_layers, model.num_heads, model.num_kv_heads)
    with files.atomic_file(folder / MODEL) as file:
        file.write(HEADER.pack(*header, vocab_size, model.max_seq_len))
        for array in numbers:
            file.write(np.ascontiguousarray(array, '<f4').data)
    with files.atomic_file(folder / TOKENIZER) as file:
        file.write(_tokenizer_bytes(pieces))
    card = model_card(model, tokenizer, architecture='llama', library='llama2.c', credits=credits)
    files.write_text(folder / README, card)
    return [MODEL, TOKENIZER, README]


def _check_model(model: ModelConfig) -> None:
    wrong = unsupported(model, _CAPABILITIES)
    if not wrong and model.num_heads * model.head_dim != model.d_model:
        wrong = f'config.model.head_dim={model.head_dim}'
    if wrong:
        raise UserError(f'llama2.c has no {wrong}; --format safetensors takes any architecture')


def _pieces(model: ModelConfig, tokenizer: Tokenizer) -> list[Piece]:
    """Returns the pieces of a tokenizer.

    Raises:
        UserError: run.c would produce other ids.
    """
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError(
            f'llama2.c has SentencePiece tokenizers only, and this one is {tokenizer.kind}; '
            f'--format hf takes it'
        )
    pieces, add_prefix = list_pieces(tokenizer, format='--format llama2c')
    if any(piece.kind == USER_DEFINED for piece in pieces):
        raise UserError(
            'llama2.c joins all pieces by their scores, and this SentencePiece model has some that '
            'are never joined (user_defined_symbols); --format hf takes it'
        )
    expected = (*(text for text, _ in CONTROL_PIECES), *BYTE_PIECES)
    if tuple(piece.text for piece in pieces[: len(expected)]) != expected:
        raise UserError(
            "llama2.c counts on Llama's order of ids: <unk>, <s>, </s> and the 256 bytes come "
            'first, which is not so in this SentencePiece model'
        )
    if not add_prefix or tokenizer.bos_id != BOS or len(pieces) != model.vocab_size:
        raise UserError(
            'llama2.c begins each text with <s> and one more space and has as many tokens as rows '
            'of the table, which is not so with this SentencePiece model'
        )
    return pieces


def _numbers(model: ModelConfig, params: Any) -> Iterator[np.ndarray]:
    """Yields the tensors after the header, one at a time on the host. Collective."""
    entries = {entry.name: entry for entry in llama.layout_in_pairs(model)}
    waves = iter(_waves(model))
    for part in parts(model):
        if not part.name:
            yield next(waves)
            continue
        for _, tensor in named_tensors(model, params, [entries[part.name]], np.float32):
            yield tensor


def _waves(model: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Computes cosines and sines `[L, K/2]`. run.c skips them; torch rounds some differently."""
    angles = np.outer(np.arange(model.max_seq_len, dtype=np.float32), rope_frequencies(model))
    exact = angles.astype(np.float64)
    return np.cos(exact), np.sin(exact)


def _tokenizer_bytes(pieces: list[Piece]) -> bytes:
    texts = [
        _STORED_TEXTS.get(piece.text, piece.text).replace('\u2581', ' ').encode()
        for piece in pieces
    ]
    entries = [
        struct.pack('<fi', piece.score, len(text)) + text
        for piece, text in zip(pieces, texts, strict=True)
    ]
    return struct.pack('<i', max(map(len, texts))) + b''.join(entries)
