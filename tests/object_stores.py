"""Servers that stand for S3 and Google Cloud Storage, in threads of the test process.

Commands that tests start find them through the environment, as the real ones are found.
"""

import itertools
import logging
import os
import socket
from collections.abc import Iterator

import fsspec
import pytest

_numbers = itertools.count(1)


@pytest.fixture(scope='session')
def s3_environment() -> Iterator[dict[str, str]]:
    """Returns the environment in which clients find a local S3."""
    from moto.server import ThreadedMotoServer

    logging.getLogger('werkzeug').setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        'AWS_ENDPOINT_URL': f'http://{host}:{port}',
        'AWS_ACCESS_KEY_ID': 'testing',
        'AWS_SECRET_ACCESS_KEY': 'testing',
        'AWS_DEFAULT_REGION': 'us-east-1',
    }
    server.stop()


@pytest.fixture(scope='session')
def gs_environment() -> Iterator[dict[str, str]]:
    """Returns the environment in which clients find a local Google Cloud Storage."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
    server = create_server('127.0.0.1', port, in_memory=True)
    server.start()
    yield {
        'STORAGE_EMULATOR_HOST': f'http://127.0.0.1:{port}',
        'TENSORSTORE_GCS_HTTP_URL': f'http://127.0.0.1:{port}',
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # it asks Google what kind a bucket is
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'testing',
    }
    server.stop()


@pytest.fixture
def s3(s3_environment, monkeypatch) -> str:
    """A new bucket, as s3://NAME."""
    return _make_bucket('s3', s3_environment, monkeypatch)


@pytest.fixture
def gs(gs_environment, monkeypatch) -> str:
    """A new bucket, as gs://NAME."""
    return _make_bucket('gs', gs_environment, monkeypatch)


@pytest.fixture(params=['s3', 'gs'])
def bucket(request) -> str:
    """A new bucket of each kind of store."""
    return request.getfixturevalue(request.param)


def _make_bucket(scheme: str, environment: dict[str, str], monkeypatch) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    name = f'bucket-{os.getpid()}-{next(_numbers)}'
    fsspec.filesystem(scheme, use_listings_cache=False).mkdir(name)
    return f'{scheme}://{name}'
