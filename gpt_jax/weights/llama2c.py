"""Reader of llama2.c: a `.bin` with a header and float32 weights, next to a `tokenizer.bin`.

The layout is that of `export.py` (version 0) and `run.c` in
https://github.com/karpathy/llama2.c: seven int32, then each kind of tensor for all layers. It
rotates neighbouring rows of queries and keys.
"""

import dataclasses
import functools
import pathlib
import struct
from collections.abc import Callable, Sequence

import numpy as np

from gpt_jax.config_tree import freeze
from gpt_jax.errors import UserError
from gpt_jax.model.config import (
    InitConfig,
    MLPKind,
    ModelConfig,
    NormKind,
    PositionKind,
    finalize_model,
)
from gpt_jax.tokenizer.base import TableTokenizer
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from gpt_jax.weights import llama
from gpt_jax.weights.sentencepiece_pieces import Piece, make_tokenizer
from gpt_jax.weights.source import Source, StoredTensor, without_keys

HEADER = struct.Struct('<7i')
BOS = 1  # begins every text and marks the end of the previous one
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # SentencePiece.Type
# First tokens of every tokenizer.bin: run.c hard-codes their ids.
CONTROL_PIECES = (('<unk>', _UNKNOWN), ('<s>', _CONTROL), ('</s>', _CONTROL))
BYTE_PIECES = tuple(f'<0x{byte:02X}>' for byte in range(256))


def read(path: pathlib.Path, ignore_keys: Sequence[str] = ()) -> Source:
    """Reads `NAME.bin` and the tokenizer of its folder, `tok*.bin` or `tok*.model`.

    Raises:
        UserError: the file is not of version 0 or is truncated, or a tokenizer is damaged.
    """
    without_keys({}, ignore_keys, name=str(path))  # the header has no keys
    size = path.stat().st_size
    with path.open('rb') as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        raise UserError(f'{path} is too short for a llama2.c model; fetch it again')
    d_model, d_ff, num_layers, num_heads, num_kv_heads, vocab_size, max_seq_len = HEADER.unpack(
        header
    )
    if min(d_model, d_ff, num_layers, num_heads, num_kv_heads, max_seq_len) < 1 or (
        d_model % num_heads or num_heads % num_kv_heads or not vocab_size
    ):
        raise UserError(
            f'{path} does not begin with the header of a llama2.c model of version 0; export it '
            f'with --version 0'
        )
    expected = HEADER.size + 4 * _count_floats(HEADER.unpack(header))
    if size != expected:
        raise UserError(
            f'{path} has {size} bytes, its header makes it {expected}; it is truncated, or not of '
            f'version 0'
        )
    model = ModelConfig(
        vocab_size=abs(vocab_size),
        max_seq_len=max_seq_len,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        d_model=d_model,
        d_ff=d_ff,
        position=PositionKind.ROPE,
        norm=NormKind.RMSNORM,
        mlp=MLPKind.SWIGLU,
        use_bias=False,
        tie_embeddings=vocab_size > 0,
        init=InitConfig(scale_residual=False),
    )
    finalize_model(model)
    model = freeze(model)
    return Source(
        name=str(path),
        model=model,
        layout=llama.layout_in_pairs(model),
        tensors=_tensors(path, model),
        tokenizer=_find_tokenizer(path, model.vocab_size),
    )


@dataclasses.dataclass(frozen=True)
class _Part:
    """The tensors of one kind, for all layers."""

    name: str
    shape: tuple[int, ...]


def parts(model: ModelConfig) -> list[_Part]:
    """Returns the parts after the header, in order; parts without a name are not weights."""
    d, f, k = model.d_model, model.d_ff, model.head_dim
    heads, kv_heads = model.num_heads, model.num_kv_heads
    layer = 'model.layers.{layer}.'
    waves = _Part('', (model.max_seq_len, k // 2))
    output = [] if model.tie_embeddings else [_Part('lm_head.weight', (model.vocab_size, d))]
    return [
        _Part('model.embed_tokens.weight', (model.vocab_size, d)),
        _Part(f'{layer}input_layernorm.weight', (d,)),
        _Part(f'{layer}self_attn.q_proj.weight', (heads * k, d)),
        _Part(f'{layer}self_attn.k_proj.weight', (kv_heads * k, d)),
        _Part(f'{layer}self_attn.v_proj.weight', (kv_heads * k, d)),
        _Part(f'{layer}self_attn.o_proj.weight', (d, heads * k)),
        _Part(f'{layer}post_attention_layernorm.weight', (d,)),
        _Part(f'{layer}mlp.gate_proj.weight', (f, d)),
        _Part(f'{layer}mlp.down_proj.weight', (d, f)),
        _Part(f'{layer}mlp.up_proj.weight', (f, d)),
        _Part('model.norm.weight', (d,)),
        waves,  # rotary cosines and sines, used by old versions only
        waves,
        *output,
    ]


def _count_floats(header: tuple[int, ...]) -> int:
    """Returns the count of floats after the header; an absurd header must not cost memory."""
    d, f, layers, heads, kv_heads, vocab, length = header
    kv_d = d // heads * kv_heads
    per_layer = 2 * d + 2 * d * d + 2 * d * kv_d + 3 * d * f
    tables = abs(vocab) * d * (1 if vocab > 0 else 2)
    return tables + layers * per_layer + d + 2 * length * (d // heads // 2)


def _tensors(path: pathlib.Path, model: ModelConfig) -> dict[str, StoredTensor]:
    """Returns the tensors by their names in the Llama family."""
    tensors, offset = {}, 0
    for part in parts(model):
        layers = range(model.num_layers) if '{layer}' in part.name else [0]
        for layer in layers:
            if part.name:
                read = functools.partial(_read, path, offset, part)
                tensors[part.name.format(layer=layer)] = StoredTensor(part.shape, read)
            offset += int(np.prod(part.shape))
    return tensors


def _read(path: pathlib.Path, offset: int, part: _Part) -> np.ndarray:
    start = HEADER.size + 4 * offset
    return np.memmap(path, dtype='<f4', mode='r', offset=start, shape=part.shape)


def _find_tokenizer(path: pathlib.Path, vocab_size: int) -> TableTokenizer | None:
    """Returns the first tokenizer of the folder with `vocab_size` tokens; None if there is none."""
    readers: dict[str, Callable[[pathlib.Path, int], TableTokenizer]] = {
        'tok*.bin': read_tokenizer,
        'tok*.model': lambda file, _: SentencePieceTokenizer.read(file),
    }
    for pattern, read_one in readers.items():
        found = [read_one(file, vocab_size) for file in sorted(path.parent.glob(pattern))]
        fitting = [each for each in found if each.vocab_size == vocab_size]
        if fitting:
            return fitting[0].with_ends(bos_id=BOS, eot_id=BOS)
    return None


def read_tokenizer(path: pathlib.Path, vocab_size: int) -> SentencePieceTokenizer:
    """Rebuilds the SentencePiece model of a `tokenizer.bin` from its pieces and scores.

    Raises:
        UserError: the file is truncated, or does not begin with the control tokens and the bytes.
    """
    pieces = []
    data, position = path.read_bytes(), 4
    while position + 8 <= len(data):
        score, length = struct.unpack_from('<fi', data, position)
        if length < 0:
            break
        text = data[position + 8 : position + 8 + length].decode('utf-8', 'replace')
        position += 8 + length
        pieces.append(Piece(text.replace(' ', '\u2581'), score, _NORMAL))
    if position != len(data) or len(pieces) < len(CONTROL_PIECES) + 256:
        raise UserError(
            f'{path} is not a tokenizer.bin of llama2.c, or is truncated; fetch it again'
        )
    for token_id, (text, kind) in enumerate(CONTROL_PIECES):
        pieces[token_id] = Piece(text, pieces[token_id].score, kind)
    for token_id, text in enumerate(BYTE_PIECES, start=len(CONTROL_PIECES)):
        if pieces[token_id].text != text:
            raise UserError(f'{path}: token {token_id} is not {text}; it is not of llama2.c')
        pieces[token_id] = Piece(text, pieces[token_id].score, _BYTE)
    return make_tokenizer(pieces, add_prefix=True, name=str(path))
