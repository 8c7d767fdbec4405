"""Looking into a run from the command line: the report, and the page."""

import json
import re

import pytest

from gpt_jax import GPT
from gpt_jax.inspector.terminal import visible
from gpt_jax.main import main


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    sizes = dict(num_layers=2, num_heads=2, d_model=16, max_seq_len=32)
    GPT(vocab_size=257, init={'std': 0.3}, **sizes).save(folder)
    return folder


def inspect(workdir, *arguments):
    return main(['--mode=inspect', f'--workdir={workdir}', *arguments])


@pytest.mark.parametrize('columns', [80, 120])
def test_report_and_page(workdir, capsys, monkeypatch, columns):
    monkeypatch.setenv('COLUMNS', str(columns))
    names = '--analyses=token_loss,attention,attribution'
    assert inspect(workdir, '--prompt=ab\n[red]</script>', names) == 0
    printed = capsys.readouterr().out
    *report, last = printed.splitlines()
    assert max(map(len, report)) <= columns
    assert '\033' not in printed
    assert report[0].rstrip() == ' '.join('ab↵[red]</script>')
    [losses] = [line.split() for line in report if re.match(r' *2  ↵', line)]
    row = re.compile(r'\d+ . \d+\.\d\d \d+\.\d% \d+ . \d+%.*')
    assert row.fullmatch(' '.join(losses))
    assert 'Heads' in printed
    page = (workdir / 'inspect.html').read_text(encoding='utf-8')
    size = len(page.encode()) / 1e3
    assert last == f'wrote {workdir}/inspect.html ({size:,.0f} kB); open it in a browser'
    assert 'raw weights of step 0: 2 layers, 2 heads' in page


def test_analyses_and_out_are_chosen(workdir, tmp_path, capsys):
    out = tmp_path / 'new' / 'page.html'
    assert inspect(workdir, '--prompt=ab', '--analyses=attention,lens', f'--out={out}') == 0
    [data] = re.findall(r'type="application/json">(.*?)</script>', out.read_text('utf-8'))
    assert [each['name'] for each in json.loads(data)['analyses']] == ['attention', 'lens']
    capsys.readouterr()


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (['--analyses=attentoin'], '--analyses=attentoin is not one; did you mean attention?'),
        (['--prompt=' + 'a' * 40], 'shorten it'),
    ],
)
def test_errors_are_one_line(workdir, capsys, arguments, error):
    assert inspect(workdir, *arguments) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: ') and error in line


def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    workdir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr('gpt_jax.modes.inspect.survey', None)
    long = tmp_path / ('a' * 250)  # not with the suffix of the temporary file
    for out, error in (
        ('/dev/null/page.html', 'cannot write /dev/null/page.html: '),
        (tmp_path, f'--out={tmp_path} is a folder; name a file'),
        (long, f'cannot write {long}: File name too long'),
    ):
        assert inspect(workdir, '--prompt=ab', f'--out={out}') == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f'error: {error}')
    assert not list(tmp_path.iterdir())


def test_visible():
    assert visible(' a\tb\n') == '·a⇥b↵'
    assert visible('\x1b[31m\u202e') == '\\u001b[31m\\u202e'
    assert visible('') == '∅'
