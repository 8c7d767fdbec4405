"""The measurements are of the real Decoder and agree with each other."""

import flax.linen as nn
import jax
import pytest

from gpt_jax.benchmark import decoding
from gpt_jax.model.gpt import init_params
from tests.model_configs import LATENT, make_config


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    monkeypatch.setattr(decoding, 'READ_BYTES', 2**20)


def test_the_bandwidth_is_that_of_a_memory():
    assert 1e8 < decoding.read_bandwidth(repeats=2) < 1e13


def test_every_byte_is_read_on_all_threads(monkeypatch):
    monkeypatch.setattr(decoding.os, 'sched_getaffinity', lambda _: {0, 1, 2, 3}, raising=False)
    read = []
    monkeypatch.setattr(
        decoding.np, 'array_split', lambda x, n: [Part(x.size / n, read) for _ in range(n)]
    )
    decoding.read_bandwidth(repeats=1)
    calls = 1 + decoding.READS  # once to touch the memory
    assert len(read) == 4 * calls
    assert 4 * sum(read) == decoding.READ_BYTES * calls


class Part:
    """A part of a matrix that notes its size when it is read."""

    def __init__(self, size, read):
        self.size, self.read = size, read

    def __matmul__(self, vector):
        assert vector.shape == (1024,)
        self.read.append(self.size)


def test_the_device_reads():
    assert decoding._read_on_device()() == 0


@pytest.mark.parametrize('tied', [True, False])
def test_measure_decoding(tied, monkeypatch):
    monkeypatch.setattr(decoding, 'read_bandwidth', lambda: 1e9)
    config = make_config(num_layers=1, tie_embeddings=tied)
    params = nn.unbox(jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)))
    rows = decoding.measure_decoding(
        config, params, batch_sizes=(1, 3), prompt_tokens=4, new_tokens=6, repeats=2
    )
    assert [row['batch_size'] for row in rows] == [1, 3]
    # A layer of d_model 32 has 12,704 numbers, the last norm 64, a table 128 x 32.
    weights = 4 * (12_704 + 64 + 128 * 32)
    for row in rows:
        cache = 2 * 32 * 4 * (4 + 3) * row['batch_size']
        assert row['floor_ms_per_token'] == pytest.approx((weights + cache) / 1e6)
        assert row['fraction_of_floor'] == pytest.approx(
            row['floor_ms_per_token'] / row['ms_per_token']
        )
        assert row['decode_tokens_per_second'] == pytest.approx(
            1e3 * row['batch_size'] / row['ms_per_token']
        )
        assert row['cache_bytes_per_token'] == 2 * 32 * 4
        assert 'grouped_query_cache_bytes_per_token' not in row
        assert row['compile_seconds'] > 0 and row['prefill_tokens_per_second'] > 0


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_cache_of_latent_attention_beside_that_of_grouped_query(dtype, monkeypatch):
    monkeypatch.setattr(decoding, 'read_bandwidth', lambda: 1e9)
    config = make_config(num_layers=2, attention=LATENT, compute_dtype=dtype)
    params = nn.unbox(jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)))
    [row] = decoding.measure_decoding(
        config, params, batch_sizes=(1,), prompt_tokens=4, new_tokens=6, repeats=1
    )
    # In float32, in which CPUs decode whatever the config says.
    assert row['cache_bytes_per_token'] == 2 * (12 + 4) * 4
    assert row['grouped_query_cache_bytes_per_token'] == 2 * 2 * 32 * 4


def test_one_new_token_is_refused():
    with pytest.raises(ValueError, match='new_tokens=1'):
        decoding.measure_decoding(
            make_config(), {}, batch_sizes=(1,), prompt_tokens=1, new_tokens=1, repeats=1
        )
