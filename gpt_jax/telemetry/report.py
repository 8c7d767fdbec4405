"""Aligned tables for a terminal or a log."""

from collections.abc import Sequence


def format_table(title: str, rows: dict[str, str]) -> str:
    """A title, then one indented line a row: name, value."""
    width = max(len(name) for name in rows)
    return '\n'.join([title, *(f'  {name:<{width}}  {value}' for name, value in rows.items())])


def format_columns(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A title, then indented lines of columns under their names; all but the first to the right."""
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
