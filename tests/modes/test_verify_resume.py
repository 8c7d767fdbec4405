"""The certificate of an exact resume: given where it is deserved, and refused where not."""

import copy
import json

import pytest

from gpt_jax import object_store
from gpt_jax.main import main
from gpt_jax.modes import verify_resume
from gpt_jax.modes.verify_resume import Trained
from tests.command_line import TINY


@pytest.mark.slow
def test_certificate(tmp_path, capsys):
    arguments = [f'--config={TINY}', f'--workdir={tmp_path}', '--mode=verify_resume']
    assert main([*arguments, '--config.mesh.data=2']) == 0
    assert 'equals the undisturbed one, bit for bit' in capsys.readouterr().out
    certificate = json.loads((tmp_path / 'verify_resume.json').read_text())
    assert certificate['exact'] and certificate['arrays'] > 20
    assert certificate['state_undisturbed'] == certificate['state_resumed']
    assert certificate['resumed_at_step'] == 10 <= certificate['killed_at_step'] <= 20
    assert '2 x cpu' in certificate['devices'] and certificate['mesh'] == 'data=2'
    assert certificate['other_mesh'] == 'fsdp=2'
    assert certificate['other_mesh_largest_relative_difference_of_metrics'] <= 1e-5
    assert not (tmp_path / 'verify_resume').exists(), 'the runs are removed'


@pytest.mark.slow
def test_certificate_of_a_workdir_in_a_bucket(s3, capsys, monkeypatch):
    """Cut at its first checkpoint, not killed: that is above, and in test_remote_workdir."""

    def train(config, workdir) -> str:
        capsys.readouterr()
        command = verify_resume._command(config, workdir)
        assert main(command[command.index('gpt_jax.main') + 1 :]) == 0
        return capsys.readouterr().out

    def train_killed(config, workdir, *, steps: int) -> int:
        config = copy.deepcopy(config)
        config.train.num_steps = steps // 2
        train(config, workdir)
        return steps // 2

    monkeypatch.setattr(verify_resume, '_train', train)
    monkeypatch.setattr(verify_resume, '_train_killed', train_killed)
    arguments = [f'--config={TINY}:sgd', f'--workdir={s3}/run', '--mode=verify_resume']
    arguments += ['--verify_steps=8', '--config.mesh.data=2', '--config.schedule.kind=constant']
    arguments += ['--config.model.num_layers=1', '--config.train.grad_accumulation=1']
    assert main(arguments) == 0
    assert 'equals the undisturbed one, bit for bit' in capsys.readouterr().out
    workdir = object_store.to_path(f'{s3}/run', key='--workdir')
    certificate = json.loads((workdir / 'verify_resume.json').read_text())
    assert certificate['exact'] and certificate['other_mesh'] == 'fsdp=2'
    assert certificate['resumed_at_step'] == 4
    assert object_store.list_objects(workdir) == ['verify_resume.json']


METRICS = {(1, 'train/loss'): 4.0, (2, 'train/loss'): 3.0}
LEAVES = {'params/a': 1, 'params/b': 2}


def test_differences_are_found():
    same = Trained(METRICS, LEAVES)
    assert verify_resume._compare(same, Trained(dict(METRICS), dict(LEAVES)))['exact']
    other = verify_resume._compare(same, Trained(METRICS, LEAVES | {'params/b': 3}))
    assert not other['exact'] and other['arrays_that_differ'] == ['params/b']
    assert other['state_undisturbed'] != other['state_resumed']
    drifted = verify_resume._compare(same, Trained(METRICS | {(2, 'train/loss'): 3.03}, LEAVES))
    assert not drifted['exact']
    assert drifted['largest_relative_difference_of_metrics'] == pytest.approx(0.01)


def test_differences_are_reported(tmp_path, capsys, monkeypatch):
    """A resumed run with other numbers, as on a GPU that does not repeat itself."""
    trained = iter([Trained(METRICS, LEAVES), Trained(METRICS, LEAVES | {'params/a': 7})])
    monkeypatch.setattr(verify_resume, '_train', lambda *_: 'resuming at step 10\n')
    monkeypatch.setattr(verify_resume, '_train_killed', lambda *_, **__: 12)
    monkeypatch.setattr(verify_resume.shutil, 'copytree', lambda *_: None)
    monkeypatch.setattr(verify_resume, '_read', lambda *_: next(trained))
    arguments = [f'--config={TINY}', f'--workdir={tmp_path}', '--mode=verify_resume']
    assert main(arguments) == verify_resume.DIFFERENT
    output = capsys.readouterr().out
    assert '2, of which 1 differ' in output and 'config.train.deterministic' in output
