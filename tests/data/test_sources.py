"""Files below a folder: links are followed once, and what cannot be read is named."""

import errno
import os

from gpt_jax.data.sources import files_below


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
