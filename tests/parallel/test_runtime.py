import os
import pathlib
import subprocess
import sys

import pytest

from gpt_jax import main
from gpt_jax.errors import UserError
from gpt_jax.parallel import runtime
from tests.command_line import ROOT, TINY


def failure_of(platform: str) -> str:
    """The line for a machine without the platform's devices."""
    code = (
        'import jax; from gpt_jax.parallel import runtime\n'
        'try: jax.devices()\n'
        'except Exception as error: print(runtime.explain(error))'
    )
    result = subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env=os.environ | {'JAX_PLATFORMS': platform},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize('platform', ['cuda', 'rocm'])
def test_a_platform_without_devices_is_one_line(platform):
    if platform == 'cuda' and pathlib.Path('/dev/nvidiactl').exists():
        pytest.skip('this machine has a GPU')
    line = failure_of(platform)
    assert line.startswith(f'JAX_PLATFORMS={platform}: ') and line.count('\n') == 1
    assert 'set JAX_PLATFORMS=cpu' in line


@pytest.mark.parametrize(('limit', 'status'), [('-n 32', 2), ('-Sn 32', 0)])
def test_a_low_limit_of_open_files_is_raised_or_one_line(limit, status):
    command = f'ulimit {limit}; exec "$@"'
    program = (
        'from gpt_jax.parallel.runtime import allow_open_files; import resource\n'
        'allow_open_files(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])'
    )
    process = subprocess.run(
        ['bash', '-c', command, 'bash', sys.executable, '-c', program],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if status:
        assert 'UserError: this process may open 32 files and needs 128' in process.stderr
    else:
        assert int(process.stdout) >= runtime.OPEN_FILES


def test_other_errors_are_not_explained():
    assert not runtime.explain(AssertionError())
    assert not runtime.explain(RuntimeError('shapes'))


def test_a_user_without_home_is_told_in_one_line(monkeypatch, capsys):
    def no_home():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(pathlib.Path, 'home', no_home)
    assert main.main([f'--config={TINY}', '--mode=prepare', '--config.data.cache_dir=']) == 2
    assert 'set HOME to a folder' in capsys.readouterr().err


@pytest.mark.parametrize(
    'flags, expected', [('--xla_nope=1', 'does not know --xla_nope=1'), ('/no/file', '/no/file')]
)
def test_flags_that_xla_cannot_read(flags, expected, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', flags)
    monkeypatch.setattr(runtime.xla_bridge, 'backends_are_initialized', lambda: False)
    with pytest.raises(UserError, match=expected) as raised:
        runtime.check_xla_flags()
    assert '\n' not in str(raised.value)
    monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=2')
    runtime.check_xla_flags()


@pytest.mark.parametrize('chips', [0, 4])
def test_libtpu_is_answered_only_where_no_tpu_is(chips, monkeypatch):
    monkeypatch.setattr(
        runtime.hardware_utils, 'num_available_tpu_chips_and_device_id', lambda: (chips, None)
    )
    monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'mine')
    monkeypatch.delenv('TPU_ACCELERATOR_TYPE', raising=False)
    monkeypatch.setattr(os, 'environ', dict(os.environ))
    runtime.initialize(runtime.RuntimeConfig(compilation_cache=False))
    assert ('TPU_ACCELERATOR_TYPE' in os.environ) == (chips == 0)
    assert os.environ['TPU_WORKER_HOSTNAMES'] == 'mine', "the user's own is kept"
