"""The summary of a report on the terminal."""

from collections.abc import Mapping, Sequence

from gpt_jax.report.groups import Group
from gpt_jax.report.settings import NONE
from gpt_jax.report.warning_rules import Finding
from gpt_jax.telemetry.report import format_columns

HEADER = ('run', 'step', 'train loss', 'eval loss', 'lowest', 'at step', 'tokens/s', 'warnings')
MOST_LINES = 12  # of warnings about one run


def format_summary(groups: Sequence[Group], warnings: Mapping[str, Sequence[Finding]]) -> str:
    """Returns a row for each run, and then the warnings."""
    rows, lines = [], []
    for run in (run for group in groups for run in group.runs):
        lowest = run.best('eval/loss')
        planned = run.config.train.num_steps
        rows.append(
            [
                run.name,
                f'{run.last_step:,}' + (f'/{planned:,}' if run.last_step < planned else ''),
                _number(run.last('train/loss'), '.4f'),
                _number(run.last('eval/loss'), '.4f'),
                _number(lowest and lowest[1], '.4f'),
                _number(lowest and lowest[0], ','),
                _number(run.typical('train/tokens_per_second'), ',.0f'),
                str(len(warnings[run.name])),
            ]
        )
        found = [f'{run.name}: {each.kind}: {each.text}' for each in warnings[run.name]]
        lines += found[:MOST_LINES]
        if len(found) > MOST_LINES:
            lines.append(f'{run.name}: and {len(found) - MOST_LINES} more warnings, in the page')
    title = f'{len(rows)} {"run" if len(rows) == 1 else "runs"}'
    if len(groups) < len(rows):
        title += f' of {len(groups)} {"config" if len(groups) == 1 else "configs"}'
    return '\n'.join([format_columns(title, HEADER, rows), *lines])


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
