"""Analyses on the terminal: tokens coloured by their loss, alternatives, the heads that matter."""

import re
from collections.abc import Iterable, Mapping

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from gpt_jax.inspector.analyses.base import Analysis, top

HEADS = 8  # listed
LONGEST = 12  # characters of a token in a table
OTHERS = 53  # the width of the columns before the alternatives
# Analyses that say how much each head matters, by which field; the first that is there is shown.
_IMPORTANCE = {
    'ablation': ('head_loss', 'loss', 'Heads whose removal changes the mean loss most'),
    'attribution': ('heads', 'logit', 'Heads that write most to the logit of the next token'),
}
_MARKS = {' ': '·', '\n': '↵', '\t': '⇥'}
# Invisible characters, and those that move the text around them or break the line.
_HIDDEN = re.compile(
    '[\x00-\x1f\x7f-\xa0\xad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]'
)


def visible(text: str) -> str:
    """Returns the text of a token with visible whitespace: `·hello↵`."""
    text = ''.join(_MARKS.get(each, each) for each in text)
    return _HIDDEN.sub(lambda match: f'\\u{ord(match[0]):04x}', text) or '∅'


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f'{text[: LONGEST - 1]}…'


def report(analyses: Mapping[str, Analysis], *, width: int) -> list[RenderableType]:
    """Returns what the terminal shows of analyses, by name; of those that are there."""
    shown: list[RenderableType] = []
    if losses := analyses.get('token_loss'):
        shown += [_coloured(losses), _losses(losses, width)]
    if heads := _heads(analyses):
        shown.append(heads)
    return shown


def print_report(analyses: Mapping[str, Analysis], console: Console | None = None) -> None:
    """Prints analyses to standard output, in colours on a terminal."""
    console = console or Console(highlight=False)
    for each in report(analyses, width=console.width):
        console.print(each)
        console.print()


def _coloured(losses: Analysis) -> RenderableType:
    """Returns the text, each token on a shade for its loss."""
    values = [np.nan, *losses.loss.values]
    worst = max((value for value in values if np.isfinite(value)), default=0) or 1
    line = Text()
    for text, value in zip(losses.texts, values, strict=True):
        line.append(visible(text), shade(value / worst))
        line.append(' ')
    return line


def shade(part: float) -> Style:
    """Returns the style of a loss that is this part of the largest; 0 is pale, 1 deep orange."""
    if not np.isfinite(part):
        return Style(dim=True)
    pale, deep = np.array([255, 243, 224]), np.array([190, 84, 10])
    red, green, blue = np.rint(pale + min(part, 1) * (deep - pale)).astype(int)
    return Style(color='#101418' if part < 0.8 else '#ffffff', bgcolor=f'rgb({red},{green},{blue})')


def _losses(losses: Analysis, width: int) -> Table:
    """Returns a row for each token, and for the one to come, within a width."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style='bold')
    table.add_column('', justify='right', style='dim')
    table.add_column('token', width=LONGEST)
    for name in ('loss', 'probability', 'rank'):
        table.add_column(name, justify='right')
    table.add_column('expected', no_wrap=True)
    room = width - OTHERS
    values = losses.loss.values
    worst = max(float(values.max(initial=0)), 1e-9)
    table.add_row('0', Text(visible(losses.texts[0])))
    for position, text in enumerate([*losses.texts[1:], None], 1):
        expected = _alternatives(losses, position - 1, room)
        if text is None:
            table.add_row('', Text('next', 'dim'), '', '', '', expected)
            continue
        table.add_row(
            str(position),
            Text(_cut(visible(text)), shade(values[position - 1] / worst)),
            f'{values[position - 1]:.2f}',
            f'{losses.probability.values[position - 1]:.1%}',
            str(losses.rank.values[position - 1]),
            expected,
        )
    return table


def _alternatives(losses: Analysis, position: int, room: int) -> Text:
    """Returns the tokens that were most probable after a position, as many as fit."""
    pairs = zip(losses.choices.values[position], losses.probabilities.values[position], strict=True)
    line = ''
    for token, part in pairs:
        longer = f'{line}{_cut(visible(losses.vocabulary[str(token)]))} {part:.0%}  '
        if len(longer) - 2 > room or part < 0.005:
            break
        line = longer
    return Text(line.rstrip())


def _heads(analyses: Mapping[str, Analysis]) -> RenderableType | None:
    """Returns the heads that matter most: by ablation, else by their part of the logit."""
    name = next((name for name in _IMPORTANCE if name in analyses), None)
    if name is None:
        return None
    field, measure, title = _IMPORTANCE[name]
    values = getattr(analyses[name], field)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style='bold')
    for heading in ('layer', 'head', measure):
        table.add_column(heading, justify='right')
    table.add_column('last token reads', no_wrap=True)
    maps = analyses.get('attention')
    for layer, head in top(np.abs(values.values), HEADS):
        reads = Text(_reads(maps, layer, head)) if maps else ''
        table.add_row(str(layer), str(head), f'{values.values[layer, head]:+.3f}', reads)
    return Group(Text(title, 'bold'), table)


def _reads(maps: Analysis, layer: int, head: int, count: int = 3) -> str:
    """Returns the tokens that a head reads most at the last position."""
    last: Iterable[float] = maps.weights.values[layer, head, -1]
    best = top(np.asarray(last), count)
    return '  '.join(
        f'{_cut(visible(maps.texts[i]))} {last[i]:.0%}' for (i,) in best if last[i] >= 0.01
    )
