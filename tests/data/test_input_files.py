"""Files below a folder: links are followed once, and what cannot be read is named."""

import errno
import os

import pytest

from gpt_jax.data.config import DataConfig
from gpt_jax.data.corpora import make_corpus
from gpt_jax.data.input_files import files_below


def names(root, **options):
    return [path.relative_to(root).as_posix() for path in files_below(root, **options)]


def test_linked_folders_are_read_and_loops_are_not(tmp_path):
    corpus, elsewhere = tmp_path / 'corpus', tmp_path / 'elsewhere'
    for folder in (corpus / 'own', elsewhere):
        folder.mkdir(parents=True)
        (folder / 'a.txt').write_text('text')
    (corpus / 'own' / '.hidden').write_text('')
    (corpus / 'more').symlink_to(elsewhere)
    (corpus / 'more_again').symlink_to(elsewhere)
    (elsewhere / 'back').symlink_to(corpus)
    (corpus / 'nothing').symlink_to(tmp_path / 'missing')
    assert names(corpus) == ['more/a.txt', 'own/a.txt']
    assert names(corpus, follow_links=False) == ['own/a.txt']
    assert names(corpus, skip=['more']) == ['more_again/a.txt', 'own/a.txt']


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, capsys):
    """Root may read everything, so the system's refusal is played."""
    (tmp_path / 'closed').mkdir()
    (tmp_path / 'a.txt').write_text('text')
    scan = os.scandir

    def refuse(path):
        if str(path).endswith('closed'):
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    assert names(tmp_path) == ['a.txt']
    assert f'left out: {tmp_path / "closed"} (Permission denied)' in capsys.readouterr().out


def test_files_that_are_left_out_are_named(tmp_path, capsys):
    for name in 'abcde':
        (tmp_path / f'{name}.bin').write_bytes(b'\0')
    (tmp_path / 'text.txt').write_text('text')
    config = DataConfig(corpus='text', source=str(tmp_path))
    assert [path.name for path in make_corpus(config).files] == ['text.txt']
    printed = capsys.readouterr().out
    assert printed == f'left out 5 files of {tmp_path} that are no text: a.bin, b.bin, c.bin, …\n'


@pytest.mark.parametrize(
    ('name', 'content', 'advice'),
    [
        ('a.csv', 'text,label\n', 'convert it to JSON lines'),
        ('a.jsonl', '{"text": "a"}\n', 'config.data.corpus=jsonl reads'),
        ('a.jsonl', '{"messages": []}\n', 'config.data.corpus=chat reads'),
        ('a.txt', '{"messages": []}\n', ''),
    ],
)
def test_records_that_are_read_as_text_are_warned_of(tmp_path, capsys, name, content, advice):
    (tmp_path / name).write_text(content)
    make_corpus(DataConfig(corpus='text', source=str(tmp_path / name)))
    printed = capsys.readouterr().out
    assert advice in printed and printed.startswith('warning: ' if advice else '')
    assert bool(printed) == bool(advice)
