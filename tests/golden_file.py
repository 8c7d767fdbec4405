"""Comparing with readable files in tests/golden/."""

import os
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'golden'


HOW_TO_UPDATE = (
    'differs. If the change is meant, rewrite it with UPDATE_GOLDEN=1 make test, '
    'and say in the commit why the values changed.'
)


def check_golden(name: str, text: str) -> None:
    """Fails when `text` differs from the committed file; UPDATE_GOLDEN=1 rewrites it instead."""
    assert text == _expected(name, text), f'tests/golden/{name} {HOW_TO_UPDATE}'


def check_golden_numbers(name: str, rows: dict[str, list[float]], *, rtol: float) -> None:
    """The same for a table of numbers, which may differ by `rtol`."""
    lines = [f'{key} ' + ' '.join(f'{x:.7f}' for x in row) for key, row in rows.items()]
    expected = _expected(name, '\n'.join([*lines, '']))
    stored = {line.split()[0]: [*map(float, line.split()[1:])] for line in expected.splitlines()}
    assert stored.keys() == rows.keys(), f'tests/golden/{name} {HOW_TO_UPDATE}'
    for key, row in rows.items():
        message = f'{key} in tests/golden/{name} {HOW_TO_UPDATE}'
        np.testing.assert_allclose(row, stored[key], rtol=rtol, err_msg=message)


def _expected(name: str, text: str) -> str:
    path = FOLDER / name
    if os.environ.get('UPDATE_GOLDEN'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    return path.read_text(encoding='utf-8') if path.exists() else ''
