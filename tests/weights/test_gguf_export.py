"""Exported GGUF files come back; settings that the format cannot hold are refused by name."""

import dataclasses

import jax
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.model.config import DType
from gpt_jax.model.position import rope_frequencies
from gpt_jax.tokenizer import (
    SentencePieceAlgorithm,
    TokenizerConfig,
    TokenizerKind,
    make_tokenizer,
)
from gpt_jax.weights import open_source
from gpt_jax.weights.exporters import find_exporter
from gpt_jax.weights.gguf_export import FILE, export_gguf
from tests.command_line import run
from tests.pod import run_pod
from tests.weights.random_source import (
    GPT2,
    LLAMA,
    TEXT,
    bpe_tokenizer,
    load,
    make_model,
    random_params,
)

gguf = pytest.importorskip('gguf')
quants = gguf.quants


ROUND_TRIPS = {
    'gpt2': GPT2,
    'gpt2 untied': GPT2 | dict(tie_embeddings=False, norm_epsilon=1e-3, d_ff=40),
    'llama': LLAMA,
    'llama tied': LLAMA | dict(tie_embeddings=True, num_kv_heads=4, head_dim=10),
    'llama, linear': LLAMA | dict(rope_scaling=4.0, rope_base=5e5),
    'llama 3.1': LLAMA
    | dict(head_dim=64, rope_base=5e5, rope_scaling=8.0, rope_original_seq_len=8192),
    'qwen2': LLAMA | dict(qkv_bias=True),
    'qwen3': LLAMA | dict(qk_norm=True, head_dim=16),
}


def assert_equal_params(found, expected, config):
    def compare(path, a, b):
        rows = config.vocab_size if 'table' in str(path[-1]) else None
        np.testing.assert_array_equal(a[:rows], b[:rows], err_msg=str(path))

    jax.tree_util.tree_map_with_path(compare, found, expected)


@pytest.mark.parametrize('values', ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_out_and_in_is_bit_exact(values, tmp_path):
    config = make_model(**values)
    params = random_params(config)
    names = dict.fromkeys(('eos_token', 'pad_token'), '<|endoftext|>')
    tokenizer = bpe_tokenizer().with_chat(template='{{ messages }}', named_tokens=names)
    names = export_gguf(tmp_path, config, params, tokenizer, dtype='float32')
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    source, loaded = load(tmp_path / FILE)
    same = {'scale_residual_init': config.init.scale_residual}  # of training from scratch only
    assert dataclasses.replace(source.model, **same) == config
    assert_equal_params(loaded, params, config)
    assert source.tokenizer.eot_id == bpe_tokenizer().eot_id
    assert source.chat_template == tokenizer.chat_template
    assert source.tokenizer.named_tokens == tokenizer.named_tokens


def test_positions_of_llama_3_with_other_factors(tmp_path):
    """The three knobs are found up to what changes nothing: the frequencies are the same."""
    config = make_model(
        **LLAMA | dict(head_dim=64, rope_scaling=4.0, rope_original_seq_len=600),
        rope_low_freq_factor=2.0,
        rope_high_freq_factor=7.0,
    )
    export_gguf(tmp_path, config, random_params(config), bpe_tokenizer(), dtype='float32')
    found = open_source(str(tmp_path / FILE)).model
    assert (found.rope_low_freq_factor, found.rope_original_seq_len) == (1.0, 300)
    np.testing.assert_allclose(rope_frequencies(found), rope_frequencies(config), rtol=1e-6)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'q8_0'])
def test_narrow_types(dtype, tmp_path):
    """Matrices are what the library makes of them; vectors stay float32."""
    config = make_model(**LLAMA)
    params = random_params(config)
    export_gguf(tmp_path, config, params, bpe_tokenizer(), dtype=dtype)
    file = gguf.GGUFReader(tmp_path / FILE)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in file.tensors}
    kind = {'float16': 'F16', 'bfloat16': 'BF16', 'q8_0': 'Q8_0'}[dtype]
    assert kinds['blk.0.attn_q.weight'] == kinds['token_embd.weight'] == kind
    assert kinds['blk.0.attn_norm.weight'] == kinds['output_norm.weight'] == 'F32'
    # Rows of 48, no multiple of a block of 32.
    assert kinds['blk.0.ffn_down.weight'] == ('F16' if dtype == 'q8_0' else kind)
    _, loaded = load(tmp_path / FILE)
    np.testing.assert_array_equal(loaded['final_norm']['scale'], params['final_norm']['scale'])
    up = np.asarray(params['blocks']['mlp']['up']['kernel'][1]).T
    stored = gguf.GGMLQuantizationType[kind]
    expected = quants.dequantize(quants.quantize(np.ascontiguousarray(up), stored), stored)
    np.testing.assert_array_equal(loaded['blocks']['mlp']['up']['kernel'][1], expected.T)


def test_float16_that_would_overflow(tmp_path):
    config = make_model(**LLAMA)
    params = jax.tree.map(lambda x: x * 1e6, random_params(config))
    with pytest.raises(UserError, match='has numbers beyond float16; choose --dtype bfloat16'):
        export_gguf(tmp_path, config, params, bpe_tokenizer(), dtype='float16')
    assert not list(tmp_path.iterdir())


def make(kind, **values):
    config = TokenizerConfig(kind=TokenizerKind(kind), **values)
    return make_tokenizer(config, lambda: [TEXT + '12,\n\t'])


TOKENIZERS = {
    'byte': lambda: make('byte'),
    'char': lambda: make('char'),
    'bpe': lambda: make('bpe', vocab_size=290),
    'sentencepiece': lambda: make(
        'sentencepiece', vocab_size=295, algorithm=SentencePieceAlgorithm.BPE
    ),
}


@pytest.mark.parametrize('tokenizer', TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize('begins', [False, True], ids=['', 'with a beginning'])
def test_tokenizers_travel(tokenizer, begins, tmp_path):
    config, tokenizer = make_model(**GPT2), tokenizer()
    if begins:
        tokenizer = tokenizer.with_ends(bos_id=tokenizer.eot_id, eot_id=tokenizer.eot_id)
    export_gguf(tmp_path, config, random_params(config), tokenizer, dtype='float32')
    fields = gguf.GGUFReader(tmp_path / FILE).fields
    bpe = fields['tokenizer.ggml.model'].contents() == 'gpt2'
    assert ('tokenizer.ggml.merges' in fields) == bpe, 'llama.cpp reads no BPE without merges'
    back = open_source(str(tmp_path / FILE)).tokenizer
    for text in ('The quick  brown fox 12.', ' , the lazy\n\tdog ', ''):
        ids = tokenizer.encode(text)
        assert back.encode(text) == ids
        assert back.decode(ids) == text
    assert (back.bos_id, back.eot_id) == (tokenizer.bos_id, tokenizer.eot_id)


REFUSED = {
    'unigram': (LLAMA, lambda: make('sentencepiece', vocab_size=291), 'is of another kind'),
    'characters': (
        LLAMA,
        lambda: make_tokenizer(TokenizerConfig(kind=TokenizerKind.CHAR), lambda: ['é']),
        r"char tokenizers of ASCII only, and this one has 'é' \(U\+00E9\)",
    ),
    'no end': (
        LLAMA,
        lambda: bpe_tokenizer().with_ends(bos_id=None, eot_id=None),
        'needs a token that ends texts',
    ),
    'exact GELU': (GPT2 | dict(mlp='gelu'), bpe_tokenizer, 'gpt2 has no config.model.mlp=gelu'),
    'GEGLU': (LLAMA | dict(mlp='geglu'), bpe_tokenizer, 'llama has no config.model.mlp=geglu'),
    'Qwen with the positions of Llama 3.1': (
        LLAMA | dict(qk_norm=True, rope_scaling=2.0, rope_original_seq_len=16),
        bpe_tokenizer,
        'qwen3 has no config.model.rope.original_seq_len=16',
    ),
    'positions': (GPT2 | dict(position='alibi'), bpe_tokenizer, 'position=alibi'),
}


@pytest.mark.parametrize(('values', 'tokenizer', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_go_out(values, tokenizer, message, tmp_path):
    config = make_model(**values)
    with pytest.raises(UserError, match=message):
        export_gguf(tmp_path, config, None, tokenizer(), dtype='float32')
    assert not list(tmp_path.iterdir())


def test_names_of_formats_and_types(tmp_path):
    with pytest.raises(UserError, match="no format 'ggul' .*gguf"):
        find_exporter('ggul')
    config = make_model(**LLAMA)
    with pytest.raises(UserError, match='--dtype q8_0 is not for folders of safetensors'):
        find_exporter('hf')(tmp_path, config, None, bpe_tokenizer(), dtype='q8_0')
    with pytest.raises(UserError, match='--format gguf has no --dtype int8; choose .*q8_0'):
        export_gguf(tmp_path, config, None, bpe_tokenizer(), dtype='int8')
    assert [*DType] == ['float32', 'bfloat16']


@pytest.mark.slow
def test_stories_from_the_command_line(shared_data, tmp_path):
    """The trained model from llama2.c to GGUF (by two processes) and back, and its text."""
    folder = shared_data / 'weights' / 'stories260K'
    first, second = f'--workdir={tmp_path / "first"}', f'--workdir={tmp_path / "second"}'
    run('--mode=import_weights', f'--source={folder / "stories260K.bin"}', first)
    out = tmp_path / 'out'
    output = run_pod('2x1', '--mode=export', first, '--format=gguf', f'--out={out}')
    assert 'model.gguf, README.md' in output
    output = run('--mode=import_weights', f'--source={out / FILE}', second)
    assert 'begin with <s> (1), end with <s> (1)' in output
    text = run('--mode=generate', second, '--prompt=', '--temperature=0', '--max_new_tokens=256')
    assert text.startswith((folder / 'expected_greedy.txt').read_text().rstrip('\n') + '\n')
