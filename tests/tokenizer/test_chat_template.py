"""Conversations as text and ids, and which of the ids are learned."""

import io
import pickle

import numpy as np
import pytest
import sentencepiece

from gpt_jax import tokenizer as tokenizers
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import TokenizerConfig, chat_template
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
    """What they use beside plain Jinja: loop controls, tojson, the date, whitespace control."""
    template = ChatTemplate(
        '{% for m in messages %}\n'
        '  {% if loop.index > 1 %}{% break %}{% endif %}\n'
        "{{ m | tojson }}{{ strftime_now('%Y') | length }}\n"
        '{% endfor %}'
    )
    text = chat_template.to_text(template.prompt([{'role': 'user', 'content': 'é<'}]))
    assert text == '{"role": "user", "content": "é<"}4\n'


def test_a_template_cannot_reach_out_of_its_sandbox():
    template = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match='refuses the messages: access to attribute'):
        template.prompt(CHAT)
    with pytest.raises(UserError, match='refuses the messages'):
        ChatTemplate('{% for i in range(10000000) %}x{% endfor %}').prompt(CHAT)


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
    ],
)
def test_wrong_messages(messages, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(chat_template.DEFAULT).segments(messages)


def test_wrong_templates(tmp_path):
    with pytest.raises(UserError, match='only user and assistant roles are supported'):
        ChatTemplate(INST).segments(CHAT)
    with pytest.raises(UserError, match='is not a Jinja template: .*endfor'):
        ChatTemplate('{% for m in messages %}')
    with pytest.raises(UserError, match='generation'):
        ChatTemplate('{% generation %}{{ messages }}')
    (tmp_path / 'last.jinja').write_text("{{ messages[-1]['content'] }}")
    with pytest.raises(UserError, match='last.jinja does not render the beginning of a conv'):
        ChatTemplate.read(tmp_path / 'last.jinja').segments(CHAT)
    with pytest.raises(UserError, match='config.data.chat_template=.*nowhere cannot be read'):
        ChatTemplate.read(tmp_path / 'nowhere')


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
