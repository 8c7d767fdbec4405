"""XLA's options: what a backend gets; what the user said stands; XLA knows every one."""

import jax
import jax.numpy as jnp
import pytest

from gpt_jax.parallel.compiler_options import (
    BFLOAT16_PRODUCTS,
    DETERMINISTIC,
    ONCE,
    OPTIONS,
    TRACED,
    compiler_options,
)


def test_the_user_is_never_overruled(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '--xla_gpu_enable_triton_gemm=true --xla_dump_to=/x')
    options = compiler_options('gpu', deterministic=False)
    assert options == {
        name: value
        for name, value in OPTIONS['gpu'].items()
        if name != 'xla_gpu_enable_triton_gemm'
    }


def test_only_a_gpu_needs_options_to_repeat():
    assert compiler_options('cpu', deterministic=True) == OPTIONS['cpu']
    gained = compiler_options('gpu', deterministic=True).keys() - OPTIONS['gpu'].keys()
    assert gained == DETERMINISTIC['gpu'].keys()


TABLES = {
    'options': OPTIONS,
    'products': BFLOAT16_PRODUCTS,
    'deterministic': DETERMINISTIC,
    'once': ONCE,
    'traced': TRACED,
}


@pytest.mark.parametrize('table', TABLES.values(), ids=TABLES)
def test_xla_knows_every_option(table):
    for options in table.values():
        jax.jit(jnp.sin, compiler_options=options)(1.0)
    with pytest.raises(Exception, match='xla_gpu_no_such_option'):
        jax.jit(jnp.cos, compiler_options={'xla_gpu_no_such_option': True})(1.0)
