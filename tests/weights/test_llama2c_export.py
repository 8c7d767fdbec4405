"""llama2.c out: the trained model's own files come out again; what run.c lacks is named."""

import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from gpt_jax.weights import open_source
from gpt_jax.weights.llama2c import BYTE_PIECES, CONTROL_PIECES, HEADER, parts
from gpt_jax.weights.llama2c_export import export_llama2c
from gpt_jax.weights.sentencepiece_pieces import Piece, make_tokenizer
from tests.command_line import run
from tests.weights.random_source import LLAMA, bpe_tokenizer, load, make_model, random_params

WORDS = ['\u2581the', '\u2581', 't', 'h', 'e', 'th']
LAYOUT = LLAMA | dict(vocab_size=259 + len(WORDS), scale_residual_init=False)


def llama_tokenizer(
    *, prefix: bool = True, bytes_first: bool = True, bos_id: int | None = 1
) -> SentencePieceTokenizer:
    """A BPE with Llama's order of ids."""
    control = [Piece(text, 0.0, kind) for text, kind in CONTROL_PIECES]
    bytes_ = [Piece(text, 0.0, 6) for text in BYTE_PIECES]
    words = [Piece(text, -float(i), 1) for i, text in enumerate(WORDS)]
    pieces = [*control, *bytes_, *words] if bytes_first else [*control, *words, *bytes_]
    tokenizer = make_tokenizer(pieces, add_prefix=prefix, name='a test')
    return tokenizer.with_ends(bos_id=bos_id, eot_id=1)


@pytest.mark.parametrize('tied', [False, True], ids=['untied', 'tied'])
def test_out_and_in_is_bit_exact(tied, tmp_path):
    config = make_model(**LAYOUT | dict(tie_embeddings=tied))
    params, tokenizer = random_params(config), llama_tokenizer()
    names = export_llama2c(tmp_path, config, params, tokenizer, dtype='float32')
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    source, loaded = load(tmp_path / 'model.bin')
    assert source.model == config
    for name in ('query', 'key', 'value', 'output'):
        found, expected = (p['blocks']['attention'][name]['kernel'] for p in (loaded, params))
        np.testing.assert_array_equal(found, expected)
    for name in ('embedding', 'output') if not tied else ('embedding',):
        rows = slice(config.vocab_size)
        np.testing.assert_array_equal(loaded[name]['table'][rows], params[name]['table'][rows])
    assert source.tokenizer.encode('the tea') == tokenizer.encode('the tea')


REFUSED = {
    'norm': (dict(norm_epsilon=1e-6), llama_tokenizer, 'no config.model.norm_epsilon=1e-06'),
    'rope': (dict(rope_base=5e5), llama_tokenizer, 'no config.model.rope.base=500000.0'),
    'scaling': (dict(rope_scaling=2.0), llama_tokenizer, 'no config.model.rope.scaling=2.0'),
    'biases': (dict(qkv_bias=True), llama_tokenizer, 'no config.model.attention.qkv_bias=True'),
    'heads': (dict(head_dim=16), llama_tokenizer, 'no config.model.head_dim=16'),
    'MLP': (dict(mlp='gelu'), llama_tokenizer, 'no config.model.mlp=gelu'),
    'kind': ({}, bpe_tokenizer, 'SentencePiece tokenizers only, and this one is bpe'),
    'order': ({}, lambda: llama_tokenizer(bytes_first=False), "Llama's order of ids"),
    'prefix': ({}, lambda: llama_tokenizer(prefix=False), 'begins each text with <s>'),
    'beginning': ({}, lambda: llama_tokenizer(bos_id=None), 'begins each text with <s>'),
}


@pytest.mark.parametrize(('values', 'tokenizer', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_go_out(values, tokenizer, message, tmp_path):
    config = make_model(**LAYOUT | values)
    with pytest.raises(UserError, match=message):
        export_llama2c(tmp_path, config, None, tokenizer(), dtype='float32')
    assert not list(tmp_path.iterdir())


def test_other_types(tmp_path):
    config = make_model(**LAYOUT)
    with pytest.raises(UserError, match='holds float32 only, not bfloat16; add --dtype float32'):
        export_llama2c(tmp_path, config, random_params(config), llama_tokenizer(), dtype='bfloat16')


@pytest.mark.slow
def test_stories_from_the_command_line(shared_data, tmp_path):
    """Both files of the trained model, but for the last bit of tables that nothing reads."""
    folder = shared_data / 'weights' / 'stories260K'
    workdir, out = f'--workdir={tmp_path / "run"}', tmp_path / 'out'
    run('--mode=import_weights', f'--source={folder / "stories260K.bin"}', workdir)
    output = run('--mode=export', workdir, '--format=llama2c', f'--out={out}')
    assert 'model.bin, tokenizer.bin, README.md' in output
    assert (out / 'tokenizer.bin').read_bytes() == (folder / 'tok512.bin').read_bytes()
    ours, theirs = (out / 'model.bin').read_bytes(), (folder / 'stories260K.bin').read_bytes()
    assert len(ours) == len(theirs)
    assert ours[: HEADER.size] == theirs[: HEADER.size]
    model = open_source(str(out / 'model.bin')).model
    start = HEADER.size
    for part in parts(model):
        repeats = model.num_layers if '{layer}' in part.name else 1
        end = start + 4 * repeats * int(np.prod(part.shape))
        if part.name:
            assert ours[start:end] == theirs[start:end], part.name
        else:
            tables = (np.frombuffer(data[start:end], '<f4') for data in (ours, theirs))
            np.testing.assert_allclose(*tables, rtol=0, atol=2**-24)
        start = end
    assert start == len(ours)
