"""Aligned tables for a terminal or a log."""

import shutil
import sys
import textwrap
from collections.abc import Sequence

_LEAST_COLUMNS = 20  # of a value; a narrower terminal breaks lines by itself


def format_table(title: str, rows: dict[str, str]) -> str:
    """Formats a title, then an indented line per row: name, value.

    On a terminal a value that is too long continues below itself. Elsewhere it is one line, so that
    programs can read it.
    """
    width = max(len(name) for name in rows)
    columns = shutil.get_terminal_size().columns - width - 4 if sys.stdout.isatty() else 0
    lines = [title]
    for name, value in rows.items():
        parts = [value]
        if columns >= _LEAST_COLUMNS:
            parts = textwrap.wrap(
                value, columns, break_long_words=False, break_on_hyphens=False
            ) or ['']
        lines.append(f'  {name:<{width}}  {parts[0]}')
        lines += [' ' * (width + 4) + part for part in parts[1:]]
    return '\n'.join(lines)


def format_columns(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a title, then a table with a header; columns after the first are right-aligned."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return '\n'.join(
        [
            title,
            *(
                '  '
                + '  '.join(
                    f'{cell:<{width}}' if column == 0 else f'{cell:>{width}}'
                    for column, (cell, width) in enumerate(zip(line, widths, strict=True))
                ).rstrip()
                for line in lines
            ),
        ]
    )
