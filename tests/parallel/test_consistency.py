"""Who differs from the others is named, and rightly."""

import pytest

from gpt_jax.errors import UserError
from gpt_jax.parallel import consistency, probe


def test_equal_facts():
    assert consistency.find_odd([{'code': 'a', 'jax': '1'}] * 3) == []


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ('aba', 'process 1 has b and the others have a'),
        ('baa', 'process 0 has b and the others have a'),
        ('ab', 'process 1 has b and the others have a'),
        ('ba', 'process 1 has a and the others have b'),
        ('abca', 'process 1 has b, 2 has c and the others have a'),
    ],
    ids=['one of three', 'the first', 'two: the first is right', 'two reversed', 'two of four'],
)
def test_the_odd_process_is_named(values, expected):
    facts = [{'jax': '1', 'config': value} for value in values]
    (line,) = consistency.find_odd(facts)
    assert f'differ in their config: {expected};' in line


def test_code_facts_see_a_changed_file(monkeypatch, tmp_path):
    package = tmp_path / 'gpt_jax' / 'parallel'
    package.mkdir(parents=True)
    monkeypatch.setattr(consistency, '__file__', str(package / 'consistency.py'))
    (package / 'consistency.py').write_text('x = 1\n')
    before = consistency.code_facts()
    assert consistency.code_facts() == before
    (package / 'consistency.py').write_text('x = 2\n')
    assert consistency.code_facts()['code'] != before['code']


def test_a_folder_that_cannot_be_read(tmp_path):
    assert probe.check_shared_folder(tmp_path / 'run') >= 0
    assert not (tmp_path / 'run').exists(), 'the probe leaves nothing'
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write'):
        probe.check_shared_folder(tmp_path / 'file')
