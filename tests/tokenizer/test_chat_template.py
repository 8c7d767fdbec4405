"""Conversations as text and ids, and which of the ids are learned."""

import datetime
import io
import pickle

import numpy as np
import pytest
import sentencepiece

from gpt_jax import tokenizer as tokenizers
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerConfig, chat_template, template_limits
from gpt_jax.tokenizer.chat_template import ChatTemplate
from gpt_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from gpt_jax.tokenizer.tokenizer_json import JsonTokenizer

BYTE = tokenizers.make_tokenizer(TokenizerConfig(), list)
END = BYTE.eot_id
CHAT = [
    {'role': 'system', 'content': 'Be short.'},
    {'role': 'user', 'content': 'Why?'},
    {'role': 'assistant', 'content': 'So.'},
    {'role': 'user', 'content': 'And then?'},
    {'role': 'assistant', 'content': 'Häh'},
]
# As published with Qwen2, without its default system message: says where an answer begins alone.
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As of Llama 2: no line of its own for the answer, both ends in the text.
INST = (
    '{% for message in messages %}'
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'].strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant roles are supported') }}{% endif %}"
    '{% endfor %}'
)


def parts(template: ChatTemplate, messages=CHAT) -> list[tuple[str, bool]]:
    """The texts of the ids in order, and whether they are learned; ends are named."""
    ids, spans = chat_template.encode(template.segments(messages), BYTE)
    learned = np.zeros(len(ids), bool)
    for start, stop in spans:
        assert start < stop and not learned[start:stop].any()
        learned[start:stop] = True
    edges = [0, *(np.flatnonzero(np.diff(learned)) + 1), len(ids)]
    return [
        (text_of(ids[start:stop]), bool(learned[start]))
        for start, stop in zip(edges[:-1], edges[1:], strict=True)
    ]


def text_of(ids) -> str:
    return (
        ''.join('<end>' if i == END else bytes([i]).decode('latin-1') for i in map(int, ids))
        .encode('latin-1')
        .decode('utf-8')
    )


def test_the_default_template_learns_answers_and_where_they_end():
    template = ChatTemplate(chat_template.DEFAULT)
    assert parts(template) == [
        ('<|system|>\nBe short.\n<|user|>\nWhy?\n<|assistant|>\n', False),
        ('So.<end>', True),
        ('\n<|user|>\nAnd then?\n<|assistant|>\n', False),
        ('Häh<end>', True),
        ('\n', False),
    ]
    text = chat_template.to_text(template.segments(CHAT))
    assert text.startswith('<|system|>\nBe short.\n') and text.endswith('Häh\n')
    assert len(text) == sum(len(part.replace('<end>', '')) for part, _ in parts(template))


def test_a_template_that_marks_answers():
    """Only what is inside the block; whitespace control works in it."""
    template = ChatTemplate(
        '{% for m in messages %}{{ m.role }}:'
        "{% if m.role == 'assistant' %} {% generation %}{{ m.content }}!{% endgeneration %}\n"
        '{% else %} {{ m.content }}{% endif %};{% endfor %}'
    )
    assert parts(template) == [
        ('system: Be short.;user: Why?;assistant: ', False),
        ('So.!', True),
        (';user: And then?;assistant: ', False),
        ('Häh!', True),
        (';', False),
    ]


def test_a_template_that_says_where_answers_begin():
    template = ChatTemplate(CHATML)
    assert parts(template) == [
        (
            '<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n'
            '<|im_start|>assistant\n',
            False,
        ),
        ('So.<|im_end|>\n', True),
        ('<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n', False),
        ('Häh<|im_end|>\n', True),
    ]


def test_a_template_that_ends_whole_conversations():
    """As of Phi 3: the end of text stands behind the last message, whoever said it."""
    template = ChatTemplate(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    )
    assert parts(template, CHAT[1:]) == [
        ('<|user|>\nWhy?<|end|>\n<|assistant|>\n', False),
        ('So.<|end|>\n', True),
        ('<|user|>\nAnd then?<|end|>\n<|assistant|>\n', False),
        ('Häh<|end|>\n<end>', True),
    ]


def test_marks_are_the_templates_affair():
    """One that marks answers has marked all that there are, also where it marks none."""
    template = ChatTemplate(
        "{% for m in messages %}{% if m['train'] %}{% generation %}{{ m['content'] }}"
        "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}|{% endfor %}"
    )
    assert parts(template) == [('Be short.|Why?|So.|And then?|Häh|', False)]
    chat = [*CHAT[:-1], CHAT[-1] | {'train': True}]
    assert parts(template, chat)[1:] == [('Häh', True), ('|', False)]


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        (INST, 'does not say where an answer to nothing begins; mark the answers in it'),
        ("{{ messages[0]['role'] }}" + CHATML, 'does not say where an answer to nothing begins'),
    ],
)
def test_an_answer_to_nothing(source, message):
    """Learned where the template says where it begins."""
    chat = [CHAT[-1]]
    with pytest.raises(UserError, match=message):
        ChatTemplate(source).segments(chat)
    assert parts(ChatTemplate(CHATML), chat)[1] == ('Häh<|im_end|>\n', True)
    assert parts(ChatTemplate(), chat)[1] == ('Häh<end>', True)


def test_a_template_in_which_answers_follow_at_once():
    assert parts(ChatTemplate(INST), CHAT[1:]) == [
        ('[INST] Why? [/INST]', False),  # this tokenizer has no beginning of text
        (' So. <end>', True),
        ('[INST] And then? [/INST]', False),
        (' Häh <end>', True),
    ]


@pytest.mark.parametrize('source', [chat_template.DEFAULT, CHATML, INST])
def test_a_prompt_is_what_stands_before_an_answer(source):
    """Generation sees the ids after which the answer was learned."""
    template = ChatTemplate(source)
    whole, spans = chat_template.encode(template.segments(CHAT[1:]), BYTE)
    for (start, _), count in zip(spans, (1, 3), strict=True):
        prompt, _ = chat_template.encode(template.prompt(CHAT[1 : 1 + count]), BYTE)
        assert prompt.tolist() == whole[:start].tolist()


def test_names_of_special_tokens_are_ids(tmp_path):
    corpus = ['the quick brown fox jumps over the lazy dog. ' * 3]
    config = TokenizerConfig(kind='bpe', vocab_size=300)
    bpe = tokenizers.make_tokenizer(config, lambda: corpus)
    [name] = [name for name, i in bpe.special_tokens.items() if i == bpe.eot_id]
    template = ChatTemplate(
        f"{{% for m in messages %}}{{{{ m.content + '{name}' }}}}{{% endfor %}}"
    )
    ids, spans = chat_template.encode(template.segments(CHAT[1:3]), bpe)
    assert ids[spans[0][1] - 1] == bpe.eot_id and (ids == bpe.eot_id).sum() == 2


def test_templates_of_transformers_run_here():
    """Templates use more than plain Jinja: loop controls, tojson, whitespace control."""
    template = ChatTemplate(
        '{% for m in messages %}\n'
        '  {% if loop.index > 1 %}{% break %}{% endif %}\n'
        '{{ m | tojson }}\n'
        '{% endfor %}'
    )
    text = chat_template.to_text(template.prompt([{'role': 'user', 'content': 'é<'}]))
    assert text == '{"role": "user", "content": "é<"}\n'


def test_what_is_learned_does_not_depend_on_the_day():
    """A prompt is of today, as in transformers; conversations give the same ids on every day."""
    template = ChatTemplate("{{ strftime_now('%Y %m %d') }}{% generation %}x{% endgeneration %}")
    [day, _] = template.segments(CHAT)
    assert day.text == '2024 07 26'
    before = datetime.date.today()
    [today, _] = template.prompt(CHAT)
    assert today.text in {f'{day:%Y %m %d}' for day in (before, datetime.date.today())}


def test_tokens_that_are_named():
    """Names of transformers in a template, whether or not texts begin with the token."""
    tokenizer = BYTE.with_chat(
        template="{{ bos_token }}{{ pad_token }}{{ messages[0]['content'] }}{{ eos_token }}",
        named_tokens={'bos_token': '<|endoftext|>', 'pad_token': '<|endoftext|>'},
    )
    ids = chat_template.encode_prompt(CHAT[1:], tokenizer)
    assert text_of(ids) == '<end><end>Why?<end>'
    plain = BYTE.with_chat(template=tokenizer.chat_template)
    assert text_of(chat_template.encode_prompt(CHAT[1:], plain)) == 'Why?<end>'
    one, other = (ChatTemplate.of(each).fingerprint() for each in (tokenizer, plain))
    assert one != other == ChatTemplate.of(plain).fingerprint()


def test_the_template_is_the_tokenizers(tmp_path):
    """It is saved, loaded and copied with it, and decides no id of a text."""
    tokenizer = BYTE.with_chat(template=INST + '\r\n', named_tokens={'bos_token': '<|endoftext|>'})
    tokenizer.save(tmp_path)
    for same in (tokenizers.load(tmp_path), tokenizer.with_ends(bos_id=None, eot_id=END)):
        assert (same.chat_template, same.named_tokens) == (INST + '\r\n', tokenizer.named_tokens)
        assert same.fingerprint() == BYTE.fingerprint()
    assert BYTE.chat_template is None and not BYTE.named_tokens
    BYTE.save(tmp_path)
    assert tokenizers.load(tmp_path).chat_template is None
    (tmp_path / 'chat_template.jinja').write_bytes(b'\xff')
    with pytest.raises(UserError, match='chat_template.jinja is not UTF-8 at byte 0'):
        tokenizers.load(tmp_path)


def test_a_template_cannot_reach_out_of_its_sandbox():
    template = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match='refuses the messages: access to attribute'):
        template.prompt(CHAT)
    with pytest.raises(UserError, match='refuses the messages'):
        ChatTemplate('{% for i in range(10000000) %}x{% endfor %}').prompt(CHAT)


HOSTILE = {
    'loops': ('{% for i in range(99999) %}' * 3 + '{% endfor %}' * 3, 'more than 0 seconds'),
    'macro': (
        '{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}',
        'more than 0 seconds',
    ),
    'joins': (
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}"
        '{% endfor %}{{ ns.s }}',
        'it makes a text',
    ),
    'sums': (
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}"
        '{% endfor %}{{ ns.s }}',
        'it makes a text',
    ),
    'nested lists': (
        '{% set ns = namespace(s=[]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}'
        '{% endfor %}{{ ns.s }}',
        'it makes a text',
    ),
    'output': ("{% for i in range(9999) %}{{ 'x' * 10000 }}{% endfor %}", 'it makes a text'),
    'indent': ('{{ messages | tojson(indent=10**9) }}', 'the number 1000000000'),
    'width': ("{{ 'x'.center(10**9) }}", 'the number 1000000000'),
    'format': ("{{ '%1000000000d' | format(1) }}", 'it makes a text'),
    'format method': ("{{ '{:1000000000}'.format(1) }}", 'it makes a text'),
    'replace': ("{{ ('x' * 10**6).replace('x', 'y' * 10**6) }}", 'it makes a text'),
    'power': ('{{ 10 ** 100000 }}', 'it makes a text'),
    'paragraphs': ('{{ lipsum(n=10**5) }}', 'undefined'),
}


@pytest.mark.parametrize(('source', 'message'), HOSTILE.values(), ids=HOSTILE)
def test_templates_have_limits_of_time_and_size(source, message, monkeypatch):
    monkeypatch.setattr(template_limits, 'SECONDS', 0.3)
    with pytest.raises(UserError, match=message) as error:
        ChatTemplate(source).prompt(CHAT)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('messages', 'message'),
    [
        (None, 'messages must be a list of at least one object'),
        ('hello', 'messages must be a list of at least one object'),
        ([], 'messages must be a list of at least one object'),
        ([{'role': 'user'}], "message 1 must be an object with the text 'content'"),
        ([*CHAT, {'content': 'x'}], "message 6 must be an object with the text 'role'"),
        (['hello'], "message 1 must be an object with the text 'role'"),
        ([{'role': 'user', 'content': ['x']}], "message 1 must be an object with the text 'cont"),
        ([{'role': 'user', 'content': 'a\ue000b'}], 'message 1 has a character without meaning'),
        ([{'role': 'user', 'content': 'a\ud800b'}], 'message 1 has a character without meaning'),
        ([CHAT[0] | {'name': 'a\ud800'}], 'message 1 has a character without meaning'),
        ([CHAT[0] | {'calls': [{'a\ue001': 1}]}], 'message 1 has a character without meaning'),
    ],
)
def test_wrong_messages(messages, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(chat_template.DEFAULT).segments(messages)


def test_wrong_templates(tmp_path):
    with pytest.raises(UserError, match='only user and assistant roles are supported'):
        ChatTemplate(INST).segments(CHAT)
    for source, reason in (
        ('{% for m in messages %}', '.*endfor'),
        ('{% generation %}{{ messages }}', '.*endgeneration'),
        ('{{ ' + '(' * 5000 + ')' * 5000 + ' }}', 'maximum recursion depth'),
    ):
        (tmp_path / 'wrong.jinja').write_text(source)
        with pytest.raises(UserError, match=f'wrong.jinja is not a Jinja template: {reason}'):
            ChatTemplate.of(BYTE, path=tmp_path / 'wrong.jinja')
        with pytest.raises(UserError, match="^the tokenizer's chat template is not a Jinja templ"):
            chat_template.encode_prompt(CHAT, BYTE.with_chat(template=source))
    with pytest.raises(UserError, match='the default chat template .*: it makes a text'):
        ChatTemplate("{{ 'a' * 10 ** 15 }}").segments(CHAT)
    (tmp_path / 'last.jinja').write_text("{{ messages[-1]['content'] }}")
    with pytest.raises(UserError, match='last.jinja does not render the beginning of a conv'):
        ChatTemplate.of(None, path=tmp_path / 'last.jinja').segments(CHAT)
    with pytest.raises(UserError, match='config.data.chat_template: cannot read .*nowhere'):
        ChatTemplate.of(None, path=tmp_path / 'nowhere')
    # As first published with Llama 3: a header for an answer stands there, asked for or not.
    always = CHATML.replace('{% if add_generation_prompt %}', '').removesuffix('{% endif %}')
    with pytest.raises(UserError, match=r"ends every conversation with '<\|im_end\|>"):
        ChatTemplate(always).segments(CHAT[:3])


def with_prefix():
    """A model as of Llama 2, which puts a space before every text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['why so, and then? because it is so, and so on'] * 20),
        model_writer=model,
        model_type='bpe',
        vocab_size=300,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        byte_fallback=True,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(model.getvalue(), name='trained')
    return tokenizer.with_ends(bos_id=1, eot_id=2)


def as_json(tokenizer):
    """The same ids by the `tokenizers` library."""
    return JsonTokenizer(tokenizer.tokenizer_json(), name='converted').with_ends(bos_id=1, eot_id=2)


@pytest.mark.parametrize('convert', [lambda tokenizer: tokenizer, as_json], ids=['model', 'json'])
def test_a_space_before_every_text_stands_before_turns_alone(convert):
    """As in Meta's code for Llama 2: where a turn begins, not between a question and its answer."""
    tokenizer = convert(with_prefix())
    turns = [('why so', 'because it is'), ('and then?', 'so on')]
    chat = [
        {'role': role, 'content': text}
        for turn in turns
        for role, text in zip(('user', 'assistant'), turn, strict=True)
    ]
    ids, spans = chat_template.encode(ChatTemplate(INST).segments(chat), tokenizer)
    expected = []
    for question, answer in turns:
        whole = tokenizer.encode(f'[INST] {question} [/INST] {answer} ')
        expected += [tokenizer.bos_id, *whole, tokenizer.eot_id]
    assert ids.tolist() == expected
    for (start, stop), (_, answer) in zip(spans, turns, strict=True):
        assert tokenizer.decode(ids[start - 1 : stop]).endswith(f'] {answer} ')
    assert tokenizer.encode('so on') == tokenizer.encode(' so on', continues=True)
    assert tokenizer.encode('so on', continues=True) != tokenizer.encode('so on')
    assert pickle.loads(pickle.dumps(tokenizer)).encode('so', continues=True) == (
        tokenizer.encode('so', continues=True)
    )
