"""The charts of a report: which metrics, with which titles and units."""

import dataclasses
from collections.abc import Iterable, Sequence

from gpt_jax.report.recorded_run import SECONDS, WAIT_SHARE


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart of metrics in one unit; `lines` are (metric, name in the legend)."""

    title: str
    lines: Sequence[tuple[str, str]]
    unit: str = ''
    log: bool = False
    percent: bool = False
    smooth: bool = True


LOSSES = (('train/loss', 'training'), ('eval/loss', 'validation'))
AVERAGED = ('eval_ema/loss', 'validation, averaged weights')

CHARTS = (
    Chart('Loss', (*LOSSES, AVERAGED), 'nats per token'),
    Chart('Learning rate', (('train/learning_rate', 'learning rate'),), smooth=False),
    Chart('Gradient norm', (('train/grad_norm', 'before clipping'),), log=True),
    Chart('Throughput', (('train/tokens_per_second', 'throughput'),), 'tokens per second'),
    Chart('Waiting for data', ((WAIT_SHARE, 'share'),), 'of the step time', percent=True),
    Chart(
        'Accuracy of the next token',
        (('train/accuracy', 'training'), ('eval/accuracy', 'validation')),
        percent=True,
    ),
    Chart('Bits per byte', (('eval/bits_per_byte', 'validation'),)),
    Chart('Norm of the weights', (('train/param_norm', 'norm'),)),
    Chart('Model FLOPs utilisation', (('train/mfu', 'MFU'),), 'of the peak', percent=True),
    Chart('Device memory', (('train/memory_gib', 'in use'),), 'GiB'),
)
# Functions of others, or counters.
NOT_DRAWN = {
    *('train/tokens', 'eval/tokens', 'train/data_wait_seconds', SECONDS, 'train/bad_steps'),
    *('train/skipped_steps', 'eval/perplexity', 'eval_ema/perplexity', 'eval_ema/tokens'),
}


def choose_charts(metrics: Iterable[str]) -> list[Chart]:
    """Returns the charts of these metrics; one that no chart is made for has its own."""
    metrics = [name for name in dict.fromkeys(metrics) if name not in NOT_DRAWN]
    chosen, drawn = [], set()
    for chart in CHARTS:
        lines = [line for line in chart.lines if line[0] in metrics]
        drawn |= {name for name, _ in lines}
        if lines:
            chosen.append(dataclasses.replace(chart, lines=lines))
    own = [Chart(_title(name), ((name, name),)) for name in metrics if name not in drawn]
    return chosen + own


def _title(name: str) -> str:
    """Returns 'Experts dropped (train)' for 'train/experts_dropped'."""
    where, _, what = name.rpartition('/')
    words = what.replace('_', ' ')
    return words[:1].upper() + words[1:] + (f' ({where})' if where else '')
