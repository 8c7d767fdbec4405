"""LayerNorm and RMSNorm in one pass forward and one backward: Pallas kernels for NVIDIA GPUs.

XLA makes three passes for the backward computation and keeps a float32 array between them. Here
each program of the backward kernel reads its rows once. It writes the gradient of each row plus
that of the residual stream, and accumulates a partial gradient of scale and bias. XLA sums these
over the programs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from gpt_jax.kernels.shard_map import mesh_axes, shard_map

TILE = 4096  # elements of each array that a program holds at once
ROWS_PER_PROGRAM = 64  # of the backward kernel
WARPS = 8


class _Options(NamedTuple):
    epsilon: float
    centred: bool
    interpret: bool


def normalize_triton(
    x: Float[Array, '... D'],
    scale_D: Float[Array, 'D'],
    bias_D: Float[Array, 'D'] | None,
    *,
    epsilon: float,
    centred: bool,
    interpret: bool = False,
) -> tuple[Float[Array, '... D'], Float[Array, '... D']]:
    """Normalizes like `model.norm.normalize`; each device computes its own rows.

    `interpret` runs the kernels in Python on any backend, for tests.
    """
    return _normalize(_Options(epsilon, centred, interpret), x, scale_D, bias_D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(options, x, scale_D, bias_D):
    return _forward(options, x, scale_D, bias_D)[0]


def _forward(options, x, scale_D, bias_D):
    rows = PartitionSpec('batch', 'length')[: x.ndim - 1]
    y, mean, inverse = shard_map(
        functools.partial(_call_forward, options),
        [x, scale_D, *([] if bias_D is None else [bias_D])],
        [PartitionSpec(*rows, None), *[PartitionSpec(None)] * (1 if bias_D is None else 2)],
        (PartitionSpec(*rows, None), PartitionSpec(*rows), PartitionSpec(*rows)),
    )
    return (y, x), (x, scale_D, bias_D, mean, inverse)


def _backward(options, saved, cotangents):
    x, scale_D, bias_D, mean, inverse = saved
    names = ('batch', 'length')[: x.ndim - 1]
    rows, array = PartitionSpec(*names), PartitionSpec(*names, None)
    axes = sum((mesh_axes(name, x.shape[i]) for i, name in enumerate(names)), ())
    dx, dscale_D, dbias_D = shard_map(
        functools.partial(_call_backward, options, axes),
        [x, *cotangents, scale_D, mean, inverse],
        [array, array, array, PartitionSpec(None), rows, rows],
        (array, PartitionSpec(None), PartitionSpec(None)),
    )
    dbias_D = None if bias_D is None else dbias_D.astype(bias_D.dtype)
    return dx, dscale_D.astype(scale_D.dtype), dbias_D


_normalize.defvjp(_forward, _backward)


def _call_forward(options, x, *vectors):
    x_ND = x.reshape(-1, x.shape[-1])
    (N, D), tile = x_ND.shape, _Tile(x_ND.shape[1])
    number = jax.ShapeDtypeStruct((N,), jnp.float32)
    y_ND, mean_N, inverse_N = pl.pallas_call(
        functools.partial(_forward_kernel, tile, options, N),
        grid=(pl.cdiv(N, tile.rows),),
        in_specs=[tile.block(tile.rows), *[tile.vector] * len(vectors)],
        out_specs=[tile.block(tile.rows), *[tile.numbers(tile.rows)] * 2],
        out_shape=[jax.ShapeDtypeStruct((N, D), x.dtype), number, number],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=options.interpret,
        name='normalize',
    )(x_ND, *vectors)
    return y_ND.reshape(x.shape), *(a.reshape(x.shape[:-1]) for a in (mean_N, inverse_N))


def _call_backward(options, axes, x, dy, residual, scale_D, mean, inverse):
    N, D = mean.size, x.shape[-1]
    tile = _Tile(D)
    per_program = max(tile.rows, ROWS_PER_PROGRAM)
    programs = pl.cdiv(N, per_program)
    block, numbers = tile.block(per_program), tile.numbers(per_program)
    partial = pl.BlockSpec((None, tile.columns), lambda i: (i, 0))
    partials = jax.ShapeDtypeStruct((programs, D), jnp.float32)
    dx_ND, *sums_PD = pl.pallas_call(
        functools.partial(_backward_kernel, tile, options, N, per_program),
        grid=(programs,),
        in_specs=[block, block, block, tile.vector, numbers, numbers],
        out_specs=[block, partial, partial],
        out_shape=[jax.ShapeDtypeStruct((N, D), x.dtype), partials, partials],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=options.interpret,
        name='normalize_gradient',
    )(*(a.reshape(N, D) for a in (x, dy, residual)), scale_D, mean.reshape(N), inverse.reshape(N))
    return dx_ND.reshape(x.shape), *jax.lax.psum([a.sum(0) for a in sums_PD], axes)


class _Tile:
    """The rows and columns that a program holds at once; columns are padded to a power of 2."""

    def __init__(self, D: int):
        self.D, self.columns = D, pl.next_power_of_2(D)
        self.rows = max(1, TILE // self.columns)
        self.vector = pl.BlockSpec((self.columns,), lambda i: (0,))

    def block(self, rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((rows, self.columns), lambda i: (i, 0))

    def numbers(self, rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((rows,), lambda i: (i,))

    def inside(self) -> Array:
        return jnp.arange(self.columns) < self.D


def _load(ref, index, mask):
    return plgpu.load(ref.at[index], mask=mask, other=0.0).astype(jnp.float32)


def _forward_kernel(tile, options, N, x_ref, scale_ref, *refs):
    *bias_ref, y_ref, mean_ref, inverse_ref = refs
    inside = tile.inside()
    rows = pl.ds(0, tile.rows)
    there = pl.program_id(0) * tile.rows + jnp.arange(tile.rows) < N
    mask = there[:, None] & inside[None, :]
    every = (rows, pl.ds(0, tile.columns))
    x = _load(x_ref, every, mask)
    mean = jnp.zeros((tile.rows,), jnp.float32)
    if options.centred:
        mean = x.sum(1) / tile.D
        x = jnp.where(mask, x - mean[:, None], 0.0)
    inverse = jax.lax.rsqrt((x * x).sum(1) / tile.D + options.epsilon)
    columns = (pl.ds(0, tile.columns),)
    y = x * inverse[:, None] * _load(scale_ref, columns, inside)[None, :]
    if bias_ref:
        y = y + _load(bias_ref[0], columns, inside)[None, :]
    plgpu.store(y_ref.at[every], y.astype(y_ref.dtype), mask=mask)
    plgpu.store(mean_ref.at[(rows,)], mean, mask=there)
    plgpu.store(inverse_ref.at[(rows,)], inverse, mask=there)


def _backward_kernel(
    tile,
    options,
    N,
    per_program,
    x_ref,
    dy_ref,
    residual_ref,
    scale_ref,
    mean_ref,
    inverse_ref,
    dx_ref,
    dscale_ref,
    dbias_ref,
):
    inside = tile.inside()
    columns = pl.ds(0, tile.columns)
    scale = _load(scale_ref, (columns,), inside)[None, :]
    start = pl.program_id(0) * per_program

    def add_rows(i, sums):
        dscale, dbias = sums
        rows = pl.ds(i * tile.rows, tile.rows)
        there = start + i * tile.rows + jnp.arange(tile.rows) < N
        mask = there[:, None] & inside[None, :]
        x, dy, residual = (
            _load(ref, (rows, columns), mask) for ref in (x_ref, dy_ref, residual_ref)
        )
        inverse = _load(inverse_ref, (rows,), there)[:, None]
        mean = _load(mean_ref, (rows,), there)[:, None]
        x_hat = jnp.where(mask, (x - mean) * inverse, 0.0)
        g = dy * scale
        dx = g - x_hat * ((g * x_hat).sum(1) / tile.D)[:, None]
        if options.centred:
            dx = dx - (g.sum(1) / tile.D)[:, None]
        dx = dx * inverse + residual
        plgpu.store(dx_ref.at[rows, columns], dx.astype(dx_ref.dtype), mask=mask)
        return dscale + dy * x_hat, dbias + dy

    zero = jnp.zeros((tile.rows, tile.columns), jnp.float32)
    dscale, dbias = jax.lax.fori_loop(0, per_program // tile.rows, add_rows, (zero, zero))
    plgpu.store(dscale_ref.at[columns], dscale.sum(0), mask=inside)
    plgpu.store(dbias_ref.at[columns], dbias.sum(0), mask=inside)
