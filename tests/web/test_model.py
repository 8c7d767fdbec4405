"""The network in JavaScript: its logits, attention and texts are those of Python."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig
from gpt_jax.inference.generate import Generator
from gpt_jax.model.config import PrecisionConfig
from gpt_jax.model.gpt import GPT
from gpt_jax.model.layer_stack import to_executed
from gpt_jax.model.weight_rounding import RoundedType, round_weights
from gpt_jax.tokenizer.byte import ByteTokenizer
from tests.model_configs import SINGLE, make_config
from tests.web.sessions import Sessions, check_attention
from tests.weights.random_source import GPT2, LLAMA, bpe_tokenizer, make_model

REFUSED = {
    'experts': 'config.model.mlp=mixture_of_experts',
    'experts, balanced by bias': 'config.model.mlp=mixture_of_experts',
    'experts, not gated': 'config.model.mlp=mixture_of_experts',
    'layers of several kinds': 'config.model.mlp=mixture_of_experts',
    **{name: 'config.model.attention=differential' for name in SINGLE if 'differential' in name},
    **{name: 'config.model.attention=latent' for name in SINGLE if 'latent' in name},
    'mup': 'config.model.attention=latent',
}
# Several parts at once, of a published model each where there is one.
TOGETHER = {
    'Gemma 2': dict(
        position='rope',
        norm='rmsnorm',
        norm_placement='sandwich',
        norm_zero_centered=True,
        mlp='geglu',
        use_bias=False,
        num_kv_heads=2,
        layer_kinds=(dict(window=5), dict(rope_base=100.0)),
        attention_soft_cap=5.0,
        output_soft_cap=3.0,
        scale_embedding=True,
        attention=dict(query_pre_attn_scalar=3.0),
    ),
    'mup': dict(
        parametrization='mup',
        base=dict(d_model=16, num_heads=4),
        tie_embeddings=False,
        scale_embedding=True,
    ),
    'quickstart': dict(position='rope', norm='rmsnorm', qk_norm=True, mlp='relu2', use_bias=False),
    'two stacks': dict(layer_kinds=(dict(norm='rmsnorm', mlp='swiglu'), dict(), dict(mlp='none'))),
}
TABLE = {**SINGLE, **{f'together: {name}': each for name, each in TOGETHER.items()}}


@pytest.fixture(scope='module')
def sessions(visit, tmp_path_factory):
    return Sessions(visit, tmp_path_factory.mktemp('exports'))


def expected_logits(config, params, ids):
    executed = to_executed(params, config, scan=False)
    return np.asarray(GPT(config).apply({'params': executed}, jnp.asarray([ids]))[0][0])


QUICK = ('default', 'gqa', 'position=alibi', 'together: Gemma 2', 'together: quickstart')


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in TABLE
        if name not in REFUSED
    ],
)
def test_logits(sessions, name):
    """Of a prompt of 7 at once, which is no multiple of a block, and of 9 tokens one by one."""
    config = make_config(**TABLE[name] | dict(vocab_size=257))
    config = dataclasses.replace(config, precision=PrecisionConfig())  # JavaScript has float32 only
    params = sessions.export(name, config)
    ids = np.random.default_rng(0).integers(0, 257, 16)
    expected = expected_logits(config, params, ids)[6:]
    found = sessions.logits(name, ids, prompt=7)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize('name', REFUSED)
def test_other_parts_are_refused(name, tmp_path):
    config = make_config(**SINGLE[name] | dict(vocab_size=257))
    message = f'--format web has no {REFUSED[name]}, only grouped_query .* takes any architecture'
    with pytest.raises(UserError, match=message):
        Sessions(None, tmp_path).export('out', config, params={})
    assert not list(tmp_path.iterdir())


GREEDY = {
    'gpt2': (GPT2 | dict(vocab_size=257), ByteTokenizer),
    'llama': (LLAMA | dict(vocab_size=300), functools.partial(bpe_tokenizer, 300)),
}


@pytest.mark.parametrize('name', GREEDY)
def test_greedy_text_of_each_type(sessions, name):
    """Longer than the context, from which the text goes on with its last half, twice."""
    values, make_tokenizer = GREEDY[name]
    tokenizer = make_tokenizer()
    config = make_model(**values | dict(vocab_size=tokenizer.vocab_size))
    prompt, first_logprobs = tokenizer.encode('The quick'), set()
    for dtype in RoundedType:
        params = sessions.export(f'{name} {dtype}', config, tokenizer, dtype=dtype)
        weights = round_weights(params, config, dtype)
        sampling = SampleConfig(temperature=0.0, max_new_tokens=60)
        [expected] = Generator(config, weights, tokenizer).generate([prompt], sampling)
        pieces = sessions.generate(f'{name} {dtype}', prompt, max_new_tokens=60)
        found = [piece['id'] for piece in pieces if piece['ended'] != 'end_of_text']
        assert found == expected.tokens, dtype
        assert ''.join(piece['text'] for piece in pieces) == expected.text, dtype
        ids = np.array([*prompt, *found])[: config.max_seq_len]
        logits = expected_logits(config, weights, ids).astype(np.float64)[len(prompt) - 1 :]
        check_probabilities(pieces, logits)
        first_logprobs.add(pieces[0]['logprob'])
    assert len(first_logprobs) == len(RoundedType)  # each is rounded in another way


def check_probabilities(pieces, logits):
    for piece, row in zip(pieces, logits, strict=False):
        logprobs = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert piece['logprob'] == pytest.approx(logprobs[piece['id']], abs=1e-4)
        best = np.argsort(-logprobs)[:10]
        assert [each['id'] for each in piece['alternatives']] == best.tolist()
        found = [each['logprob'] for each in piece['alternatives']]
        np.testing.assert_allclose(found, logprobs[best], atol=1e-4)


@pytest.mark.parametrize('options', [{}, dict(num_kv_heads=2, window_pattern=(4,))])
def test_attention(sessions, options):
    check_attention(sessions, f'attention {len(options)}', **options)


def test_what_is_cached_changes_nothing(sessions):
    """Longer, shorter and other texts, beyond the context and back, on what is left of others."""
    sessions.export('cached', make_model(**GPT2 | dict(vocab_size=257)))
    ids = [(37 * i) % 256 for i in range(50)]
    other = [*ids[:20], 7, 8, 9]
    branches = [ids[:30], ids[:31], other, ids[:25], ids, ids[:12], ids[:12]]
    for reused, fresh in sessions.branches('cached', branches, attended=3):
        np.testing.assert_allclose(reused, fresh, atol=1e-5)


def test_without_the_cache_all_is_read_again_for_each_token(sessions):
    sessions.export('read', make_model(**GPT2 | dict(vocab_size=257)))
    ids = [*b'The quick']
    assert sessions.read('read', ids, max_new_tokens=4, use_cache=True) == [9, 1, 1, 1]
    assert sessions.read('read', ids, max_new_tokens=4, use_cache=False) == [9, 10, 11, 12]
    texts = [
        [each['id'] for each in sessions.generate('read', ids, use_cache=use_cache)]
        for use_cache in (True, False)
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 40
