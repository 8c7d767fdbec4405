"""Finding and reading the rows of a task, and the line for each way that this fails."""

import io
import json
import sys
import tarfile
import types

import pytest

from gpt_jax.errors import UserError
from gpt_jax.evaluate import task_runs
from gpt_jax.evaluate.rows import read_rows
from gpt_jax.evaluate.tasks import TASKS, check_names

PIQA = {'goal': 'g', 'sol1': 'a', 'sol2': 'b', 'label': 0}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    return path


def blimp_row(paradigm, number=0):
    pair = {'sentence_good': f'good {number}', 'sentence_bad': 'bad' * (number + 1)}
    return {**pair, 'UID': paradigm, 'linguistics_term': 'binding', 'field': 'syntax'}


def rows(name, *places):
    return [row for _, row in read_rows(name, TASKS[name], [str(place) for place in places])]


def test_a_folder_is_searched_for_what_is_called_like_the_task(tmp_path):
    write(tmp_path / 'some' / 'piqa_validation.jsonl', PIQA)
    write(tmp_path / 'ARC-Easy-Test.jsonl', {'x': 1})
    write(tmp_path / 'other.jsonl', {'y': 1})
    assert rows('piqa', tmp_path) == [PIQA]
    assert rows('arc_easy', tmp_path) == [{'x': 1}]
    assert rows('piqa', tmp_path / 'other.jsonl') == [{'y': 1}], 'one file is what it is said to be'
    both = [tmp_path / 'some' / 'piqa_validation.jsonl', tmp_path / 'ARC-Easy-Test.jsonl']
    assert rows('arc_easy', *both) == [{'x': 1}]


def test_what_is_in_many_files(tmp_path):
    folder = tmp_path / 'blimp'
    write(folder / 'data' / 'b.jsonl', blimp_row('b'))
    write(folder / 'data' / 'a.jsonl', blimp_row('a'))
    write(folder / 'models_summary.jsonl', {'model': 'x'})
    with tarfile.open(tmp_path / 'blimp.tar.xz', 'w:xz') as archive:
        archive.add(folder, 'blimp')
    expected = [blimp_row('a'), blimp_row('b')]
    assert rows('blimp', folder) == expected
    assert rows('blimp', tmp_path / 'blimp.tar.xz') == expected
    assert rows('blimp', folder / 'data' / 'a.jsonl') == expected[:1]


def test_texts_and_parquet(tmp_path):
    (tmp_path / 'perplexity.txt').write_bytes(b'\xef\xbb\xbfa\r\nb')
    assert rows('perplexity', tmp_path) == [{'text': 'a\r\nb'}]
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    nested = {'question': 'q', 'choices': {'text': ['x'], 'label': ['A']}, 'answerKey': 'A'}
    parquet.write_table(pyarrow.Table.from_pylist([nested]), tmp_path / 'arc_easy.parquet')
    [loaded] = task_runs.load(['arc_easy'], data=str(tmp_path))
    assert loaded.questions[0].choices == ('x',)


def test_limits_count_in_each_smallest_group(tmp_path):
    write(tmp_path / 'blimp.jsonl', *[blimp_row(name, i) for i in range(3) for name in 'ab'])
    [loaded] = task_runs.load(['blimp'], data=str(tmp_path), limit=2)
    kept = [(each.groups['paradigm'], each.choices[0]) for each in loaded.questions]
    assert kept == [('a', 'good 0'), ('b', 'good 0'), ('a', 'good 1'), ('b', 'good 1')]
    assert loaded.num_requests == 8


def test_the_fingerprint_is_of_what_is_asked(tmp_path):
    write(tmp_path / 'piqa.jsonl', PIQA)
    write(tmp_path / 'moved' / 'piqa.jsonl', {**PIQA, 'source': 'elsewhere'})
    write(tmp_path / 'other' / 'piqa.jsonl', {**PIQA, 'label': 1})
    folders = [tmp_path / 'piqa.jsonl', tmp_path / 'moved', tmp_path / 'other']
    prints = [task_runs.load(['piqa'], data=str(folder))[0].fingerprint() for folder in folders]
    assert prints[0] == prints[1] != prints[2]


def test_the_hub_through_datasets(monkeypatch):
    asked = []
    module = types.ModuleType('datasets')
    module.get_dataset_config_names = lambda path: ['b', 'a']

    def load_dataset(path, configuration, *, split):
        asked.append((path, configuration, split))
        return [blimp_row(configuration)]

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, 'datasets', module)
    assert rows('blimp', 'hub') == [blimp_row('a'), blimp_row('b')]
    assert asked == [('nyu-mll/blimp', 'a', 'train'), ('nyu-mll/blimp', 'b', 'train')]
    monkeypatch.setattr(module, 'load_dataset', lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match='cannot load baber/piqa for piqa'):
        rows('piqa', 'hub')


def test_every_failure_is_a_line_with_the_fix(tmp_path):
    def fails(name, *places, match):
        with pytest.raises(UserError, match=match) as error:
            task_runs.load([name], data=','.join(map(str, places)))
        assert '\n' not in str(error.value)

    fails('piqa', match=r'piqa needs its rows: give --task_data .* piqa\*\.jsonl')
    fails('piqa', tmp_path / 'absent', match='absent does not exist')
    fails('piqa', tmp_path, match='has nothing called piqa')
    write(tmp_path / 'piqa_a.jsonl', PIQA)
    write(tmp_path / 'piqa_b.jsonl', PIQA)
    fails('piqa', tmp_path, match='piqa is one file and here are 2')
    (tmp_path / 'text.md').write_text('x')
    fails('piqa', tmp_path / 'text.md', match='text.md is not .jsonl')
    (tmp_path / 'broken.jsonl').write_text('{"goal"')
    fails('piqa', tmp_path / 'broken.jsonl', match='broken.jsonl, line 1 is not valid JSON')
    write(tmp_path / 'empty.jsonl')
    fails('piqa', tmp_path / 'empty.jsonl', match='has no rows for piqa')
    for row, reason in (
        ({'goal': 'g'}, "it has no field 'sol1'; rows have goal, sol1, sol2, label"),
        ({**PIQA, 'label': 5}, 'the right answer is number 5 of 2'),
        ('text', 'rows have goal'),
    ):
        path = write(tmp_path / 'row.jsonl', row)
        fails('piqa', path, match=f'row.jsonl, line 1 is no row of piqa.*{reason}')
    (tmp_path / 'bad.tar.xz').write_bytes(io.BytesIO(b'no archive').getvalue())
    fails('blimp', tmp_path / 'bad.tar.xz', match='cannot read .*bad.tar.xz')
    fails('perplexity', 'hub', match='the hub has no perplexity')


def test_names_are_checked():
    with pytest.raises(UserError, match=r"--tasks: 'blump' .* did you mean blimp\? .*piqa"):
        check_names(['blump'], key='--tasks')
    with pytest.raises(UserError, match='piqa is there twice'):
        check_names(['piqa', 'piqa'], key='--tasks')
