"""Aligned two-column tables for a terminal or a log."""


def format_table(title: str, rows: dict[str, str]) -> str:
    """A title, then one indented line a row: name, value."""
    width = max(len(name) for name in rows)
    return '\n'.join([title, *(f'  {name:<{width}}  {value}' for name, value in rows.items())])
