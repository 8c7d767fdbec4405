"""Several processes do what one does: the same evaluation and text; who differs is named."""

import json
import pathlib
import re
import subprocess

import pytest

from gpt_jax.main import main
from tests.command_line import rows, run
from tests.pod import ARGUMENTS, Pod, assert_same_numbers, run_pod


@pytest.fixture(scope='module')
def single(tmp_path_factory) -> pathlib.Path:
    """A run of one process with four devices."""
    workdir = tmp_path_factory.mktemp('single') / 'run'
    arguments = [*ARGUMENTS, '--config.mesh.data=4', '--config.train.num_steps=4']
    assert main([*arguments, f'--workdir={workdir}']) == 0
    return workdir


@pytest.mark.slow
def test_evaluate_and_generate(single, capfd):
    def ask(*mode: str) -> str:
        capfd.readouterr()
        assert main([*mode, f'--workdir={single}']) == 0
        return capfd.readouterr().out

    def ask_pod(*mode: str) -> str:
        output = run_pod('2x2', *mode, f'--workdir={single}')
        assert not re.search(r'^\[1\]', output, re.MULTILINE)
        return ''.join(line.removeprefix('[0] ') for line in output.splitlines(keepends=True))

    evaluate = ('--mode=evaluate', '--config.mesh.data=4', '--config.eval.batch_size=8')
    assert 'loss' in ask(*evaluate)
    alone = json.loads((single / 'eval.json').read_text())
    (single / 'eval.json').unlink()
    ask_pod(*evaluate)
    together = json.loads((single / 'eval.json').read_text())
    assert together['tokens'] == alone['tokens']
    assert together['loss'] == pytest.approx(alone['loss'], rel=1e-5)
    generate = ('--mode=generate', '--prompt=Alice', '--max_new_tokens=8', '--temperature=0')
    assert ask(*generate) in ask_pod(*generate)


@pytest.mark.slow
def test_texts_of_weights_that_no_process_has_whole(single, tmp_path):
    """Samples of a run whose weights are split over processes, and `generate` on such a mesh."""
    split = ('--config.mesh.data=1', '--config.mesh.fsdp=2', '--config.mesh.tensor=2')
    arguments = [*ARGUMENTS, *split, '--config.train.num_steps=4', '--config.sample.every=2']
    arguments.append('--config.sample.at_end=True')
    workdir = f'--workdir={tmp_path / "run"}'
    output = run_pod('2x2', *arguments, workdir)
    samples = re.findall(r'--- sample at step (\d+)\n(.*?)\n\[0\] ---', output, re.DOTALL)
    assert [step for step, _ in samples] == ['2', '4']
    assert not re.search(r'^\[1\]', output, re.MULTILINE)

    generate = ('--mode=generate', '--prompt=Alice', '--max_new_tokens=40', '--num_samples=3')
    generate = (*generate, f'--workdir={single}')
    alone = run(*generate, stderr=subprocess.PIPE)
    alone = alone[alone.index('--- sample 1') : alone.index(f'({single}')]
    assert len(alone) > 100
    together = run_pod('2x2', *generate, *split)
    assert alone in ''.join(line.removeprefix('[0] ') for line in together.splitlines(True))
    refused = run(*generate, '--config.mesh.fsdp=3', status=2)
    assert 'config.mesh' in refused and '3' in refused
    # Here its mesh does not fit, and nobody asked for it.
    assert '--- sample 1\nAlice' in run(*generate, workdir)


@pytest.mark.slow
def test_pmap_over_two_processes(single, tmp_path):
    workdir = tmp_path / 'run'
    arguments = [*ARGUMENTS, '--config.mesh.program=pmap', '--config.train.num_steps=4']
    output = run_pod('2x2', *arguments, f'--workdir={workdir}')
    assert 'data=4, pmap' in output
    assert_same_numbers(rows(workdir), rows(single))


@pytest.mark.slow
def test_experts_of_two_processes(tmp_path):
    mlp = ('--config.model.mlp=mixture_of_experts', '--config.model.mlp.d_expert=32')
    arguments = [*ARGUMENTS, *mlp, '--config.train.num_steps=2']
    alone, together = tmp_path / 'alone', tmp_path / 'together'
    assert main([*arguments, '--config.mesh.data=4', f'--workdir={alone}']) == 0
    split = ('--config.mesh.data=1', '--config.mesh.expert=4', f'--workdir={together}')
    assert 'expert=4' in run_pod('2x2', *arguments, *split)
    assert_same_numbers(rows(together), rows(alone))
    assert rows(together)[0]['train/expert_dropped'] == 0


@pytest.mark.slow
def test_the_odd_process_is_named(tmp_path):
    """Three processes, one with another learning rate: all refuse and say which."""
    each = [[], [], ['--config.optimizer.learning_rate=1e-4']]
    with Pod(3, 1, *ARGUMENTS, f'--workdir={tmp_path / "run"}', each=each) as pod:
        assert pod.wait() == [2, 2, 2]
        for index in range(3):
            assert (
                f'error: process {index}: the processes differ in their config: process 2 has'
                in (pod.output(index))
            )
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_each_file_system_prepares_its_data_once(tmp_path):
    """Processes 0 and 1 share a cache folder, 2 has its own."""
    environments = [{'XDG_CACHE_HOME': str(tmp_path / name)} for name in ('a', 'a', 'b')]
    with Pod(3, 1, *ARGUMENTS, '--mode=prepare', environments=environments) as pod:
        assert pod.wait() == [0, 0, 0], '\n'.join(map(pod.output, range(3)))
        assert 'validation' in pod.output(0)
        assert pod.output(1) == pod.output(2) == ''
    for name in 'ab':
        assert len(list((tmp_path / name).rglob('manifest.json'))) == 1
        assert not list((tmp_path / name).rglob('.*process-*')), 'traces of the search for leaders'


@pytest.mark.slow
def test_doctor(tmp_path):
    output = run(
        *ARGUMENTS, '--mode=doctor', f'--workdir={tmp_path / "run"}', '--local_pod=2x2',
        '--doctor_megabytes=1',
    )  # fmt: skip
    for line in ('processes +2, with the same', 'process 1 .*2 devices', 'all-gather +[0-9.]+ GB'):
        assert re.search(rf'^\[0\]   {line}', output, re.MULTILINE), output
    assert not (tmp_path / 'run').exists(), 'the doctor leaves nothing'
    assert 'Gloo' not in output, 'what libraries print is not ours'


def test_a_mesh_that_leaves_a_process_without_work(tmp_path):
    arguments = [*ARGUMENTS, '--config.mesh.data=2', f'--workdir={tmp_path / "run"}']
    output = run(*arguments, '--local_pod=2x2', '--mode=doctor', status=2)
    assert 'leaves 2 of the 4 devices idle' in output
