"""llama.cpp itself runs what is exported; opt-in: pip install llama-cpp-python, minutes of C++."""

import numpy as np
import pytest

from gpt_jax.config_tree import freeze
from gpt_jax.model.config import MLPKind
from gpt_jax.tokenizer import (
    SentencePieceAlgorithm,
    TokenizerConfig,
    TokenizerKind,
    make_tokenizer,
)
from gpt_jax.weights import load_params, open_source
from gpt_jax.weights.gguf_export import FILE, export_gguf
from gpt_jax.weights.gguf_tokenizer import RULES, read_tokenizer, tokenizer_metadata
from tests.weights import gguf_models
from tests.weights.random_source import (
    GPT2,
    LLAMA,
    TEXT,
    bpe_tokenizer,
    logits,
    make_model,
    random_params,
    weight_shapes,
)

llama_cpp = pytest.importorskip('llama_cpp', reason='pip install llama-cpp-python')

F32 = 0  # ggml's type of the cache; by default it is float16
TOLERANCE = 1e-5  # of the largest logit
GELU_TOLERANCE = 2e-3  # ggml looks GELU up in a table of float16


def open_llama(path, length):
    return llama_cpp.Llama(
        str(path), n_ctx=length, logits_all=True, type_k=F32, type_v=F32, verbose=False, n_threads=1
    )


def tolerance_of(config):
    gelu = config.mlp.activation in (MLPKind.GELU_TANH, MLPKind.GEGLU)
    return GELU_TOLERANCE if gelu else TOLERANCE


def tokenizer_of(kind: str, **values):
    config = TokenizerConfig(kind=TokenizerKind(kind), **values)
    return make_tokenizer(config, lambda: [TEXT + '12\n'])


MODELS = {
    'gpt2': (GPT2, dict(kind='bpe', vocab_size=290)),
    'gpt2 of bytes': (GPT2, dict(kind='byte')),
    'gpt2 of characters': (GPT2, dict(kind='char')),
    'llama': (
        LLAMA,
        dict(kind='sentencepiece', vocab_size=295, algorithm=SentencePieceAlgorithm.BPE),
    ),
    'llama, linear scaling': (LLAMA | dict(rope_scaling=2.0), dict(kind='byte')),
    'llama 3.1': (
        LLAMA | dict(head_dim=32, rope_scaling=4.0, rope_original_seq_len=64),
        dict(kind='byte'),
    ),
    'qwen2': (LLAMA | dict(qkv_bias=True), dict(kind='byte')),
    'qwen3': (LLAMA | dict(qk_norm=True, head_dim=16), dict(kind='byte')),
}


@pytest.mark.parametrize(('values', 'vocabulary'), MODELS.values(), ids=MODELS)
def test_ids_and_logits(values, vocabulary, tmp_path):
    """The same ids of a text, the same logits, for each architecture and kind of tokenizer."""
    config, tokenizer = make_model(**values), tokenizer_of(**vocabulary)
    params = random_params(config)
    export_gguf(tmp_path, config, params, tokenizer, dtype='float32')
    theirs = open_llama(tmp_path / FILE, config.max_seq_len)
    text = 'The quick  brown fox\n'
    ids = theirs.tokenize(text.encode(), add_bos=True, special=False)
    assert ids == tokenizer.encode(text)
    theirs.eval(ids)
    ours = logits(config, params, np.array([ids]))[0]
    found = theirs.scores[: len(ids), : config.vocab_size]
    assert np.abs(ours - found).max() <= tolerance_of(config) * np.abs(ours).max()


@pytest.mark.parametrize(
    ('name', 'kind', 'keys'), gguf_models.MODELS.values(), ids=gguf_models.MODELS
)
def test_families(name, kind, keys, tmp_path, request):
    """The same logits and greedy text of a model of each family."""
    config = freeze(gguf_models.make(kind, keys))
    params = random_params(config)
    export_gguf(tmp_path, config, params, tokenizer_of('byte'), dtype='float32')
    theirs = open_llama(tmp_path / FILE, config.max_seq_len)
    ids = np.random.default_rng(0).integers(0, 256, 12).tolist()
    tolerance = tolerance_of(config)
    while len(ids) < 40:
        theirs.eval(ids[theirs.n_tokens :])
        found = theirs.scores[: len(ids), : config.vocab_size]
        ids.append(int(np.argmax(found[-1])))
    ours = logits(config, params, np.array([ids[:-1]]))[0]
    scale = np.abs(ours).max()
    difference = np.abs(ours - found).max() / scale
    print(f'{request.node.callspec.id}: {name}, {difference:.1e} of the largest logit')
    assert difference <= tolerance
    # Each token of their text is our most likely one, but for ties within the tolerance.
    chosen = ours[np.arange(11, len(ids) - 1), ids[12:]]
    assert (chosen >= ours[11:].max(-1) - 2 * tolerance * scale).all()


@pytest.mark.parametrize('rule', RULES)
def test_splitting_rules(rule, tmp_path):
    """The same ids under each rule, of words, numbers, line ends and other scripts."""
    metadata = tokenizer_metadata(bpe_tokenizer()) | {'pre': rule}
    tokenizer = read_tokenizer(metadata, name='a test')
    config = make_model(**GPT2)
    export_gguf(tmp_path, config, random_params(config), tokenizer, dtype='float32')
    theirs = open_llama(tmp_path / FILE, config.max_seq_len)
    for text in ("The quick  brown fox'S 12345\n\n  dog!!\r\n", ' Überfox, 東京 the\tfox ', "I'LL"):
        ids = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == tokenizer.encode(text)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16', 'q8_0'])
def test_stories(dtype, shared_data, tmp_path):
    """The trained model's greedy text; of q8_0 its beginning."""
    folder = shared_data / 'weights' / 'stories260K'
    source = open_source(str(folder / 'stories260K.bin'))
    params = load_params(source, weight_shapes(source.model))
    export_gguf(tmp_path, source.model, params, source.tokenizer, dtype=dtype)
    theirs = open_llama(tmp_path / FILE, 512)
    ids = theirs.tokenize(b'', add_bos=True)
    assert ids == [1]
    while len(ids) < 200:
        theirs.eval(ids[theirs.n_tokens :])
        ids.append(int(np.argmax(theirs.scores[theirs.n_tokens - 1])))
    text = theirs.detokenize(ids).decode().lstrip()
    length = len(text) if dtype == 'float32' else 60
    assert length > 50
    assert (folder / 'expected_greedy.txt').read_text().startswith(text[:length])
