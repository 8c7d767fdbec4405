"""The committed results of experiments: their answers, their texts, and the table."""

import json
import re

import pytest

from tests.template import ROOT

pytest.importorskip('optuna')

from gpt_jax.sweep.definition import Sweep, load_sweep

FOLDER = ROOT / 'experiments'
SLUGS = sorted(path.parent.name for path in FOLDER.glob('*/sweep.py'))
ANSWERED = sorted(
    str(path.parent.relative_to(FOLDER))
    for path in FOLDER.glob('**/results.json')
    if 'trials' not in path.parts
)


def results_of(name: str) -> dict:
    return json.loads((FOLDER / name / 'results.json').read_text(encoding='utf-8'))


def sweep_of(name: str) -> Sweep:
    slug, _, variable = name.partition('/')
    return load_sweep(FOLDER / slug / 'sweep.py', variable or 'sweep')


def assert_close(found, expected) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_close(*pair)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, nan_ok=True)
    else:
        assert found == expected


def words(text: str) -> str:
    return ' '.join(text.split())


@pytest.mark.parametrize('slug', SLUGS)
def test_an_experiment_is_whole(slug):
    folder = FOLDER / slug
    readme = (folder / 'README.md').read_text(encoding='utf-8')
    assert f'python -m gpt_jax.sweep experiments/{slug}/sweep.py' in readme
    headings = re.findall('^## (.*)', readme, re.MULTILINE)
    assert headings == ['The claim', 'What was run', 'What differs', 'The answer']
    assert sweep_of(slug).answer is not None
    if slug in ANSWERED:
        assert '](figure.png)' in readme and (folder / 'figure.png').is_file()
    else:
        assert readme.endswith('Not run yet.\n')


@pytest.mark.parametrize('name', ANSWERED)
def test_an_answer_follows_from_the_committed_numbers(name, monkeypatch, tmp_path):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    monkeypatch.chdir(ROOT)
    results = results_of(name)
    answer = results.pop('answer')
    found = json.loads(json.dumps(sweep_of(name).answer(results, tmp_path)))
    assert_close(found, answer)
    readme = (FOLDER / name.split('/')[0] / 'README.md').read_text(encoding='utf-8')
    assert words(answer['finding']) in words(readme)
    finished = {'complete', 'pruned'}
    assert {record['state'] for record in results['trials']} <= finished
    assert all(record['data'] and record['environment'] for record in results['trials'])


def test_the_table_has_every_answer():
    text = (FOLDER / 'README.md').read_text(encoding='utf-8')
    rows = dict(re.findall(r'^\| \[(\w+)\]\(\w+/README.md\) (\|.*)$', text, re.MULTILINE))
    answered = {name for name in ANSWERED if '/' not in name}
    assert set(rows) == answered
    missing = re.search(r'^Not run yet: (.*)\.$', text, re.MULTILINE)
    assert (missing[1].split(', ') if missing else []) == sorted(set(SLUGS) - answered)
    for slug in answered:
        answer = results_of(slug)['answer']
        assert f'| {answer["verdict"]} |' in rows[slug], slug
        assert f'| {answer["minutes"]:.0f} |' in rows[slug], slug
