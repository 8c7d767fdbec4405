"""Chat templates: Jinja templates that render the messages of a conversation to text.

Templates are those of transformers, with the same variables and the same kind of sandbox. Each
belongs to a tokenizer, which stores it. A model learns the assistant's text. A template marks it
with `{% generation %} … {% endgeneration %}`; without marks, it is the text that each assistant
message adds to the rendered conversation before it.
"""

import dataclasses
import datetime
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

import jinja2
import jinja2.ext
import numpy as np

from gpt_jax import files
from gpt_jax.errors import UserError
from gpt_jax.tokenizer.template_limits import LimitedEnvironment, limits

if TYPE_CHECKING:
    from gpt_jax.tokenizer import Tokenizer

ASSISTANT = 'assistant'
# For any tokenizer: a line with the role, the message, and the end-of-text token after an answer.
DEFAULT = """\
{% for message in messages %}
<|{{ message['role'] }}|>
{% if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}

{% else %}
{{ message['content'] }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
"""
# Private-use characters: placeholders in rendered text for marks and tokens that have no text.
_LEARN, _END, _BOS, _EOS, _CUT = '\ue000\ue001\ue002\ue003\ue004'
_MEANINGLESS = re.compile(f'[{_LEARN}-{_EOS}\ud800-\udfff]')
# The date for rendering conversations to learn, so that their ids are the same on every day.
_LEARNED_ON = datetime.datetime(2024, 7, 26)
_MOST_OF_DATE = 1000  # characters of a date format
_ENCODING = 2  # version of `encode`: increase it when the same segments get other ids
_FAILURES = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)

Message = Mapping[str, Any]


class Segment(NamedTuple):
    """A part of a rendered conversation; begin and end tokens are placeholders in it."""

    text: str
    learned: bool  # True for text of the assistant


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template, compiled at first use; see the module."""

    source: str = DEFAULT
    name: str = 'the default chat template'  # in error messages
    # Special tokens by their names in templates, such as pad_token.
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: 'Tokenizer | None', *, path: str | os.PathLike = '') -> Self:
        """Returns the template in the file, else the tokenizer's, else the default one.

        Raises:
            UserError: the file cannot be read, or has no valid template.
        """
        tokens = tokenizer.named_tokens if tokenizer else {}
        if path:
            try:
                source = files.read_text(pathlib.Path(path).expanduser())
            except UserError as error:
                raise UserError(f'config.data.chat_template: {error}') from error
            template = cls(source, str(path), tokens)
            template._compiled()
            return template
        if tokenizer is None or tokenizer.chat_template is None:
            return cls(tokens=tokens)
        return cls(tokenizer.chat_template, "the tokenizer's chat template", tokens)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of everything but the tokenizer that determines the ids."""
        decisive = [_ENCODING, self.source, sorted(self.tokens.items())]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        """Renders the conversation up to the start of the assistant's next answer.

        Raises:
            UserError: the messages are invalid, or the template rejects them.
        """
        check_messages(messages)
        today = datetime.datetime.now()
        return _segments(self._render(messages, add_generation_prompt=True, date=today))

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Renders the whole conversation, cut at the start and end of each assistant text.

        Raises:
            UserError: the messages are invalid, the template rejects them, or it does not show
                which text is the assistant's.
        """
        check_messages(messages)
        whole = self._render(messages)
        if self._compiled().marks:
            return _segments(whole)
        self._check_end()
        cuts = [0]
        for i, message in enumerate(messages):
            if message['role'] == ASSISTANT:
                cuts += self._answer(messages[: i + 1], whole)
        cuts.append(len(whole))
        return [
            Segment(whole[start:stop], learned=bool(i % 2))
            for i, (start, stop) in enumerate(itertools.pairwise(cuts))
            if start < stop
        ]

    def _answer(self, messages: Sequence[Message], whole: str) -> tuple[int, int]:
        """Returns (begin, end) of the text that the last of `messages` adds to `whole`.

        `whole` is the rendered conversation, and `messages` are its first ones. The added text
        begins after the rendering of the previous messages with the generation prompt.
        """
        try:
            before = self._render(messages[:-1], add_generation_prompt=True)
        except UserError:
            if len(messages) > 1:
                raise
            before = ''  # many templates need a first message
        if not before:
            raise self._unclear('does not say where an answer to nothing begins')
        after = self._render(messages)
        if not whole.startswith(after):
            after = after.removesuffix(_EOS)  # some put it after a conversation, not an answer
        if not (after.startswith(before) and whole.startswith(after)):
            raise self._unclear(
                'does not render the beginning of a conversation as a beginning of the whole'
            )
        return len(before), len(after)

    def _check_end(self) -> None:
        """Rejects a template that always ends with the beginning of another answer."""
        if 'add_generation_prompt' in self.source:
            return
        chat = [{'role': 'user', 'content': '1'}, {'role': ASSISTANT, 'content': '2'}]
        ends = [self._render(messages)[::-1] for messages in (chat[:1], chat)]
        same = os.path.commonprefix(ends)[::-1]
        if ASSISTANT in same:
            raise self._unclear(f'ends every conversation with {same!r}, as if one more followed')

    def _unclear(self, why: str) -> UserError:
        return UserError(f'{self.name} {why}; mark the answers in it with {{% generation %}}')

    def _render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        date: datetime.datetime = _LEARNED_ON,
    ) -> str:
        template = self._compiled().template
        given = {**self.tokens, 'bos_token': _BOS, 'eos_token': _EOS}
        try:
            with limits():
                return template.render(
                    messages=list(messages),
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    strftime_now=lambda form: date.strftime(form[:_MOST_OF_DATE]),
                    **given,
                )
        except _FAILURES as error:
            raise UserError(f'{self.name} refuses the messages: {_reason(error)}') from error

    def _compiled(self) -> '_Compiled':
        try:
            return _compile(self.source)
        except _FAILURES as error:
            raise UserError(f'{self.name} is not a Jinja template: {_reason(error)}') from error


def encode(
    segments: Sequence[Segment], tokenizer: 'Tokenizer', *, cut: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids (uint32) and the bounds `[n, 2]` of their learned runs.

    Segments are encoded separately, so the ids before an answer are those of its prompt alone.
    transformers encodes the whole text, so its ids differ if an answer begins inside a token
    (`[assistant] ` before a word). Names of special tokens become their ids. Begin and end tokens
    are the named ones (bos_token, eos_token), else those of any text. With `cut`, the text is also
    cut at the placeholders of `_cut`, which are left out.
    """
    names, ids_of = tokenizer.named_tokens, tokenizer.special_tokens
    ends = {
        _BOS: ids_of.get(names.get('bos_token'), tokenizer.bos_id),
        _EOS: ids_of.get(names.get('eos_token'), tokenizer.eot_id),
    }
    special = {*ids_of.values(), *ends.values()}
    ids: list[int] = []
    spans = []
    for segment in segments:
        start = len(ids)
        for part in re.split(f'([{_BOS}{_EOS}])' + f'|{_CUT}' * cut, segment.text):
            if part in ends:
                ids += [] if ends[part] is None else [ends[part]]
            elif part:
                continues = bool(ids) and ids[-1] not in special
                ids += tokenizer.encode(part, allow_special=True, continues=continues)
        if segment.learned and len(ids) > start:
            spans.append((start, len(ids)))
    return np.array(ids, np.uint32), np.array(spans, np.int64).reshape(-1, 2)


def encode_prompt(
    messages: Sequence[Message], tokenizer: 'Tokenizer', *, literal: bool = False
) -> list[int]:
    """Returns the ids of a conversation up to the next answer, by the tokenizer's template.

    With `literal`, names of special tokens in messages stay text, so that who writes a message
    cannot forge the end of it; the template's own become ids.

    Raises:
        UserError: the messages are invalid, or the template rejects them.
    """
    if literal:
        check_messages(messages)
        messages = [_cut(message, [*tokenizer.special_tokens]) for message in messages]
    segments = ChatTemplate.of(tokenizer).prompt(messages)
    return encode(segments, tokenizer, cut=literal)[0].tolist()


def _cut(message: Message, names: Sequence[str]) -> Message:
    """Returns a message in whose texts a placeholder interrupts each of the names."""
    longest = sorted(filter(None, names), key=len, reverse=True)
    pattern = re.compile('|'.join(map(re.escape, longest)) or '(?!)')
    return {
        key: pattern.sub(lambda found: found[0][:1] + _CUT + found[0][1:], value.replace(_CUT, ''))
        if isinstance(value, str) and key != 'role'
        else value
        for key, value in message.items()
    }


def to_text(segments: Sequence[Segment]) -> str:
    """Returns the text of a conversation, without placeholders."""
    return re.sub(f'[{_BOS}{_EOS}]', '', ''.join(segment.text for segment in segments))


def check_messages(messages: Any) -> None:
    """Raises UserError unless `messages` are objects with the strings `role` and `content`."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError('messages must be a list of at least one object')
    for number, message in enumerate(messages, start=1):
        for field in ('role', 'content'):
            text = message.get(field) if isinstance(message, Mapping) else None
            if not isinstance(text, str):
                raise UserError(f'message {number} must be an object with the text {field!r}')
        if any(map(_MEANINGLESS.search, _texts(message))):
            raise UserError(f'message {number} has a character without meaning; remove it')


def _texts(value: Any) -> Iterator[str]:
    """Yields all strings in a JSON value."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, Sequence):
            waiting += value


def with_template(tokenizer: 'Tokenizer', path: str) -> 'Tokenizer':
    """Returns the tokenizer with the template in the file `path`; '' changes nothing.

    Raises:
        UserError: the file cannot be read, or has no valid template.
    """
    if not path:
        return tokenizer
    return tokenizer.with_chat(template=ChatTemplate.of(tokenizer, path=path).source)


def _segments(marked: str) -> list[Segment]:
    """Cuts rendered text at the marks around the learned parts."""
    parts = re.split(f'[{_LEARN}{_END}]', marked)
    return [Segment(part, learned=bool(i % 2)) for i, part in enumerate(parts) if part]


class _Compiled(NamedTuple):
    template: jinja2.Template
    marks: bool  # True if the template marks the learned text


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> _Compiled:
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.add_filter('tojson', _to_json)
    environment.globals['raise_exception'] = _refuse
    tree = environment.parse(source)
    marks = tree.find(jinja2.nodes.ExtensionAttribute) is not None
    return _Compiled(environment.from_string(environment.limit(tree)), marks)


class _Generation(jinja2.ext.Extension):
    """The Jinja block `{% generation %}`, which marks the learned text."""

    tags = {'generation'}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method('_mark'), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f'{_LEARN}{caller()}{_END}'


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _reason(error: BaseException) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
