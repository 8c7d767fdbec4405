"""Conversations as text: a Jinja template says how messages follow each other.

Templates are transformers' (`chat_template.jinja`, or a key of `tokenizer_config.json`) and run
in its sandbox, with the same names. What the assistant says is what a model learns; a template
marks it with `{% generation %} … {% endgeneration %}`, else it is what each of its messages adds to
the rendered conversation before it.
"""

import datetime
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np

from gpt_jax.errors import UserError

if TYPE_CHECKING:
    from gpt_jax.tokenizer import Tokenizer

FILE = 'chat_template.jinja'  # beside a tokenizer
ASSISTANT = 'assistant'
# For any tokenizer: a line with the role, the message, and after an answer the end of the text.
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
# Characters of no meaning that stand in rendered text for what has none.
_LEARN, _END, _BOS, _EOS = '\ue000\ue001\ue002\ue003'
_FAILURES = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)

Message = dict[str, Any]


class Segment(NamedTuple):
    """A part of a rendered conversation; begin and end of text stand in it as marks."""

    text: str
    learned: bool  # whether the assistant says it


class ChatTemplate:
    """A compiled template; see the module."""

    def __init__(self, source: str, *, name: str = 'the default chat template'):
        """Compiles `source`; `name` is what errors call it. Raises UserError if it cannot."""
        self.source, self.name = source, name
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.filters['tojson'] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f'{name} is not a Jinja template: {error}') from error

    @classmethod
    def read(cls, path: str | pathlib.Path, *, key: str = 'config.data.chat_template') -> Self:
        """The template in a file; '' gives the default one.

        Raises:
            UserError: it cannot be read, or is none.
        """
        if not path:
            return cls(DEFAULT)
        try:
            source = pathlib.Path(path).expanduser().read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'{key}={path} cannot be read: {error}') from error
        return cls(source, name=str(path))

    def fingerprint(self) -> str:
        """SHA-256 of the template."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        """The conversation up to where the assistant's next answer begins.

        Raises:
            UserError: the messages are none, or the template refuses them.
        """
        check_messages(messages)
        return _segments(self._render(messages, add_generation_prompt=True))

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The whole conversation, cut where the assistant begins and ends.

        Raises:
            UserError: the messages are none, or the template refuses them, or it does not show
                what the assistant says.
        """
        check_messages(messages)
        whole = self._render(messages)
        if _LEARN in whole:
            return _segments(whole)
        cuts = [0]
        for i, message in enumerate(messages):
            if message['role'] == ASSISTANT:
                before = self._render(messages[:i], add_generation_prompt=True)
                after = self._render(messages[: i + 1])
                if not (after.startswith(before) and whole.startswith(after)):
                    raise UserError(
                        f'{self.name} does not render the beginning of a conversation as a '
                        f'beginning of the whole; mark the answers in it with {{% generation %}}'
                    )
                cuts += [len(before), len(after)]
        cuts.append(len(whole))
        return [
            Segment(whole[start:stop], learned=bool(i % 2))
            for i, (start, stop) in enumerate(itertools.pairwise(cuts))
            if start < stop
        ]

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                bos_token=_BOS,
                eos_token=_EOS,
            )
        except _FAILURES as error:
            raise UserError(f'{self.name} refuses the messages: {error}') from error


def encode(segments: Sequence[Segment], tokenizer: 'Tokenizer') -> tuple[np.ndarray, np.ndarray]:
    """The ids (uint32) and, as `[n, 2]`, begin and end of the runs of them that are learned.

    Segments are encoded one by one, so that an answer is learned behind the ids that its prompt
    has alone; transformers encodes the whole, and where an answer begins inside a token of that
    (`[assistant] ` before a word) has other ids. Names of special tokens become their ids.
    """
    ends = {_BOS: tokenizer.bos_id, _EOS: tokenizer.eot_id}
    special = {*tokenizer.special_tokens.values(), *ends.values()}
    ids: list[int] = []
    spans = []
    for segment in segments:
        start = len(ids)
        for part in re.split(f'([{_BOS}{_EOS}])', segment.text):
            if part in ends:
                ids += [] if ends[part] is None else [ends[part]]
            elif part:
                continues = bool(ids) and ids[-1] not in special
                ids += tokenizer.encode(part, allow_special=True, continues=continues)
        if segment.learned and len(ids) > start:
            spans.append((start, len(ids)))
    return np.array(ids, np.uint32), np.array(spans, np.int64).reshape(-1, 2)


def to_text(segments: Sequence[Segment]) -> str:
    """The conversation without marks."""
    return re.sub(f'[{_BOS}{_EOS}]', '', ''.join(segment.text for segment in segments))


def check_messages(messages: Any) -> None:
    """Raises UserError unless these are messages: objects with the texts `role` and `content`."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError('messages must be a list of at least one object')
    for number, message in enumerate(messages, start=1):
        for field in ('role', 'content'):
            text = message.get(field) if isinstance(message, dict) else None
            if not isinstance(text, str):
                raise UserError(f'message {number} must be an object with the text {field!r}')
            if re.search(f'[{_LEARN}-{_EOS}\ud800-\udfff]', text):
                raise UserError(f'message {number} has a character without meaning; remove it')


def _segments(marked: str) -> list[Segment]:
    """Cuts at the marks around what is learned."""
    parts = re.split(f'[{_LEARN}{_END}]', marked)
    return [Segment(part, learned=bool(i % 2)) for i, part in enumerate(parts) if part]


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what is learned."""

    tags = {'generation'}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method('_mark'), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f'{_LEARN}{caller()}{_END}'


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
