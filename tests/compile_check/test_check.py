"""The mode as a user types it, with the TPU compiler and without a TPU."""

import importlib.util
import json
import pathlib
import types
import uuid

import jax
import pytest

from gpt_jax.compile_check.check import _kept_out_of_the_cache, _refused, _usage
from gpt_jax.main import main
from gpt_jax.train.memory import MemoryPlan

CONFIG = str(pathlib.Path(__file__).parent / 'described_config.py')
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='libtpu is absent: requirements-tpu.txt'
)


def _check(tmp_path, *arguments: str) -> tuple[int, dict]:
    out = tmp_path / 'out.json'
    status = main([f'--config={CONFIG}', '--mode=compile_check', f'--check_out={out}', *arguments])
    return status, json.loads(out.read_text()) if out.exists() else {}


@needs_libtpu
@pytest.mark.slow
def test_a_step_that_fits(tmp_path, capsys):
    status, report = _check(tmp_path, '--topology=v5e:2x2', '--config.mesh.fsdp=2')
    printed = capsys.readouterr().out
    assert status == 0
    assert report['fits'] and report['device_kind'] == 'TPU v5 lite'
    assert report['device_count'] == 4
    parts = ('parameters', 'optimizer_state', 'gradients', 'logits', 'activations', 'code')
    assert sum(report[part] for part in parts) == pytest.approx(report['peak_bytes'], rel=0.01)
    assert report['peak_bytes'] < report['limit_bytes']
    assert 2e5 < report['parameters'] < report['peak_bytes'] < 2e7
    kinds = {each['kind']: each['sent_bytes'] for each in report['traffic']['traffic']}
    assert sum(kinds.values()) > report['parameters'] / 2
    assert report['traffic']['unknown_loops'] == 0
    roofline = report['roofline']
    assert 0 < roofline['mfu'] < 1
    assert roofline['step_seconds'] <= roofline['serial_seconds']
    assert roofline['tokens_per_second'] == pytest.approx(4 * 128 / roofline['step_seconds'])
    assert 'attention splash, norm xla' in printed and 'verdict          fits: ' in printed
    assert 'Nothing ran; a real step is slower' in printed
    assert not report['attempts']


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_made_to_fit_and_compiled(tmp_path, capsys):
    """2 G parameters do not fit a chip of 16 GiB with their moments; in four parts they do."""
    status, report = _check(
        tmp_path,
        '--topology=v5e:2x2',
        '--check_tries=1',
        '--config.model.num_layers=512',
        '--config.model.d_model=512',
        '--config.model.num_heads=4',
        '--config.model.d_ff=3072',
    )
    printed = capsys.readouterr().out
    assert status == 2
    assert not report['fits']
    assert report['peak_bytes'] > report['limit_bytes'] > 15 * 2**30
    assert 'RESOURCE_EXHAUSTED' in report['message'] and 'DOES NOT FIT' in printed
    [attempt] = report['attempts']
    assert attempt['overrides']['mesh.fsdp'] == 4
    assert attempt['check']['fits']
    assert attempt['check']['peak_bytes'] < report['limit_bytes']
    assert '--config.mesh.data=1 --config.mesh.fsdp=4' in printed.split('these fit')[1]


@pytest.mark.parametrize(
    'arguments, words',
    [
        ([], '--mode compile_check needs --topology: v5e:4x4'),
        (['--topology=v5e'], "--topology='v5e' is not a topology"),
    ],
)
def test_a_wrong_topology_is_one_line(tmp_path, capsys, arguments, words):
    assert _check(tmp_path, *arguments) == (2, {})
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_what_no_device_here_can_read_stays_out_of_the_compilation_cache():
    def kept(name: str) -> bool:
        def add_one(x):
            return x + 1

        add_one.__name__ = name
        jax.jit(add_one).lower(1.0).compile()
        return bool(list(pathlib.Path(jax.config.jax_compilation_cache_dir).glob(f'jit_{name}-*')))

    name = f'probe_{uuid.uuid4().hex}'
    with _kept_out_of_the_cache():
        assert not kept(name + 'a')
    assert kept(name + 'b')


@pytest.mark.parametrize(
    'platform, temporaries, total', [('tpu', 20, 16), ('tpu', 8, 11), ('gpu', 20, 23)]
)
def test_a_step_that_a_tpu_compiler_accepts_is_not_larger_than_the_memory(
    platform, temporaries, total
):
    sizes = dict(argument=2, output=3, alias=3, temp=temporaries, generated_code=1)
    memory = types.SimpleNamespace(**{f'{k}_size_in_bytes': v for k, v in sizes.items()})
    assert sum(_usage(memory, platform, 16)) == total


GIB = 2**30
PLAN = MemoryPlan(
    parameters=GIB, optimizer_state=2 * GIB, gradients=GIB, logits=GIB, activations=5 * GIB
)


@pytest.mark.parametrize(
    'message, peak, limit',
    [
        (
            'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
            'temporaries (17.50G) exceeds available HBM (15.75G).',
            20.5,
            15.75,
        ),
        (
            'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory '
            'space hbm. Used 18.91G of 15.48G hbm. Exceeded hbm capacity by 3.43G.',
            18.91,
            15.48,
        ),
        ('RESOURCE_EXHAUSTED: something else', None, 16),
    ],
)
def test_what_xla_says_when_it_refuses(message, peak, limit):
    check = _refused(message, PLAN, 16 * GIB, 1.0)
    assert not check.fits
    assert check.peak_bytes == (None if peak is None else pytest.approx(peak * GIB))
    assert check.limit_bytes == pytest.approx(limit * GIB)
    if peak is not None:
        assert check.activations == pytest.approx((peak - 5) * GIB)
