"""Settings that must stand before jax starts, and the fixtures that every test may use.

jax is not imported here: tests of tokenizers and files then start in a moment. Everything is
an environment variable, so that the commands that tests start inherit it.
"""

import importlib.metadata
import itertools
import os
import pathlib
import sys

import pytest

from tests.chromium import browse, browser, opened, visit  # noqa: F401
from tests.object_stores import bucket, gs, gs_environment, s3, s3_environment  # noqa: F401

ROOT = pathlib.Path(__file__).parents[1]
DEVICES = 8

_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
# Hundreds of small programs should compile quickly, not run quickly: XLA still optimises them,
# only LLVM does not, and it takes one module at a time.
_QUICK = ['--xla_backend_optimization_level=0', '--xla_cpu_parallel_codegen_split_count=1']
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    # The older of the two code generators that it has takes half of the time. Newer versions,
    # and every run of a user, have the newer one.
    _QUICK += ['--xla_cpu_use_fusion_emitters=false']
_OTHER_FLAGS = [
    flag
    for flag in os.environ.get('XLA_FLAGS', '').split()
    if not flag.startswith('--xla_force_host_platform_device_count')
]

if 'jax' in sys.modules:
    raise pytest.UsageError('jax was imported before tests/conftest.py could configure it')

os.environ.update(
    JAX_PLATFORMS='cpu',
    XLA_FLAGS=' '.join(
        [*_QUICK, *_OTHER_FLAGS, f'--xla_force_host_platform_device_count={DEVICES}']
    ),
    JAX_NUMPY_RANK_PROMOTION='raise',
    # Compiled programs are kept between runs, all of them: most tests are mostly compilation.
    JAX_COMPILATION_CACHE_DIR=str(_CACHE / 'gpt_jax' / 'tests'),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1',
)


def pytest_addoption(parser):
    parser.addoption(
        '--exhaustive', action='store_true', help='also run the full products of the tables'
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption('--exhaustive'):
        return
    exhaustive = [item for item in items if item.get_closest_marker('exhaustive')]
    if exhaustive:
        config.hook.pytest_deselected(items=exhaustive)
        items[:] = [item for item in items if item not in set(exhaustive)]


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
    """The folder of real corpora, tokenizers and weights beside the repository."""
    folder = ROOT.parent / 'shared' / 'data'
    if not folder.is_dir():
        pytest.skip('the folder shared/data beside the repository is absent')
    return folder


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def forget_compiled_programs():
    """Frees compiled programs now and then: each maps memory, of which Linux allows 65,530 pieces.

    Beyond that a process dies inside XLA. Long before, two processes fill a machine of 24 GB.
    """
    yield
    if next(_tests) % 16:  # counting takes as long as a small test
        return
    maps = pathlib.Path('/proc/self/maps')
    if 'jax' in sys.modules and maps.exists() and maps.read_bytes().count(b'\n') > 8_000:
        sys.modules['jax'].clear_caches()
