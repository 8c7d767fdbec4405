import os
import sys
import threading
import time

import pytest

from gpt_jax import files, object_store
from gpt_jax.errors import UserError
from gpt_jax.main import main
from tests import command_line


def test_an_object_is_whole_or_not_there(bucket):
    path = object_store.to_path(f'{bucket}/folder/', key='--workdir') / 'value.json'
    assert str(path) == f'{bucket}/folder/value.json'
    assert not path.exists() and object_store.list_objects(path.parent) == []
    with pytest.raises(ZeroDivisionError), files.atomic_file(path, 'w') as file:
        file.write('half')
        raise ZeroDivisionError
    assert not path.exists()
    files.write_json(path, {'ü': 1})
    with pytest.raises(ZeroDivisionError), files.atomic_file(path, 'w') as file:
        file.write('half')
        raise ZeroDivisionError
    assert files.read_json(path) == {'ü': 1}
    assert abs(object_store.written_at(path) - time.time()) < 60
    with pytest.raises(UserError, match='cannot read .*/missing.json'):
        files.read_json(path.parent / 'missing.json')


def test_an_object_that_is_replaced_while_it_is_read(bucket):
    """One version is read, though between two requests there is another."""
    path = object_store.to_path(f'{bucket}/folder', key='--workdir') / 'value.json'
    files.write_json(path, 0)
    stop = threading.Event()

    def replace():
        while not stop.is_set():
            files.write_json(path, 1)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(40):
            assert files.read_json(path) in (0, 1)
    finally:
        stop.set()
        thread.join()


def test_folders_are_copied_moved_and_removed(bucket, tmp_path):
    (tmp_path / 'from' / 'sub').mkdir(parents=True)
    (tmp_path / 'from' / 'a').write_bytes(b'')
    (tmp_path / 'from' / 'sub' / 'b').write_bytes(bytes(range(256)) * 40_000)  # several parts
    root = object_store.to_path(f'{bucket}/runs', key='--workdir')
    object_store.upload_folder(tmp_path / 'from', root / 'x')
    files.write_text(root / 'xy', 'a neighbour whose name begins in the same way')
    object_store.move_folder(root / 'x', root / 'z')
    assert object_store.list_objects(root) == ['xy', 'z/a', 'z/sub/b']
    object_store.download_folder(root / 'z', tmp_path / 'to')
    for name in ('a', 'sub/b'):
        assert (tmp_path / 'to' / name).read_bytes() == (tmp_path / 'from' / name).read_bytes()
    assert object_store.copy_folder(root / 'z', root / 'w') == ['a', 'sub/b']
    assert object_store.list_objects(root) == ['w/a', 'w/sub/b', 'xy', 'z/a', 'z/sub/b']
    object_store.remove_folder(root / 'w')
    object_store.remove_folder(root / 'z')
    object_store.remove(root / 'never')
    assert object_store.list_objects(root) == ['xy']


@pytest.mark.parametrize(
    'name, message',
    [
        ('ftp://host/a', 'ftp:// is unknown; use a folder, gs:// or s3://'),
        ('s3://bucket', 'must name a folder in a bucket: s3://BUCKET/FOLDER'),
        ('s3://bucket/', 'must name a folder in a bucket'),
        ('gs:///folder', 'must name a folder in a bucket'),
    ],
)
def test_an_address_that_cannot_be(name, message, capsys):
    assert main([f'--workdir={name}']) == 2
    assert capsys.readouterr().err.startswith(f'error: --workdir={name}')
    with pytest.raises(UserError, match=message):
        object_store.to_path(name, key='--workdir')


@pytest.mark.parametrize('scheme, package, extra', [('s3', 's3fs', 's3'), ('gs', 'gcsfs', 'gcs')])
def test_a_missing_package_is_named_with_its_extra(scheme, package, extra, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert main([f'--workdir={scheme}://bucket/a']) == 2
    assert capsys.readouterr().err == (
        f'error: --workdir={scheme}://bucket/a needs a package: pip install {package}, '
        f"or the extra: pip install -e '.[{extra}]'\n"
    )


def test_a_bucket_that_is_not_there(bucket, capsys):
    assert main([f'--workdir={bucket}-other/a']) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: --workdir={bucket}-other/a: there is no bucket')
    assert error.count('\n') == 1


def test_a_folder_that_holds_no_run(bucket, capsys):
    assert main([f'--workdir={bucket}/a', '--mode=generate']) == 2
    assert 'holds no run' in capsys.readouterr().err


def test_no_credentials(s3, tmp_path):
    """In a process of its own: clients keep what they have found."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith('_KEY')}
    environment.pop('AWS_ACCESS_KEY_ID')
    environment |= {'HOME': str(tmp_path), 'AWS_EC2_METADATA_DISABLED': 'true'}
    output = command_line.run_anew(f'--workdir={s3}/a', status=2, env=environment)
    assert output == (
        f'error: --workdir={s3}/a: the store refused (Unable to locate credentials); check the '
        f'bucket, the credentials and the network\n'
    )
