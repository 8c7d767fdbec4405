"""The whole forward pass of one token, step by step, with its numbers."""

import dataclasses
import textwrap

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.inference.config import SampleConfig, finalize_sample
from gpt_jax.inference.generate import encode_prompt
from gpt_jax.inference.sampling import filter_logits, make_rule, sample
from gpt_jax.inspector.explain_layer import layer_steps, norm_step
from gpt_jax.inspector.inspector import Inspector, Text
from gpt_jax.inspector.walk import Check, Step, Walk, number, quoted, shape, table, vector
from gpt_jax.model.gpt import GPT, Period, Table
from gpt_jax.model.parametrization import embedding_multiplier, output_multiplier
from gpt_jax.model.position import POSITIONS

WIDTH = 80
TOP = 10  # next tokens
RULES = {  # of sampling, compared for the same logits
    'as is': SampleConfig(temperature=1.0),
    'T 0.5': SampleConfig(temperature=0.5),
    'T 1.5': SampleConfig(temperature=1.5),
    'top-k 3': SampleConfig(temperature=1.0, top_k=3),
    'top-p 0.8': SampleConfig(temperature=1.0, top_p=0.8),
}
_filter = jax.jit(filter_logits)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The steps of a forward pass; `print` shows them."""

    steps: tuple[Step, ...]

    def lines(self) -> list[tuple[str, str]]:
        """Returns (kind, line) at most 80 columns wide; the kind is the line's part in a step."""
        found = []
        for index, step in enumerate(self.steps, 1):
            found.append(('title', f'{index}. {step.title}'))
            found += [('about', line) for line in _wrap(step.about)]
            for formula in step.formula.splitlines():
                found += [('formula', line) for line in _wrap(formula)]
            found += [('place', f'   {place}') for place in step.places]
            found += [('value', f'     {line}') for line in step.lines]
            for check in step.checks:
                found += [('check', line) for line in _wrap(f'check {check}', indent=5)]
            found.append(('', ''))
        return found

    def __str__(self) -> str:
        return '\n'.join(line for _, line in self.lines())


def _wrap(text: str, *, indent: int = 3) -> list[str]:
    space = ' ' * indent
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=space,
        subsequent_indent=space + '  ' * (indent > 3),
        break_long_words=False,
        break_on_hyphens=False,
    )


def explain(
    inspector: Inspector,
    text: Text,
    *,
    token: int = -1,
    layer: int = 0,
    head: int = 0,
    sampling: SampleConfig | None = None,
) -> Explanation:
    """Returns the forward pass of one token of a text.

    Args:
      inspector: of the model.
      text: a text, or its ids.
      token: the position of the token; negative ones count from the end.
      layer: the layer that is shown in full.
      head: the head that is shown.
      sampling: of the run, shown beside others; None: others alone.

    Raises:
        UserError: the text is empty or too long, or an index is out of range.
    """
    walk = Walk.make(inspector, text, token=token, layer=layer, head=head)
    return Explanation(
        (
            _tokens(walk, text),
            _embedding(walk),
            *_position(walk),
            *layer_steps(walk),
            _all_layers(walk),
            *_final_norm(walk),
            _logits(walk),
            _sampling(walk, sampling),
        )
    )


def _tokens(walk: Walk, text: Text) -> Step:
    ids, texts = walk.values.tokens, walk.values.texts
    rows = [
        (f'{i} {quoted(each)}', str(ids[i]), 'this one' if i == walk.token else '')
        for i, each in enumerate(texts)
    ]
    if len(rows) > 2 * TOP:
        rows = [*rows[:TOP], ('…', '', ''), *rows[-TOP:]]
    tokenizer = walk.inspector.tokenizer
    length = f'{len(text.encode())} bytes of text are ' if isinstance(text, str) else ''
    return Step(
        'Text to tokens',
        f'{length}{len(ids)} tokens of a vocabulary of {walk.config.vocab_size:,}. '
        f'The walk follows token {walk.token}, {quoted(texts[walk.token], 30)}.',
        code=(type(tokenizer), encode_prompt),
        lines=tuple(table(('token', 'id', ''), rows)),
    )


def _embedding(walk: Walk) -> Step:
    c, token_id, x = walk.config, walk.values.tokens[walk.token], walk.at('embedding')
    row = np.asarray(walk.params['embedding']['table'][token_id], np.float32)
    factor = embedding_multiplier(c)
    times = f' * √{factor**2:.0f}' if c.scale_embedding else ''
    return Step(
        'Embedding',
        'Every token of the vocabulary has a learned row; training moves similar tokens together.',
        f'x = table[{token_id}]{times}   {shape(c.d_model)} of {shape(c.vocab_size, c.d_model)}',
        walk.code('embedding'),
        (vector('x', x),),
        (Check(f'x[0]: table[{token_id}, 0]{times}', row[0] * factor, x[0]),),
    )


def _position(walk: Walk) -> list[Step]:
    c = walk.inspector.config
    position = POSITIONS[c.position]
    if position.embed is None:
        if position.rotate is None and position.slopes is None:
            about = 'The model has none: only the causal mask tells earlier tokens from later ones.'
        else:
            how = 'queries and keys turn' if position.rotate is not None else 'scores fall'
            about = f'Nothing is added to the embedding: {how} with the position, in each layer.'
        code = tuple(each for each in (position.rotate, position.slopes) if each is not None)
        return [Step('Position', about, code=code or (GPT.hidden,))]
    x, start = walk.at('embedding'), dataclasses.replace(walk, layer=0).at('residual_before')
    learned = walk.params.get('position', {}).get('table')
    if learned is None:
        row, said = start - x, f'sin({walk.token})'
        first = float(np.sin(walk.token))
    else:
        row = np.asarray(learned[c.position_offset + walk.token], np.float32)
        first, said = float(row[0]), number(row[0])
    about = 'Without it the model could not tell the order of the tokens before it.'
    return [
        Step(
            f'Position, {c.position}',
            about,
            f'x = x + position[{walk.token}]   {shape(c.d_model)}',
            walk.code('position'),
            (vector('x', x), vector('position', row), vector('sum', start)),
            (Check(f'sum[0]: {number(x[0])} + {said}', float(x[0]) + first, start[0]),),
        )
    ]


def _all_layers(walk: Walk) -> Step:
    rows = []
    for layer in range(walk.config.num_layers):
        here = dataclasses.replace(walk, layer=layer)
        norms = [
            f'{np.linalg.norm(here.at(point)):.2f}' if here.has(point) else 'none'
            for point in ('attention_output', 'mlp_output', 'residual_after')
        ]
        reads = ''
        if here.has('attention.weights'):
            weights = here.at('attention.weights').mean(0)
            best = int(weights.argmax())
            reads = f'{quoted(walk.values.texts[best])} {weights[best]:.0%}'
        rows.append((str(layer), *norms, reads))
    header = ('layer', 'attention', 'MLP', 'stream', 'reads most, mean of heads')
    return Step(
        'All layers',
        'Each layer does the same with its own weights. The norms of what its branches add, and '
        'of the stream after it:',
        'x = layer(x) for each layer',
        (Period,),
        tuple(table(header, rows)),
    )


def _final_norm(walk: Walk) -> list[Step]:
    if not walk.config.final_norm:
        return []
    last = walk.config.num_layers - 1
    whole = dataclasses.replace(walk, layer=last)
    return [
        norm_step(
            _Outside(**{f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)}),
            'final_norm',
            whole.at('residual_after'),
            whole.at('final_norm'),
            title='Final norm',
            about='The stream after the last layer is brought to a fixed scale once more.',
        )
    ]


class _Outside(Walk):
    """A walk outside of the layers, whose config is the model's."""

    @property
    def config(self):
        """The config of the model."""
        return self.inspector.config


def _logits(walk: Walk) -> Step:
    c, logits, x = (
        walk.inspector.config,
        walk.at('logits').astype(np.float64),
        walk.at('final_norm'),
    )
    order = np.argsort(-logits, kind='stable')[:TOP]
    exponents = np.exp(logits - logits.max())
    probabilities = exponents / exponents.sum()
    texts = walk.inspector.token_texts(order.tolist())
    rows = [
        (f'{i} {quoted(text)}', number(logits[i]), number(exponents[i]), f'{probabilities[i]:.2%}')
        for i, text in zip(order.tolist(), texts, strict=True)
    ]
    best = int(order[0])
    module = 'embedding' if c.tie_embeddings else 'output'
    row = np.asarray(walk.params[module]['table'][best], np.float32)
    found, text = float(row @ x), f'x · {module}[{best}]'
    if (multiplier := output_multiplier(c)) != 1:
        found, text = multiplier * found, f'{number(multiplier)} * {text}'
    if c.output_soft_cap:
        cap = c.output_soft_cap
        found, text = cap * np.tanh(found / cap), f'{cap} * tanh({text} / {cap})'
    largest = number(logits.max())
    header = ('token', 'logit', f'exp(logit - {largest})', 'probability')
    about = 'The stream is compared with a row for every token'
    about += ', the same as of the embedding.' if c.tie_embeddings else ' of an output table.'
    following = walk.token + 1
    if following < len(walk.values.tokens):
        actual = walk.values.tokens[following]
        about += f' The text continues with {quoted(walk.values.texts[following])}, which has '
        about += f'{probabilities[actual]:.2%}: a loss of {number(-np.log(probabilities[actual]))}.'
    return Step(
        'Logits and probabilities of the next token',
        about,
        f'logits = x · table   {shape(c.vocab_size)} = {shape(c.vocab_size, c.d_model)} '
        f'{shape(c.d_model)};  p = exp(logit) / sum',
        (GPT.logits, Table),
        (
            *table(header, rows),
            f'sum of exp over all {c.vocab_size:,} tokens: {number(exponents.sum())}',
        ),
        (
            Check(f'logit of {best}: {text}', found, logits[best]),
            Check(
                f'p of {best}: 1 / {number(exponents.sum())}',
                1 / exponents.sum(),
                probabilities[best],
            ),
        ),
    )


def _sampling(walk: Walk, sampling: SampleConfig | None) -> Step:
    logits = walk.at('logits')
    rules = dict(RULES) | ({} if sampling is None else {'this run': sampling})
    columns = {}
    for name, config in rules.items():
        finalize_sample(config)
        config = dataclasses.replace(config, repetition_penalty=1.0)
        rule = make_rule([config], vocab_size=len(logits))
        kept = np.asarray(_filter(jnp.asarray(logits[None]), None, rule)[0], np.float64)
        if config.temperature == 0:
            kept = np.where(np.arange(len(kept)) == kept.argmax(), 0.0, -np.inf)
        exponents = np.exp(kept - kept.max())
        columns[name] = exponents / exponents.sum()
    order = np.argsort(-logits, kind='stable')[:TOP]
    texts = walk.inspector.token_texts(order.tolist())
    rows = [
        (
            f'{i} {quoted(text)}',
            *(f'{values[i]:.1%}' if values[i] else '-' for values in columns.values()),
        )
        for i, text in zip(order.tolist(), texts, strict=True)
    ]
    shown = [int(i) for i in order[:3]]
    base = columns['as is']
    parts = ' + '.join(f'{base[i]:.4f}' for i in shown)
    return Step(
        'Sampling',
        'The next token is drawn at random by these probabilities. A low temperature T sharpens '
        'them, top-k keeps the k likeliest, top-p the likeliest that reach p together.',
        'p(T) = exp(logit / T) / sum',
        (filter_logits, sample),
        tuple(table(('token', *columns), rows)),
        (
            Check(
                f'top-k 3, p of {shown[0]}: {base[shown[0]]:.4f} / ({parts})',
                base[shown[0]] / base[shown].sum(),
                columns['top-k 3'][shown[0]],
            ),
        ),
    )
