"""Texts that must be JSON: they parse and follow their schemas, and change no other text."""

import concurrent.futures
import json
import re

import jax
import jsonschema
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.errors import UserError
from gpt_jax.inference.config import SampleConfig
from gpt_jax.serve.grammar import NEEDED, JsonGrammars
from gpt_jax.serve.request import RequestOptions
from gpt_jax.tokenizer import TokenizerConfig, TokenizerKind, make_tokenizer
from gpt_jax.tokenizer.char import CharTokenizer
from gpt_jax.tokenizer.symbol import SymbolTokenizer
from tests.serve.test_engine import check_scores, logprobs_of, start
from tests.serve.tiny import SMALL, alone, fit, serving, submit
from tests.tiny_config import TEXT
from tests.tokenizer.test_tokenizer_json import llama2, llama3, read

pytest.importorskip('llguidance', reason='needs the extra serve')
pytest.importorskip('uvicorn', reason='needs the extra serve')
openai = pytest.importorskip('openai', reason='needs requirements-dev.txt')

SCHEMA = {
    '$schema': 'https://json-schema.org/draft/2020-12/schema',
    'type': 'object',
    'properties': {
        'name': {'type': 'string', 'maxLength': 12},
        'age': {'type': 'integer', 'minimum': 0, 'maximum': 150},
        'tags': {'type': 'array', 'items': {'enum': ['a"b', 'é', None, True]}, 'maxItems': 3},
        'next': {'anyOf': [{'$ref': '#/$defs/next'}, {'type': 'null'}]},
    },
    'required': ['name', 'age', 'tags', 'next'],
    'additionalProperties': False,
    '$defs': {'next': {'type': 'number', 'minimum': -1, 'maximum': 1}},
}
LIMITED = {'type': 'json_schema', 'json_schema': {'name': 'person', 'schema': SCHEMA}}
ANY = {'type': 'json_object'}
ASK = {'model': 'tiny', 'messages': [{'role': 'user', 'content': 'Who?'}], 'max_tokens': 400}


def trained(kind, size):
    return make_tokenizer(TokenizerConfig(kind=kind, vocab_size=size), lambda: [TEXT.read_text()])


TOKENIZERS = {
    'byte': lambda _: make_tokenizer(TokenizerConfig(), list),
    'char': lambda _: CharTokenizer(map(chr, range(256))),
    'bpe': lambda _: trained(TokenizerKind.BPE, 400),
    'sentencepiece': lambda _: trained(TokenizerKind.SENTENCEPIECE, 400),
    'llama2': lambda folder: read(llama2(), folder),
    'llama3': lambda folder: read(llama3(), folder).with_more_ends([290]),
    'no end': lambda folder: read(llama2(), folder).with_ends(bos_id=None, eot_id=None),
}


@pytest.mark.parametrize('name', TOKENIZERS)
def test_any_choice_of_allowed_tokens_is_json_with_every_tokenizer(name, tmp_path):
    tokenizer = TOKENIZERS[name](tmp_path)
    grammars, random = JsonGrammars(tokenizer), np.random.default_rng(0)
    special = [*tokenizer.special_tokens.values(), *tokenizer.more_ends]
    texts = set()
    for _ in range(20):
        text, tokens = grammars.start(SCHEMA), []
        while not tokens or not text.push(tokens[-1:]):
            assert not text.error
            allowed = np.flatnonzero(text.bias_V == 0)
            assert not set(special) & set(allowed), 'it would be in the middle of the text'
            tokens.append(int(random.choice(allowed)))
        texts.add(tokenizer.decode(tokens))
        jsonschema.validate(json.loads(tokenizer.decode(tokens)), SCHEMA)
    assert len(texts) == 20
    number = grammars.start({'type': 'integer'})
    assert not number.push(tokenizer.encode('7', continues=True))
    assert set(np.flatnonzero(number.bias_V == 0)) & {*special} == {
        end for end in (tokenizer.eot_id, *tokenizer.more_ends) if end is not None
    }, 'a number may end, or go on'


@pytest.fixture(scope='module', params=[0, 4], ids=lambda drafts: f'drafts {drafts}')
def client(request):
    with serving(draft_tokens=request.param) as client:
        yield client


@pytest.fixture(scope='module')
def official(client):
    return openai.OpenAI(base_url=f'http://127.0.0.1:{client.port}/v1', api_key='none')


def closing() -> dict[str, float]:
    """A bias to end strings and objects, which a model that never saw JSON hardly does."""
    tokenizer = fit().tokenizer
    return {str(tokenizer.encode(mark)[0]): bias for mark, bias in (('"', 4.0), ('}', 5.0))}


def test_texts_are_json_beside_others_that_do_not_change(official, caplog):
    """Objects and schemas, in chats and completions, whole and streamed; more than there are rows.

    Each is the text that its seed gives alone, and nothing is compiled.
    """

    def chat(form, seed, **more):
        answer = official.chat.completions.create(
            **ASK, seed=seed, response_format=form, **more
        ).choices[0]
        return answer.message.content, answer.finish_reason

    def streamed(form, seed, **more):
        parts = official.chat.completions.create(
            **ASK, seed=seed, response_format=form, stream=True, **more
        )
        parts = [part.choices[0] for part in parts]
        return ''.join(p.delta.content or '' for p in parts), parts[-1].finish_reason

    def complete(form, seed, **more):
        answer = official.completions.create(
            model='tiny', prompt='Alice', max_tokens=400, seed=seed,
            extra_body={'response_format': form}, **more,
        ).choices[0]  # fmt: skip
        return answer.text, answer.finish_reason

    asked = [
        (ask, form, seed, more)
        for seed in range(2)
        for ask in (chat, streamed, complete)
        for form, more in ((LIMITED, {}), (ANY, {'logit_bias': closing()}))
    ]
    plain = SampleConfig(temperature=0.9, max_new_tokens=100, seed=5)
    [expected] = alone(fit(), 'Alice', plain)
    alone_texts = [ask(form, seed, **more) for ask, form, seed, more in asked]
    with jax.log_compiles(), concurrent.futures.ThreadPoolExecutor(20) as pool:
        caplog.clear()
        texts = [pool.submit(ask, form, seed, **more) for ask, form, seed, more in asked]
        beside = [pool.submit(complete, {'type': 'text'}, 5, temperature=0.9) for _ in range(3)]
        assert [text.result() for text in texts] == alone_texts
        assert all(text.result()[0].startswith(expected.text) for text in beside)
    assert not re.findall(r'Compiling [^ ]+', caplog.text)
    for (_, form, _, _), (text, reason) in zip(asked, alone_texts, strict=True):
        assert reason == 'stop'
        jsonschema.validate(json.loads(text), SCHEMA if form is LIMITED else {'type': 'object'})
    streams = {text for (ask, *_), text in zip(asked, alone_texts, strict=True) if ask is streamed}
    chats = {text for (ask, *_), text in zip(asked, alone_texts, strict=True) if ask is chat}
    assert streams == chats and len(chats) == 4, 'the seed matters'


def test_the_client_reads_answers_into_its_own_classes(official):
    pydantic = pytest.importorskip('pydantic')

    class Person(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=10)
        age: int = pydantic.Field(ge=0, le=150)

    found = official.chat.completions.parse(**ASK, seed=1, response_format=Person)
    assert type(found.choices[0].message.parsed) is Person


def test_a_text_that_is_cut_says_so(official):
    """Just before its end, it is too short; with the last token, it is whole."""
    whole = official.chat.completions.create(**ASK, seed=3, response_format=LIMITED)
    count = whole.usage.completion_tokens
    for tokens, reason in ((count, 'stop'), (count - 1, 'length')):
        found = official.chat.completions.create(
            **ASK | {'max_tokens': tokens}, seed=3, response_format=LIMITED
        )
        assert found.choices[0].finish_reason == reason
        assert whole.choices[0].message.content.startswith(found.choices[0].message.content)
        assert (found.choices[0].message.content.endswith('}')) == (reason == 'stop')


def test_log_probabilities_are_those_of_the_model():
    gpt = fit()
    with start(gpt) as engine:
        prompt = gpt.tokenizer.encode('Alice')
        request = submit(
            engine, prompt, SampleConfig(seed=1), RequestOptions(schema=SCHEMA, best=3)
        )
        pieces = list(request)
    tokens = sum((piece.tokens for piece in pieces), [])
    scores = sum((piece.scores for piece in pieces), [])
    assert tokens[0] not in [token for token, _ in scores[0].best], 'a text would not begin so'
    check_scores(scores, tokens, logprobs_of(gpt, prompt + tokens)[len(prompt) - 1 : -1], 3)


def test_json_goes_on_when_it_exceeds_the_context(official):
    many = {'type': 'array', 'items': {'enum': [0, 1]}, 'minItems': 90, 'maxItems': 90}
    form = {'type': 'json_schema', 'json_schema': {'name': 'bits', 'schema': many}}
    found = official.chat.completions.create(**ASK | {'max_tokens': 1500}, response_format=form)
    assert found.usage.completion_tokens > 150
    assert len(json.loads(found.choices[0].message.content)) == 90


REFUSED = [
    ({'not': {}}, 'Unimplemented keys: ["not"]'),
    ({'type': 'nothing'}, 'Invalid type: nothing'),
    ({'type': 'string', 'pattern': '(?=a)b'}, 'look-ahead'),
    ({'type': 'string', 'format': 'secret'}, 'Unknown format: secret'),
    ({'$ref': 'file:///etc/passwd'}, 'does not fetch'),
    ({'$ref': '#'}, 'no token can come next'),
    ({'oneOf': [{}, {'maxLength': 3}]}, 'oneOf'),
    ({'properties': {'a': 3}}, 'must be an object or boolean'),
    ({'x-guidance': {'item_separator': ';'}}, 'x-guidance'),
    ({'enum': ['a' * 100_000]}, '100,000 characters'),
    # It is too much only when the text has begun.
    (
        {'properties': {f'p{i}': {} for i in range(3000)}, 'type': 'object', 'required': ['z']},
        'items',
    ),
]


@pytest.mark.parametrize(('schema', 'message'), REFUSED, ids=lambda value: str(value)[:40])
def test_a_schema_that_cannot_be_followed_gets_one_line(official, schema, message):
    form = {'type': 'json_schema', 'json_schema': {'name': 'a', 'schema': schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        official.chat.completions.create(**ASK, response_format=form)
    error = caught.value.body
    assert message in error['message'] and error['param'] == 'response_format'
    assert '\n' not in error['message'] and len(error['message']) < 300


def test_a_tokenizer_that_cannot_write_json_is_named():
    lacks = re.escape('{ } [ ] : , - 4')
    with pytest.raises(UserError, match=f'^response_format=json_object .* {lacks}'):
        JsonGrammars(CharTokenizer('abc0123 "')).start({'type': 'object'})
    with pytest.raises(UserError, match=r'^response_format=json_object .* [{] [}]'):
        JsonGrammars(SymbolTokenizer(['{', '}'])).start({'type': 'object'})


def test_a_text_that_comes_to_a_dead_end_gets_one_line():
    """The tokenizer can write JSON, but not the name of a property."""
    schema = {'type': 'object', 'properties': {'z': {}}, 'required': ['z']}
    form = {'type': 'json_schema', 'json_schema': {'name': 'a', 'schema': schema}}
    gpt = GPT(**SMALL | {'max_seq_len': 64}, tokenizer=CharTokenizer(NEEDED.decode()))
    with serving(gpt, rows=1) as client:
        body = {'prompt': 'a', 'max_tokens': 50, 'response_format': form}
        status, _, content = client.request('/v1/completions', body)
        error = json.loads(content)['error']
        assert status == 400 and error['param'] == 'response_format'
        assert 'cannot go on: no token can come next' in error['message']
        assert client.ask('/v1/completions', prompt='a', max_tokens=3)['choices']
