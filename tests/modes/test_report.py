"""The mode report: its page, and wrong input in one line before any work."""

import pytest

from gpt_jax import object_store
from gpt_jax.main import main
from tests.report.recorded import losses, write_run


@pytest.fixture
def runs(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f'run-{seed}', losses(200), seed=seed, train__num_steps=200)
    return tmp_path


def report(workdir, *flags):
    return main(['--mode', 'report', '--workdir', str(workdir), *flags])


def test_the_page_is_in_the_workdir(runs, capsys):
    assert report(runs / 'run-0', f'--compare={runs}/run-*') == 0
    printed = capsys.readouterr().out
    assert printed.startswith('2 runs of 1 config\n')
    path = runs / 'run-0' / 'report.html'
    assert f'wrote {path} ({path.stat().st_size / 1e3:,.0f} kB)' in printed


def test_out_names_another_file(runs):
    assert report(runs / 'run-0', f'--out={runs}/new/page.html') == 0
    assert (runs / 'new' / 'page.html').is_file()
    assert not (runs / 'run-0' / 'report.html').exists()


@pytest.mark.parametrize(
    'workdir, flags, expected',
    [
        ('none', [], '--workdir={}/none holds no run: it has no config.json'),
        ('run-0', ['--compare={}/none'], '--compare={}/none holds no run'),
        ('run-0', ['--compare={}/z*'], '--compare={}/z* matches no folder; name workdirs of runs'),
        ('run-0', ['--out={}'], '--out={} is a folder; name a file'),
        (
            'run-0',
            ['--out={}/run-0/config.json/page.html'],
            'cannot write {}/run-0/config.json/page.html: ',
        ),
    ],
)
def test_wrong_input_is_one_line(runs, capsys, monkeypatch, workdir, flags, expected):
    monkeypatch.setattr('gpt_jax.modes.report.render', lambda *_: pytest.fail('work was done'))
    assert report(runs / workdir, *(flag.format(runs) for flag in flags)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: {expected.format(runs)}')
    assert not (runs / 'run-0' / 'report.html').exists()


def test_runs_and_the_page_may_be_in_a_bucket(runs, bucket):
    remote = object_store.to_path(f'{bucket}/run', key='--workdir')
    write_run(runs / 'sampled', losses(100), samples={50: 'a text'}, train__num_steps=100)
    object_store.upload_folder(runs / 'sampled', remote)
    assert report(f'{bucket}/run', f'--compare={runs}/run-1') == 0
    page = object_store.read_bytes(remote / 'report.html').decode()
    assert '2 configs, 2 runs' in page and 'a text' in page
