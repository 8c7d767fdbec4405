"""The products of experts: all equal a loop over the groups; the blocked one computes no more."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.kernels import experts, experts_blocked
from gpt_jax.kernels.choice import PLAIN
from gpt_jax.kernels.experts import (
    EXPERT_KERNELS,
    choose_expert_kernel,
    find_expert_kernel,
    multiply_xla,
)
from gpt_jax.kernels.experts_blocked import count_blocks, multiply_blocked
from gpt_jax.kernels.experts_vjp import with_gradients
from tests.kernels.closeness import assert_close

D, F = 6, 10
NAMES = [PLAIN, *EXPERT_KERNELS]
every_kernel = pytest.mark.parametrize('name', NAMES)
CASES = {
    'empty groups': (48, [0, 17, 0, 0, 31, 0]),
    'one expert has all rows': (48, [0, 48, 0]),
    'one expert': (37, [37]),
    'no multiples of a block': (61, [1, 9, 33, 5, 13]),
    'whole blocks': (48, [16, 8, 24]),
    'rows after the last group': (50, [7, 0, 21, 0]),
    'no groups': (20, [0, 0, 0]),
    'the array is shorter than a block': (3, [1, 2]),
    'no rows': (0, [0, 0]),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(experts_blocked, 'BLOCKS', (16, 8, 4))
    monkeypatch.setattr(experts_blocked, 'OVERHEAD', 5)


def draw(rows, sizes, *, dtype=jnp.float32, batch=()):
    """x, kernel, sizes, dy."""
    normal = np.random.default_rng(rows).standard_normal
    x, kernel, dy = (
        jnp.asarray(normal((*batch, *shape)), dtype)
        for shape in ((rows, D), (len(sizes), D, F), (rows, F))
    )
    return x, kernel, jnp.asarray(sizes, jnp.int32), dy


def value_and_gradients(multiply, x, kernel, sizes, dy):
    y, backward = jax.vjp(lambda x, kernel: multiply(x, kernel, sizes), x, kernel)
    return y, *backward(dy)


def looped(x, kernel, sizes, dy):
    """The value and the gradients in float64, group by group."""
    x, kernel, dy = (np.asarray(array, np.float64) for array in (x, kernel, dy))
    y, dx, dkernel = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    start = 0
    for expert, size in enumerate(np.asarray(sizes)):
        rows = slice(start, start + size)
        y[rows] = x[rows] @ kernel[expert]
        dx[rows] = dy[rows] @ kernel[expert].T
        dkernel[expert] = x[rows].T @ dy[rows]
        start += size
    return y, dx, dkernel


def assert_near(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        scale = max(np.abs(b).max(initial=0), 1.0)
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=tolerance * scale)


@every_kernel
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_a_loop_over_the_groups(name, case):
    arrays = draw(*case)
    run = jax.jit(functools.partial(value_and_gradients, find_expert_kernel(name)))
    assert_near(run(*arrays), looped(*arrays), 1e-5)


@every_kernel
def test_rows_after_the_last_group_are_exactly_zero(name):
    x, kernel, sizes, dy = draw(*CASES['rows after the last group'])
    y, dx, _ = value_and_gradients(find_expert_kernel(name), x, kernel, sizes, dy)
    assert (y[:28] != 0).all() and (dx[:28] != 0).all()
    assert (y[28:] == 0).all() and (dx[28:] == 0).all()


def test_ragged_rows_that_a_backend_leaves_undefined_are_zero(monkeypatch):
    """On a CPU they are zero anyway, so this puts NaN there: in results and in gradients of x."""
    ragged_dot = jax.lax.ragged_dot

    def undefined(valid, array):
        return jnp.where(valid, array, jnp.nan)

    def unchanged(_, array):
        return array

    def leave_undefined(x, kernel, sizes, **options):
        valid = jnp.arange(x.shape[0])[:, None] < sizes.sum()
        x = jax.custom_derivatives.linear_call(unchanged, undefined, valid, x)
        y = ragged_dot(x, kernel, sizes, **options)
        return jax.custom_derivatives.linear_call(undefined, unchanged, valid, y)

    monkeypatch.setattr(jax.lax, 'ragged_dot', leave_undefined)
    multiply = with_gradients(  # new functions, which jax has not traced before
        lambda *arrays: experts._ragged(*arrays), lambda *arrays: experts._ragged_gradients(*arrays)
    )
    arrays = draw(*CASES['rows after the last group'])
    assert_near(value_and_gradients(multiply, *arrays), looped(*arrays), 1e-5)


@every_kernel
def test_one_expert_is_the_plain_product(name):
    x, kernel, sizes, dy = draw(*CASES['one expert'])
    expected = value_and_gradients(lambda x, kernel, sizes: x @ kernel[0], x, kernel, sizes, dy)
    assert_close(
        value_and_gradients(find_expert_kernel(name), x, kernel, sizes, dy),
        expected,
    )


@every_kernel
def test_rounds_once_in_bfloat16(name):
    arrays = draw(*CASES['no multiples of a block'], dtype=jnp.bfloat16)
    ours = jax.jit(functools.partial(value_and_gradients, find_expert_kernel(name)))(*arrays)
    assert {array.dtype for array in ours} == {jnp.dtype(jnp.bfloat16)}
    for a, b in zip(ours, looped(*arrays), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=2**-8, atol=1e-4)


@every_kernel
def test_bfloat16_gradients_are_accumulated_in_float32(name):
    """A group's many blocks each add one; bfloat16 would stop at 256."""
    x, kernel, dy = (jnp.ones(shape, jnp.bfloat16) for shape in ((512, D), (1, D, F), (512, F)))
    multiply = find_expert_kernel(name)
    gradient = value_and_gradients(multiply, x, kernel, jnp.asarray([300], jnp.int32), dy)[2]
    assert (gradient == 300).all()


BATCH_SIZES = [[5, 0, 13, 2], [0, 0, 20, 0], [1, 2, 3, 4]]  # the last leaves ten rows out
AXES = {
    'x and sizes': (0, None, 0),
    'x': (0, None, None),
    'sizes': (None, None, 0),
    'everything': (0, 0, 0),
    'kernel': (None, 0, None),
    'another axis of x': (1, None, 0),
}


def batched(axes):
    """x, kernel, sizes, dy: batched over `axes`; and each element's own."""
    x, kernel, _, dy = draw(20, BATCH_SIZES[0], batch=(3,))
    sizes = jnp.asarray(BATCH_SIZES, jnp.int32)
    given = [
        a if axis is not None else a[0] for a, axis in zip((x, kernel, sizes), axes, strict=True)
    ]
    each = [
        [a[i] if axis is not None else a for a, axis in zip(given, axes, strict=True)]
        for i in range(3)
    ]
    given = [
        a if not axis else jnp.moveaxis(a, 0, axis) for a, axis in zip(given, axes, strict=True)
    ]
    return given, dy, each


@every_kernel
@pytest.mark.parametrize('axes', AXES.values(), ids=AXES)
def test_vmap(name, axes):
    """Values, gradients of the mapped product, and mapped gradients."""
    given, dy, each = batched(axes)
    multiply = find_expert_kernel(name)
    expected = [looped(*arrays, d) for arrays, d in zip(each, dy, strict=True)]
    mapped = jax.jit(
        jax.vmap(functools.partial(value_and_gradients, multiply), in_axes=(*axes, 0))
    )(*given, dy)
    for found, wanted in zip(mapped, zip(*expected, strict=True), strict=True):
        assert_near([found], [np.stack(wanted)], 1e-5)

    def loss(x, kernel):
        return (jax.vmap(multiply, in_axes=axes)(x, kernel, given[2]) * dy).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(*given[:2])
    for found, index in zip(gradients, (0, 1), strict=True):
        wanted = np.stack([results[1 + index] for results in expected])
        wanted = wanted.sum(0) if axes[index] is None else np.moveaxis(wanted, 0, axes[index])
        assert_near([found], [wanted], 1e-5)


@every_kernel
def test_nested_vmap(name):
    """Batches of batches, the kernel over the outer axis only."""
    x, kernel, _, _ = draw(20, BATCH_SIZES[0], batch=(2, 3))
    kernel, sizes = kernel[:, 0], jnp.asarray(BATCH_SIZES, jnp.int32)
    run = jax.vmap(jax.vmap(find_expert_kernel(name), in_axes=(0, None, 0)), in_axes=(0, 0, None))
    for outer, found in enumerate(jax.jit(run)(x, kernel, sizes)):
        for inner, y in enumerate(found):
            dy = np.zeros((20, F))
            wanted = looped(x[outer, inner], kernel[outer], sizes[inner], dy)[0]
            assert_near([y], [wanted], 1e-5)


@every_kernel
def test_scans_and_rematerialisation(name):
    """Layers are scanned and recomputed in the backward pass."""
    x, kernel, sizes, dy = draw(*CASES['no multiples of a block'])
    multiply = jax.checkpoint(find_expert_kernel(name))

    def scanned(x, kernels, sizes):
        return jax.lax.scan(lambda y, k: (y + multiply(x, k, sizes), None), 0 * dy, kernels)[0]

    stack = jnp.stack([kernel, 2 * kernel])
    y, dx, dkernels = jax.jit(functools.partial(value_and_gradients, scanned))(x, stack, sizes, dy)
    wanted_y, wanted_dx, wanted_dkernel = looped(x, kernel, sizes, dy)
    assert_near(
        (y, dx, *dkernels),
        (3 * wanted_y, 3 * wanted_dx, wanted_dkernel, wanted_dkernel),
        1e-5,
    )


# The cost of blocks


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_blocks_cover_the_groups_and_little_more(case):
    rows, sizes = case
    blocks, counts_ES = count_blocks(jnp.asarray(sizes, jnp.int32), rows)
    covered_E = (np.asarray(counts_ES) * blocks).sum(1)
    assert (covered_E >= sizes).all()
    assert (covered_E <= 1.5 * np.asarray(sizes) + blocks[-1]).all()
    assert (np.asarray(counts_ES)[np.asarray(sizes) == 0] == 0).all()


def test_a_nearly_whole_block_is_one():
    """One product of 16 rows costs less than two smaller ones of 12 in all."""
    blocks, counts_ES = count_blocks(jnp.asarray([12, 17, 8, 40], jnp.int32), 80)
    assert blocks == [16, 8, 4]
    assert counts_ES.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0], [2, 1, 0]]


@pytest.mark.parametrize('sizes', [[61], [1, 9, 33, 5, 13], [10] * 6, [0] * 60 + [61]])
def test_only_blocks_of_the_groups_are_computed(sizes, monkeypatch):
    """Counts the products that run, forward and backward, by their rows."""
    ran = []
    dot = experts_blocked._dot

    def counted(a, b, a_axis, b_axis):
        if a_axis == 1:  # not the kernel's gradient
            jax.debug.callback(lambda: ran.append(a.shape[0]))
        return dot(a, b, a_axis, b_axis)

    monkeypatch.setattr(experts_blocked, '_dot', counted)
    multiply = with_gradients(  # new functions, which jax has not traced before
        lambda *arrays: experts_blocked._product(*arrays),
        lambda *arrays: experts_blocked._gradients(*arrays),
    )
    x, kernel, sizes, dy = draw(61, sizes)
    value_and_gradients(multiply, x, kernel, sizes, dy)
    jax.effects_barrier()
    blocks, counts_ES = count_blocks(sizes, 61)
    assert sum(ran) == 2 * int((np.asarray(counts_ES) * blocks).sum())
    assert sum(ran) <= 2 * (61 + 8 * int((sizes > 0).sum()))


def test_no_product_has_all_rows():
    """Neither direction multiplies an array of T rows or stacks blocks of the gradient."""
    x, kernel, sizes, dy = (
        jax.ShapeDtypeStruct(array.shape, array.dtype) for array in draw(61, [61, 0, 0])
    )

    def products(multiply):
        run = jax.jit(functools.partial(value_and_gradients, multiply))
        text = run.lower(x, kernel, sizes, dy).as_text()
        return [line for line in text.splitlines() if 'dot_general' in line]

    assert len(products(multiply_blocked)) == 9  # three sizes of blocks, three products
    assert not [line for line in products(multiply_blocked) if '<61x' in line or 'x61x' in line]
    assert [line for line in products(multiply_xla) if '<61x' in line]


# The choice


def test_the_choice_follows_the_backend():
    chosen = {name: choose_expert_kernel('auto', backend=name) for name in ('cpu', 'gpu', 'tpu')}
    assert chosen == {'cpu': 'blocked', 'gpu': 'ragged', 'tpu': 'ragged'}
    for backend in chosen:
        assert choose_expert_kernel(PLAIN, backend=backend) == PLAIN
    key = 'config.model.execution.expert_kernel'
    with pytest.raises(UserError, match=f'{key}=ragged cannot run: the backend is cpu'):
        choose_expert_kernel('ragged', backend='cpu')
    with pytest.raises(UserError, match=f'{key}=blocked cannot run: the backend is gpu'):
        choose_expert_kernel('blocked', backend='gpu')


@pytest.mark.parametrize(('platform', 'count'), [('cuda', 3), ('tpu', 3), ('cpu', 0)])
def test_gpus_and_tpus_get_the_ragged_instruction(platform, count):
    """For the product and both of its gradients."""
    run = jax.jit(functools.partial(value_and_gradients, find_expert_kernel('ragged')))
    traced = run.trace(*draw(32, [20, 12]))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count('chlo.ragged_dot"') == count
