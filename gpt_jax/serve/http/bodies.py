"""The bodies of requests, checked field by field.

Names and defaults are those of OpenAI's API; `top_k`, `min_p` and `repetition_penalty` are further
ones. `user`, `metadata` and `store` are accepted and have no effect.
"""

import secrets
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Discriminator, Field, Tag

from gpt_jax.inference.config import SampleConfig

MOST_TEXTS = 128  # of a request: its prompts, times n
Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


def _form(given: Any) -> str | None:
    """Returns the tag of the type that a value is meant to have, so that errors are about that."""
    if isinstance(given, str):
        return 'str'
    if not isinstance(given, list):
        return None
    first = type(given[0]) if given else str
    return {str: 'list[str]', list: 'list[list[int]]'}.get(first, 'list[int]')


Texts = Annotated[
    Annotated[str, Tag('str')]
    | Annotated[Ids, Tag('list[int]')]
    | Annotated[list[str], Tag('list[str]')]
    | Annotated[list[Annotated[Ids, Field(min_length=1)]], Tag('list[list[int]]')],
    Discriminator(
        _form,
        custom_error_type='form',
        custom_error_message='give a text or its ids, or a list of texts or of lists of ids',
    ),
]
Stops = Annotated[
    Annotated[Stop, Tag('str')] | Annotated[list[Stop], Field(max_length=16), Tag('list[str]')],
    Discriminator(
        _form, custom_error_type='form', custom_error_message='give a text, or a list of texts'
    ),
]


class Fields(pydantic.BaseModel):
    """The base: no unknown fields that are not null, and no conversion between types."""

    model_config = pydantic.ConfigDict(extra='allow', strict=True)

    @pydantic.model_validator(mode='after')
    def _check_names(self) -> 'Fields':
        for name, value in self.model_extra.items():
            if value is not None:
                raise ValueError(f'{name[:100]}: is not a field that this server knows')
        return self


class Body(Fields):
    """The fields that every body may have."""

    model: str | None = None
    user: str | None = None


class StreamOptions(Fields):
    """Settings of a stream of events."""

    include_usage: bool = False  # a last event says how many tokens there were
    include_obfuscation: bool = False  # accepted; there is none


class JsonSchema(Fields):
    """A schema that the text must follow; its name and description have no effect."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    content: dict[str, Any] = Field(alias='schema')
    strict: bool | None = None  # accepted; the text follows the schema in any case


class ResponseFormat(Fields):
    """The form of the text."""

    type: Literal['text', 'json_object', 'json_schema'] = 'text'
    json_schema: JsonSchema | None = None

    @pydantic.model_validator(mode='after')
    def _check(self) -> 'ResponseFormat':
        if (self.type == 'json_schema') != (self.json_schema is not None):
            raise ValueError('json_schema: give it with type json_schema, and only there')
        return self


class SamplingBody(Body):
    """The fields that completions and chats share."""

    best_field: ClassVar[str]  # the one with the number of likeliest tokens

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    n: int | None = Field(None, ge=1, le=MOST_TEXTS)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stops | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None

    @pydantic.field_validator('logit_bias')
    @classmethod
    def _check_ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for key in bias or {}:
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ValueError(f'{key[:20]!r} is not a token id')
        return bias

    @property
    def best(self) -> int:
        """Number of the likeliest tokens in each place that the response names."""
        return getattr(self, self.best_field) or 0

    @property
    def bias(self) -> dict[int, float]:
        """The values that are added to logits, by id."""
        return {int(token): value for token, value in (self.logit_bias or {}).items()}

    @property
    def text_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the text must follow; None: it may be any text."""
        form = self.response_format
        if form is None or form.type == 'text':
            return None
        return form.json_schema.content if form.json_schema else {'type': 'object'}

    def sampling(self, *, max_tokens: int) -> SampleConfig:
        """Returns how tokens are drawn; a request without a seed gets a random one."""
        seed = secrets.randbits(32) if self.seed is None else self.seed % 2**32
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        given = {
            name: value
            for name in (
                'temperature',
                'top_p',
                'top_k',
                'min_p',
                'repetition_penalty',
                'presence_penalty',
                'frequency_penalty',
            )
            if (value := getattr(self, name)) is not None
        }
        given = {'temperature': 1.0} | given
        # A text that only scores its prompt draws nothing, and a length is at least 1.
        return SampleConfig(max_new_tokens=max(1, max_tokens), seed=seed, stop=stop, **given)


def _separate(given: str | list) -> list[str | list[int]]:
    """Returns one or several texts, each as text or ids, as a list."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]
    return [*given]


class CompletionBody(SamplingBody):
    """The body of `/v1/completions`."""

    best_field = 'logprobs'

    prompt: Texts = ''
    max_tokens: int | None = Field(None, ge=0, lt=2**31)
    logprobs: int | None = Field(None, ge=0)
    echo: bool | None = None
    best_of: int | None = None
    suffix: None = None
    # Not in OpenAI's API:
    return_token_ids: bool | None = None  # the ids and times, too, and why a text ended
    use_cache: bool | None = None  # false: the whole text is read again for each token

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or ids."""
        return _separate(self.prompt)

    @pydantic.model_validator(mode='after')
    def _check(self) -> 'CompletionBody':
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError('best_of: must equal n, as texts are not ranked here')
        if self.return_token_ids and self.logprobs is None:
            raise ValueError('return_token_ids: needs logprobs')
        if not self.prompts:
            raise ValueError('prompt: give at least one')
        if len(self.prompts) * (self.n or 1) > MOST_TEXTS:
            raise ValueError(f'n: times the number of prompts, it is more than {MOST_TEXTS}')
        return self


class Message(Fields):
    """One message of a conversation."""

    role: Literal['system', 'developer', 'user', 'assistant', 'tool']
    content: str | list[dict[str, Any]]
    name: str | None = None

    @pydantic.field_validator('content')
    @classmethod
    def _join(cls, content: str | list[dict[str, Any]]) -> str:
        """Joins a content in parts, as OpenAI's clients may send it."""
        if isinstance(content, str):
            return content
        for part in content:
            if part.get('type') != 'text' or not isinstance(part.get('text'), str):
                raise ValueError('parts of a content must be {"type": "text", "text": …}')
        return ''.join(part['text'] for part in content)

    def as_dict(self) -> dict[str, str]:
        """Returns the message as templates take it."""
        role = 'system' if self.role == 'developer' else self.role
        return {'role': role, 'content': self.content} | ({'name': self.name} if self.name else {})


class ChatBody(SamplingBody):
    """The body of `/v1/chat/completions`."""

    best_field = 'top_logprobs'

    messages: list[Message] = Field(min_length=1, max_length=10_000)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)

    @pydantic.model_validator(mode='after')
    def _check(self) -> 'ChatBody':
        if self.top_logprobs and not self.logprobs:
            raise ValueError('top_logprobs: needs logprobs: true')
        return self


class EmbeddingBody(Body):
    """The body of `/v1/embeddings`."""

    input: Texts
    encoding_format: Literal['float', 'base64'] | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The texts, each as text or ids."""
        return _separate(self.input)

    @pydantic.model_validator(mode='after')
    def _check(self) -> 'EmbeddingBody':
        if not 1 <= len(self.inputs) <= MOST_TEXTS:
            raise ValueError(f'input: give 1 to {MOST_TEXTS} texts')
        return self


class DetokenizeBody(Body):
    """The body of `/detokenize`."""

    tokens: Ids


class PositionBody(Body):
    """The body of `/inspect/attention`: a token in a text."""

    tokens: Ids
    position: int = Field(ge=0)

    @pydantic.model_validator(mode='after')
    def _check(self) -> 'PositionBody':
        if self.position >= len(self.tokens):
            raise ValueError('position: there are fewer tokens')
        return self


class ExplanationBody(PositionBody):
    """The body of `/inspect/token`."""

    analyses: list[Literal['lens', 'attribution', 'ablation']] = Field(
        ['lens', 'attribution', 'ablation'], min_length=1, max_length=3
    )


class TokenizeBody(Body):
    """The body of `/tokenize`: a text, or a conversation."""

    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=10_000)
    add_special_tokens: bool = True  # the token that a prompt begins with, if there is one

    @pydantic.model_validator(mode='after')
    def _check(self) -> 'TokenizeBody':
        if (self.prompt is None) == (self.messages is None):
            raise ValueError('prompt: give either this or messages')
        return self
