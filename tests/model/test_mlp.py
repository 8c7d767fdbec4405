"""Activations in bfloat16 are computed in float32, and keep their inputs alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model.mlp.activation import ACTIVATIONS, in_float32


def inputs(kind):
    draw = np.random.default_rng(0)
    return [
        jnp.asarray(draw.standard_normal(64), jnp.bfloat16)
        for _ in range(1 + ACTIVATIONS[kind].gated)
    ]


@pytest.mark.parametrize('kind', ACTIVATIONS)
def test_rounds_once(kind):
    activation, rounded = ACTIVATIONS[kind], inputs(kind)
    dy = jnp.asarray(np.random.default_rng(1).standard_normal(64), jnp.bfloat16)
    y, vjp = jax.vjp(lambda *xs: in_float32(activation, *xs), *rounded)
    exact, exact_vjp = jax.vjp(activation, *(x.astype(jnp.float32) for x in rounded))
    expected = exact, *exact_vjp(dy.astype(jnp.float32))
    for a, b in zip((y, *vjp(dy)), expected, strict=True):
        assert a.dtype == jnp.bfloat16
        assert jnp.array_equal(a, b.astype(jnp.bfloat16))


@pytest.mark.parametrize('kind', ACTIVATIONS)
def test_keeps_the_inputs_alone(kind, capsys):
    jax.ad_checkpoint.print_saved_residuals(
        lambda *xs: in_float32(ACTIVATIONS[kind], *xs).astype(jnp.float32).sum(), *inputs(kind)
    )
    kept = capsys.readouterr().out.splitlines()
    assert len(kept) == 1 + ACTIVATIONS[kind].gated
    assert all(line.startswith('bf16[64] from the argument') for line in kept)
