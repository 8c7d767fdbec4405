"""The files of `launch/`: scripts, manifest, and commands that this version understands."""

import os
import pathlib
import re
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml

from gpt_jax.config import finalize, load_config
from gpt_jax.config_tree import check_key
from gpt_jax.modes import MODES
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.train.program import make_program

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / 'launch'
SCRIPTS = [*sorted(LAUNCH.glob('*/*.sh')), LAUNCH / 'slurm' / 'train.sbatch']
PAGES = sorted(LAUNCH.rglob('*.md'))
MANIFEST = LAUNCH / 'gke' / 'jobset.yaml'

# JobSet's own fields, of jobset.x-k8s.io/v1alpha2; the Job inside has Kubernetes' schema. The
# whole manifest was checked once against the CRD of JobSet's repository.
JOBSET = {
    'type': 'object',
    'required': ['apiVersion', 'kind', 'metadata', 'spec'],
    'properties': {
        'apiVersion': {'const': 'jobset.x-k8s.io/v1alpha2'},
        'kind': {'const': 'JobSet'},
        'metadata': {
            'required': ['name'],
            'properties': {'name': {'pattern': '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$'}},
        },
        'spec': {
            'type': 'object',
            'required': ['replicatedJobs'],
            'additionalProperties': False,
            'properties': {
                'failurePolicy': {
                    'additionalProperties': False,
                    'properties': {
                        'maxRestarts': {'type': 'integer', 'minimum': 0},
                        'rules': {
                            'items': {
                                'required': ['name', 'action'],
                                'additionalProperties': False,
                                'properties': {
                                    'name': {'pattern': '^[A-Za-z][A-Za-z0-9_,:-]*$'},
                                    'action': {
                                        'enum': [
                                            'FailJobSet',
                                            'RestartJobSet',
                                            'RestartJobSetAndIgnoreMaxRestarts',
                                        ]
                                    },
                                    'onJobFailureReasons': {
                                        'items': {
                                            'enum': [
                                                'BackoffLimitExceeded',
                                                'DeadlineExceeded',
                                                'FailedIndexes',
                                                'MaxFailedIndexesExceeded',
                                                'PodFailurePolicy',
                                            ]
                                        }
                                    },
                                },
                            }
                        },
                    },
                },
                'replicatedJobs': {
                    'type': 'array',
                    'minItems': 1,
                    'items': {
                        'required': ['name', 'template'],
                        'additionalProperties': False,
                        'properties': {
                            'name': {'pattern': '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$'},
                            'replicas': {'type': 'integer', 'minimum': 1},
                            'template': {'required': ['spec']},
                        },
                    },
                },
            },
        },
    },
}


def relative(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize('path', SCRIPTS, ids=relative)
def test_shellcheck(path):
    program = pathlib.Path(sys.executable).parent / 'shellcheck'
    result = subprocess.run([program, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert os.access(path, os.X_OK)


def manifest() -> dict:
    return yaml.safe_load(MANIFEST.read_text())


def test_the_manifest_is_a_jobset_of_valid_jobs():
    document = manifest()
    jsonschema.validate(document, JOBSET)
    for job in document['spec']['replicatedJobs']:
        spec = job['template']['spec']
        kubernetes_validate.validate(
            {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'a'}, 'spec': spec},
            '1.37',
            strict=True,
        )
        selector = spec['template']['spec']['nodeSelector']
        rows, columns = map(int, selector['cloud.google.com/gke-tpu-topology'].split('x'))
        [container] = spec['template']['spec']['containers']
        chips = container['resources']['limits']['google.com/tpu']
        assert spec['completions'] == spec['parallelism'] == rows * columns / chips


def commands() -> list[tuple[str, list[str]]]:
    """Every command of `launch/`, with the place where it stands."""
    found = []
    for path in [*SCRIPTS, *PAGES]:
        text = re.sub(r'\\\n|\n  ', ' ', path.read_text())
        for command in re.findall(r'python -m gpt_jax\.main ((?:[^\n`&\\]|\\(?!$))*)', text):
            found.append((relative(path), command.replace('"', ' ').split()))
    [container] = manifest()['spec']['replicatedJobs'][0]['template']['spec']['template']['spec'][
        'containers'
    ]
    assert container['command'][:3] == ['python', '-m', 'gpt_jax.main']
    found.append((relative(MANIFEST), container['command'][3:]))
    return found


COMMANDS = commands()


def test_every_place_has_a_command():
    assert {place.split('/')[1] for place, _ in COMMANDS} >= {
        *('tpu_vm', 'gke', 'slurm', 'multi_gpu'),
        'README.md',
    }


@pytest.mark.parametrize('place, words', COMMANDS, ids=[place for place, _ in COMMANDS])
def test_commands_name_a_config_a_mode_and_keys_that_exist(place, words):
    options = {}
    for word, following in zip(words, [*words[1:], ''], strict=True):
        name, given, value = word.partition('=')
        if name.startswith('--'):
            options[name[2:]] = value if given else following
    config = load_config(str(ROOT / options['config']))
    assert options.get('mode', 'train') in MODES
    for name in options:
        if name.startswith('config.'):
            check_key(config, name.removeprefix('config.'))


@pytest.mark.parametrize('place, words', COMMANDS, ids=[place for place, _ in COMMANDS])
def test_the_batch_divides_over_the_devices_of_the_command(place, words):
    """On 8 CPU devices; a mesh for 16 is checked with half of its fsdp axis."""
    config = load_config(str(ROOT / 'configs' / 'gpt2.py:1558m'))
    for word in words:
        if match := re.fullmatch(r'--config\.(mesh\.\w+|train\.grad_accumulation)=(-?\d+)', word):
            branch, name = match[1].split('.')
            size = int(match[2]) if branch == 'train' else min(8, int(match[2]))
            setattr(getattr(config, branch), name, size)
    make_program(finalize(config, vocab_size=50257), make_mesh(config.mesh))


def stub(folder: pathlib.Path, name: str, body: str) -> None:
    """A program in `folder` that notes its arguments in `folder/calls`."""
    path = folder / name
    path.write_text(f'#!/bin/bash\necho "{name} $*" >> "{folder}/calls"\n{body}\n')
    path.chmod(0o755)


def launch(folder: pathlib.Path, script: str, *arguments: str, **environment: str):
    """Runs a script where `folder` holds what it calls; the calls and the exit status."""
    path = f'{folder}:{os.environ["PATH"]}'
    status = subprocess.run(
        [LAUNCH / script, *arguments],
        cwd=folder,
        env=os.environ | {'PATH': path} | environment,
        capture_output=True,
        timeout=60,
    ).returncode
    return (folder / 'calls').read_text().splitlines(), status


@pytest.mark.parametrize('ends, calls', [([75, 75, 0], 3), ([2], 1), ([130], 1)])
def test_one_machine_starts_again_only_what_is_unfinished(tmp_path, ends, calls):
    codes = ' '.join(map(str, ends))
    stub(tmp_path, 'python', f'set -- {codes}; n=$(wc -l < calls); exit "${{!n}}"')
    paths = {'DATA': 'a', 'TOKENIZER': 'b'}
    made, status = launch(tmp_path, 'multi_gpu/run.sh', '--fresh', '--config.seed=7', **paths)
    assert (len(made), status) == (calls, ends[-1])
    assert all(call.endswith('--config.seed=7') for call in made)
    assert [' --fresh ' in call for call in made] == [True] + [False] * (calls - 1)


@pytest.mark.parametrize('end, again', [(75, True), (0, False), (2, False)])
def test_slurm_requeues_only_what_is_unfinished(tmp_path, end, again):
    stub(tmp_path, 'srun', f'exit {end}')
    stub(tmp_path, 'scontrol', '')
    job = {'SLURM_JOB_ID': '7', 'SLURM_NNODES': '2'}
    made, status = launch(tmp_path, 'slurm/train.sbatch', **job)
    assert status == end
    assert '--config.mesh.data=2' in made[0] and '--cpus-per-task=8' in made[0]
    assert made[1:] == (['scontrol requeue 7'] if again else [])


@pytest.mark.parametrize('verb', ['create', 'install', 'train', 'log', 'stop', 'delete'])
def test_a_tpu_slice_gets_every_verb(tmp_path, verb):
    stub(tmp_path, 'gcloud', '')
    made, status = launch(tmp_path, 'tpu_vm/run.sh', verb, SPOT='1', ZONE='here')
    assert status == 0
    assert made[0].startswith('gcloud compute tpus tpu-vm') and '--zone here' in made[0]
    everywhere = verb in ('install', 'train', 'stop')
    assert ('--worker=all' in made[0]) == everywhere
    assert (' --spot' in made[0]) == (verb == 'create')
    page = (LAUNCH / 'tpu_vm' / 'README.md').read_text()
    assert f'run.sh {verb} ' in page
