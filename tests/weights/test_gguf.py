"""GGUF files as llama.cpp's converter writes them come in; what is wrong is named."""

import json
import struct
import sys

import numpy as np
import pytest
import tokenizers

from gpt_jax.errors import UserError
from gpt_jax.tokenizer.bpe import BpeTokenizer
from gpt_jax.tokenizer.tokenizer_json import JsonTokenizer
from gpt_jax.weights import gguf_architecture, open_source
from gpt_jax.weights.gguf_export import FILE, export_gguf
from gpt_jax.weights.gguf_file import _is_readable, _stored
from gpt_jax.weights.gguf_header import TensorInfo
from gpt_jax.weights.gguf_tokenizer import RULES, tokenizer_metadata
from tests.weights.random_source import (
    GPT2,
    LLAMA,
    bpe_tokenizer,
    load,
    logits,
    make_model,
    random_params,
)

gguf = pytest.importorskip('gguf')
quants = gguf.quants

WIDTH, HEADS, KV_HEADS, HEAD, VOCAB = 256, 4, 2, 64, 300
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 24))
# Of a block of 32 numbers: the largest error in units of its largest number, or of its range.
# Half a step of rounding, and the rounding of the block's scale to float16.
STEPS = {'F32': 0, 'F16': 2**-11, 'BF16': 2**-8, 'Q8_0': 0.57 / 127, 'Q4_0': 1 / 8, 'Q4_1': 1 / 15}


def random_tensor(rng, kind, shape):
    """`(bytes for the file, numbers)`; K-quants are made of random bits, as nothing packs them."""
    values = rng.normal(0, 0.1, shape).astype(np.float32)
    if kind in ('Q4_K', 'Q6_K'):
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        packed = rng.integers(0, 256, (shape[0], shape[1] // block, size), np.uint8)
        scales = rng.uniform(2**-13, 2**-12, (*packed.shape[:2], 2)).astype(np.float16)
        if kind == 'Q4_K':
            packed[..., :4] = scales.view(np.uint8)
        else:
            packed[..., -2:] = scales[..., :1].copy().view(np.uint8)
        return packed.reshape(shape[0], -1), quants.dequantize(
            packed.reshape(shape[0], -1), gguf.GGMLQuantizationType[kind]
        )
    packed = quants.quantize(values, gguf.GGMLQuantizationType[kind])
    exact = quants.dequantize(packed, gguf.GGMLQuantizationType[kind])
    blocks, found = (x.reshape(-1, 32) for x in (values, exact))
    unit = np.ptp(blocks, 1) if kind == 'Q4_1' else np.abs(blocks).max(1)
    assert (np.abs(blocks - found).max(1) <= STEPS[kind] * unit * 1.01).all()
    return packed, exact


def metadata(architecture):
    """Returns what the converter writes for a model of these sizes."""
    common = {
        'context_length': 32,
        'embedding_length': WIDTH,
        'block_count': 2,
        'feed_forward_length': WIDTH,
        'attention.head_count': HEADS,
    }
    if architecture == 'gpt2':
        return common | {'attention.layer_norm_epsilon': 1e-5}
    return common | {
        'attention.head_count_kv': KV_HEADS,
        'attention.layer_norm_rms_epsilon': 1e-6,
        'rope.dimension_count': HEAD,
        'rope.freq_base': 500000.0,
        'vocab_size': VOCAB,
    }


def shapes(architecture):
    """Names and shapes of llama.cpp's tensors, from its sources and not from our tables."""
    tensors = {'token_embd.weight': (VOCAB, WIDTH), 'output_norm.weight': (WIDTH,)}
    if architecture == 'gpt2':
        tensors |= {'position_embd.weight': (32, WIDTH), 'output_norm.bias': (WIDTH,)}
    else:
        tensors['output.weight'] = (VOCAB, WIDTH)
    for layer in range(2):
        block = f'blk.{layer}.'
        tensors |= {f'{block}{n}_norm.weight': (WIDTH,) for n in ('attn', 'ffn')}
        square = {'attn_output', 'ffn_up', 'ffn_down'}
        if architecture == 'gpt2':
            tensors |= {f'{block}{n}_norm.bias': (WIDTH,) for n in ('attn', 'ffn')}
            tensors |= {f'{block}{n}.bias': (WIDTH,) for n in square}
            tensors[f'{block}attn_qkv.weight'] = (3 * WIDTH, WIDTH)
            tensors[f'{block}attn_qkv.bias'] = (3 * WIDTH,)
        else:
            square |= {'ffn_gate', 'attn_q'}
            tensors |= {f'{block}attn_{n}.weight': (KV_HEADS * HEAD, WIDTH) for n in 'kv'}
        tensors |= {f'{block}{n}.weight': (WIDTH, WIDTH) for n in square}
    return tensors


def write(path, architecture='llama', kind='F32', *, change=None, tokenizer=True):
    """Writes a file; returns the numbers by tensor. `change(metadata, tensors)` spoils it."""
    rng = np.random.default_rng(0)
    values = {f'{architecture}.{key}': value for key, value in metadata(architecture).items()}
    values['general.name'] = 'a name'
    if tokenizer:
        vocabulary = bpe_tokenizer().tokenizer_json()['model']
        tokens = list(vocabulary['vocab']) + [f'[PAD{i}]' for i in range(VOCAB)]
        values |= {
            'tokenizer.ggml.model': 'gpt2',
            'tokenizer.ggml.pre': 'gpt-2',
            'tokenizer.ggml.tokens': tokens[:VOCAB],
            'tokenizer.ggml.merges': [' '.join(m) if not isinstance(m, str) else m
                                      for m in vocabulary['merges']],
            'tokenizer.ggml.token_type': [
                3 if i == bpe_tokenizer().eot_id else 1 if i < bpe_tokenizer().vocab_size else 5
                for i in range(VOCAB)
            ],
            'tokenizer.ggml.eos_token_id': bpe_tokenizer().eot_id,
            'tokenizer.ggml.bos_token_id': bpe_tokenizer().eot_id,
        }  # fmt: skip
    tensors = {
        name: random_tensor(rng, kind if len(shape) > 1 else 'F32', shape) + (kind,)
        if len(shape) > 1
        else (rng.normal(1, 0.1, shape).astype(np.float32),) * 2 + ('F32',)
        for name, shape in sorted(shapes(architecture).items())
    }
    if change is not None:
        change(values, tensors)
    writer = gguf.GGUFWriter(path, values.pop('general.architecture', architecture))
    adders = {bool: 'bool', int: 'uint32', float: 'float32', str: 'string', list: 'array'}
    for key, value in values.items():
        getattr(writer, f'add_{adders[type(value)]}')(key, value)
    for name, (packed, _, stored) in tensors.items():
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType[stored])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: exact for name, (_, exact, _) in tensors.items()}


def in_halves(matrix, heads):
    """Undoes `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py, one row at a time."""
    size = len(matrix) // heads
    undone = np.empty_like(matrix)
    for head in range(heads):
        for i in range(size // 2):
            undone[head * size + i] = matrix[head * size + 2 * i]
            undone[head * size + size // 2 + i] = matrix[head * size + 2 * i + 1]
    return undone


def kernels_of(tensors, architecture, layer):
    """Our kernels of a layer, from llama.cpp's tensors."""
    block, heads, kv = f'blk.{layer}.', (HEADS, HEAD), (KV_HEADS, HEAD)
    get = lambda name: tensors[f'{block}{name}.weight']  # noqa: E731
    if architecture == 'gpt2':
        query, key, value = np.split(get('attn_qkv'), 3)
        kv = heads
    else:
        query, key = in_halves(get('attn_q'), HEADS), in_halves(get('attn_k'), KV_HEADS)
        value = get('attn_v')
    found = {
        'attention/query': query.T.reshape(WIDTH, *heads),
        'attention/key': key.T.reshape(WIDTH, *kv),
        'attention/value': value.T.reshape(WIDTH, *kv),
        'attention/output': get('attn_output').T.reshape(*heads, WIDTH),
        'mlp/up': get('ffn_up').T,
        'mlp/down': get('ffn_down').T,
    }
    return found if architecture == 'gpt2' else found | {'mlp/gate': get('ffn_gate').T}


READABLE = [kind for kind in gguf.GGMLQuantizationType if _is_readable(kind)]


@pytest.mark.parametrize('kind', READABLE, ids=[kind.name for kind in READABLE])
def test_all_that_the_library_de_quantises_is_read(kind, tmp_path):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(0).integers(0, 99, (4, 2 * size), np.uint8)
    data = packed.view(np.uint8)
    stored = TensorInfo('x', (4, 2 * block), int(kind), 0)
    found = _stored(tmp_path, stored, data.reshape(-1)).read()
    assert found.shape == (4, 2 * block)
    if kind.name not in ('F16', 'F64'):
        expected = quants.dequantize(packed, kind)
        np.testing.assert_array_equal(np.asarray(found, np.float32), expected)


def test_keys_of_uploaders_are_read_over(tmp_path):
    """Only keys of the architecture and of the tokenizer have a part in a logit."""
    write(tmp_path / 'm.gguf', change=set_key('mradermacher.quantized_by', 'x'))
    assert open_source(str(tmp_path / 'm.gguf')).tokenizer is not None


def test_a_named_key_is_ignored(tmp_path):
    write(tmp_path / 'm.gguf', change=set_key('llama.logit_scale', 2.0))
    open_source(str(tmp_path / 'm.gguf'), ignore_keys=['llama.logit_scale'])
    with pytest.raises(UserError, match='has no key llama.scale; leave --ignore_key'):
        open_source(str(tmp_path / 'm.gguf'), ignore_keys=['llama.scale'])


CLAIMS = {
    'tensors': struct.pack('<IQQ', 3, 2**60, 0),
    'items': struct.pack('<IQQQ4sIIQ', 3, 0, 1, 4, b'some', 9, 4, 2**60),
    'texts': struct.pack('<IQQQ4sIIQ', 3, 0, 1, 4, b'some', 9, 8, 2**60),
    'a text': struct.pack('<IQQQ', 3, 0, 1, 2**60),
}


@pytest.mark.parametrize('claim', CLAIMS.values(), ids=CLAIMS)
def test_claims_are_compared_with_the_file(claim, tmp_path):
    (tmp_path / 'm.gguf').write_bytes(b'GGUF' + claim)
    with pytest.raises(UserError, match='is not a GGUF file, or is truncated'):
        open_source(str(tmp_path / 'm.gguf'))


def test_the_architecture_is_read_before_the_vocabulary(tmp_path):
    write(tmp_path / 'm.gguf', change=set_key('general.architecture', 'mamba'))
    data = (tmp_path / 'm.gguf').read_bytes()
    (tmp_path / 'm.gguf').write_bytes(data[: data.index(b'tokenizer.ggml.tokens')])
    with pytest.raises(UserError, match="general.architecture='mamba'"):
        open_source(str(tmp_path / 'm.gguf'))


@pytest.mark.parametrize('architecture', ['gpt2', 'llama'])
@pytest.mark.parametrize('kind', ['F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K'])
def test_tensors_are_de_quantised(architecture, kind, tmp_path):
    expected = write(tmp_path / 'm.gguf', architecture, kind)
    source, params = load(tmp_path / 'm.gguf')
    assert source.model.tie_embeddings == (architecture == 'gpt2')
    table = params['embedding']['table'][:VOCAB]
    np.testing.assert_array_equal(table, expected['token_embd.weight'])
    for layer in range(2):
        for path, kernel in kernels_of(expected, architecture, layer).items():
            group, name = path.split('/')
            found = params['blocks'][group][name]['kernel'][layer]
            np.testing.assert_array_equal(found, kernel, err_msg=path)
        norm = params['blocks']['mlp_norm']['scale'][layer]
        np.testing.assert_array_equal(norm, expected[f'blk.{layer}.ffn_norm.weight'])
    assert np.isfinite(logits(source.model, params, TOKENS)).all()
    assert isinstance(source.tokenizer, BpeTokenizer)
    assert source.tokenizer.encode('The quick fox') == bpe_tokenizer().encode('The quick fox')
    assert (source.tokenizer.bos_id, source.tokenizer.eot_id) == (None, bpe_tokenizer().eot_id)


def set_key(key, value):
    return lambda values, tensors: values.update({key: value})


def without(key):
    return lambda values, tensors: values.pop(key)


def add_tensor(name):
    return lambda values, tensors: tensors.update({name: tensors['output_norm.weight']})


def as_i8(values, tensors):
    tensor = tensors['blk.1.attn_q.weight'][1]
    tensors['blk.1.attn_q.weight'] = (tensor.astype(np.int8), tensor, 'I8')


def bent_positions(values, tensors):
    """Llama 3.1's factors but for one of the ramp."""
    scaled = dict(rope_base=5e5, rope_scaling=8.0, rope_original_seq_len=8192)
    factors = gguf_architecture.rope_factors(make_model(**LLAMA | scaled | dict(head_dim=HEAD)))
    ramp = np.flatnonzero((factors > 1) & (factors < factors.max()))
    factors[ramp[1]] *= 1.01
    tensors['rope_freqs.weight'] = (factors, factors, 'F32')


WRONG = {
    'architecture': (set_key('general.architecture', 'mamba'), "general.architecture='mamba'"),
    'tensor type': (as_i8, r'blk.1.attn_q.weight has the type I8; only F32, F16'),
    'key': (set_key('llama.logit_scale', 2.0), 'has logit_scale=2.0, which is not supported'),
    'number': (set_key('llama.block_count', 'two'), "block_count='two', which must be a whole"),
    'layers': (set_key('llama.block_count', 2**30), 'its config 1073741824 layers'),
    'tokens': (set_key('tokenizer.ggml.tokens', [1, 2]), 'tokens=.*must be a list of str'),
    'template': (set_key('tokenizer.chat_template', 7), 'chat_template must be a text'),
    'experts': (set_key('llama.expert_count', 8), "has no 'expert_used_count'"),
    'scaling': (set_key('llama.rope.scaling.type', 'longrope'), "scaling.type='longrope'"),
    'partial rotation': (set_key('llama.rope.dimension_count', 32), 'rope.dimension_count=32'),
    'layers that differ': (set_key('llama.feed_forward_length', [256, 128]), 'in each layer'),
    'epsilon': (without('llama.attention.layer_norm_rms_epsilon'), 'has no .*rms_epsilon'),
    'part': (set_key('split.count', 2), 'one part of several'),
    'tensor more': (add_tensor('blk.0.attn_q.bias'), 'more than the model can hold: blk.0.attn_q'),
    'tensor less': (lambda v, t: t.pop('blk.1.ffn_up.weight'), 'has no blk.1.ffn_up.weight'),
    'positions': (add_tensor('rope_freqs.weight'), 'rope_freqs.weight, which does not scale'),
    'bent positions': (bent_positions, 'rope_freqs.weight, which does not scale'),
    'shape': (set_key('llama.block_count', 1), 'more than the model can hold: blk.1'),
    'tokenizer': (set_key('tokenizer.ggml.model', 'bert'), "model='bert'"),
    'splitting rule': (set_key('tokenizer.ggml.pre', 'tekken'), "pre='tekken'"),
    'no rule': (without('tokenizer.ggml.pre'), 'has no tokenizer.ggml.pre'),
    'end': (set_key('tokenizer.ggml.eos_token_id', 999), 'eos_token_id=999, but 300 tokens'),
    'types': (set_key('tokenizer.ggml.token_type', [1]), 'another number of token types'),
    'added ends': (set_key('tokenizer.ggml.add_eos_token', True), 'add_eos_token=True'),
}


@pytest.mark.parametrize(('change', 'message'), WRONG.values(), ids=WRONG)
def test_wrong_files(change, message, tmp_path):
    write(tmp_path / 'm.gguf', change=change)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / 'm.gguf')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('scaling', 'expected'),
    [
        ({}, 1.0),
        ({'factor': 4.0}, 4.0),
        ({'factor': 4.0, 'type': 'linear'}, 4.0),
        ({'factor': 4.0, 'type': 'none'}, 1.0),
        ({'factor': 0.0}, 1.0),
    ],
)
def test_linear_scaling_as_llama_cpp_has_it(scaling, expected, tmp_path):
    """A factor alone is linear scaling, and 0 is none."""
    keys = {f'llama.rope.scaling.{key}': value for key, value in scaling.items()}
    write(tmp_path / 'm.gguf', change=lambda values, _: values.update(keys))
    assert open_source(str(tmp_path / 'm.gguf')).model.rope_scaling == expected


@pytest.mark.parametrize('size', [0, 3, 30, 4000, 60_000, -1000])
def test_torn_files(size, tmp_path):
    write(tmp_path / 'm.gguf')
    data = (tmp_path / 'm.gguf').read_bytes()
    (tmp_path / 'm.gguf').write_bytes(data[:size])
    with pytest.raises(UserError, match='is not a GGUF file, or is truncated') as error:
        open_source(str(tmp_path / 'm.gguf'))
    assert '\n' not in str(error.value)


def test_without_the_library(tmp_path, monkeypatch):
    write(tmp_path / 'm.gguf')
    monkeypatch.setitem(sys.modules, 'gguf', None)
    with pytest.raises(UserError, match=r"need the gguf library: pip install -e '.\[gguf\]'"):
        open_source(str(tmp_path / 'm.gguf'))


@pytest.mark.parametrize('rule', RULES)
def test_splitting_rules(rule, tmp_path):
    """Each named rule splits as its regular expression says, and goes out under its name."""
    write(tmp_path / 'm.gguf', change=set_key('tokenizer.ggml.pre', rule))
    tokenizer = open_source(str(tmp_path / 'm.gguf')).tokenizer
    spec = tokenizer.tokenizer_json()
    split = tokenizers.Tokenizer.from_str(json.dumps(spec)).pre_tokenizer
    pieces = [piece for piece, _ in split.pre_tokenize_str("I'LL add 12345")]
    assert (
        pieces
        == {
            'gpt-2': ['I', "'", 'LL', 'Ġadd', 'Ġ12345'],
            'smollm': ['I', "'", 'LL', 'Ġadd', 'Ġ', '1', '2', '3', '4', '5'],
            'llama-bpe': ['I', "'LL", 'Ġadd', 'Ġ', '123', '45'],
            'qwen2': ['I', "'LL", 'Ġadd', 'Ġ', '1', '2', '3', '4', '5'],
            'dbrx': ['I', "'LL", 'Ġadd', 'Ġ', '123', '45'],
        }[rule]
    )
    assert (tokenizer.bos_id is not None) == (rule == 'llama-bpe'), 'as llama.cpp has it'
    config = make_model(**GPT2)
    export_gguf(tmp_path, config, random_params(config), tokenizer, dtype='float32')
    fields = gguf.GGUFReader(tmp_path / FILE).fields
    assert fields['tokenizer.ggml.pre'].contents() == rule


@pytest.mark.parametrize(('name', 'rule'), [('olmo', 'gpt-2'), ('stablelm2', 'qwen2')])
def test_other_names_of_rules(name, rule, tmp_path):
    write(tmp_path / 'm.gguf', change=set_key('tokenizer.ggml.pre', name))
    tokenizer = open_source(str(tmp_path / 'm.gguf')).tokenizer
    assert tokenizer_metadata(tokenizer)['pre'] == rule


def test_qwens_composition_goes_out_as_qwen2(tmp_path):
    """llama.cpp's converter writes qwen2 for the tokenizer.json of Qwen, which composes Unicode."""
    write(tmp_path / 'm.gguf', change=set_key('tokenizer.ggml.pre', 'qwen2'))
    spec = open_source(str(tmp_path / 'm.gguf')).tokenizer.tokenizer_json()
    spec = spec | {'normalizer': {'type': 'NFC'}}
    assert tokenizer_metadata(JsonTokenizer(spec, name='x'))['pre'] == 'qwen2'
    spec['normalizer'] = {'type': 'NFKC'}
    with pytest.raises(UserError, match='has no name for the way'):
        tokenizer_metadata(JsonTokenizer(spec, name='x'))


def test_every_end_of_a_file_ends_a_text(tmp_path):
    write(tmp_path / 'm.gguf', change=set_key('tokenizer.ggml.eot_token_id', 5))
    tokenizer = open_source(str(tmp_path / 'm.gguf')).tokenizer
    assert (tokenizer.eot_id, tokenizer.more_ends) == (bpe_tokenizer().eot_id, (5,))
    assert tokenizer_metadata(tokenizer)['eot_token_id'] == 5


def test_reading_is_lazy(tmp_path, monkeypatch):
    """Opening a file de-quantises nothing."""
    write(tmp_path / 'm.gguf', kind='Q4_K')
    calls = []
    original = quants.dequantize
    monkeypatch.setattr(quants, 'dequantize', lambda *a: calls.append(1) or original(*a))
    source = open_source(str(tmp_path / 'm.gguf'))
    assert not calls
    source.tensors['blk.0.ffn_up.weight'].read()
    assert len(calls) == 1
