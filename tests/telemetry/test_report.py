"""Tables on a terminal and in a pipe."""

import io
import os
import sys

import pytest

from gpt_jax.telemetry.report import format_table

ROWS = {'a': 'short', 'model': '4 layers, d_model 128, d_ff 512, vocabulary 1,024 (table 1,024)'}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_pipe_gets_a_line_per_row(monkeypatch):
    monkeypatch.setattr(sys, 'stdout', io.StringIO())
    monkeypatch.setenv('COLUMNS', '40')
    lines = format_table('title', ROWS).splitlines()
    assert lines == ['title', '  a      short', f'  model  {ROWS["model"]}']


@pytest.mark.parametrize('columns', [40, 60, 80, 120])
def test_a_terminal_gets_lines_that_fit(monkeypatch, columns):
    monkeypatch.setattr(sys, 'stdout', Terminal())
    monkeypatch.setattr(os, 'environ', os.environ | {'COLUMNS': str(columns)})
    lines = format_table('title', ROWS).splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line.startswith(' ' * 9) for line in lines[3:])
    words = ' '.join(line.strip() for line in lines[2:])
    assert words.split() == ['model', *ROWS['model'].split()]
