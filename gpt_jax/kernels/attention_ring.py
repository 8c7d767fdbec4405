"""Ring attention, for sequences that are sharded over devices.

Liu et al. 2023, https://arxiv.org/abs/2310.01889. Queries stay on their device. Keys and values go
round the devices that share a sequence. Each device accumulates the attention of its queries (the
online softmax of FlashAttention, Dao et al. 2022, https://arxiv.org/abs/2205.14135). A device
holds at most its own part of the keys and one part in transit, and the scores of its queries and
KEY_BLOCK keys. The backward pass sends the keys round again, with their gradients, instead of
keeping them.

Parts are consecutive pieces of the sequence. Because of the causal mask, the first device sees one
part and the last device sees all. Fully masked blocks are skipped, which saves energy but not time:
every round lasts as long as its busiest device. Keeping tokens in order thus costs twice the time
of a perfectly balanced ring. A window does save time and traffic: the ring stops after the last
part that any query sees.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key

from gpt_jax.kernels.dropout import bernoulli_block
from gpt_jax.kernels.scores import MASKED, ScoreOptions, soften
from gpt_jax.kernels.shard_map import mesh_axes, part_index, shard_map

KEY_BLOCK = 512  # keys whose scores are in memory at a time, at most


def attend_ring(
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B S G K'],
    v_BSGK: Float[Array, 'B S G K'],
    options: ScoreOptions,
) -> Float[Array, 'B L H K']:
    """Computes attention without a cache; dropout masks equal plain attention's bit for bit.

    Softmax and sums are in float32. The result is sharded like the queries. A sequence that is not
    sharded gets a ring of one device.

    Raises:
        ValueError: a cache was given.
        UserError: dropout got a key of a generator other than threefry.
    """
    B, L, H, _ = q_BLHK.shape
    mask = options.mask
    if mask.first_query_slot_B is not None or k_BSGK.shape[1] != L:
        raise ValueError('ring attention takes no cache')
    G = k_BSGK.shape[2]
    kv_heads = 'kv_heads'
    if mesh_axes('heads', H) != mesh_axes('kv_heads', G):  # a device would lack keys it needs
        k_BSGK, v_BSGK = (jnp.repeat(x, H // G, axis=2) for x in (k_BSGK, v_BSGK))
        kv_heads = 'heads'
    arrays = {'q_BLHK': q_BLHK, 'k_BSGK': k_BSGK, 'v_BSGK': v_BSGK}
    axes = {
        name: PartitionSpec('batch', 'length', heads, None)
        for name, heads in zip(arrays, ('heads', kv_heads, kv_heads), strict=True)
    }
    if mask.segment_ids_BS is not None:
        arrays['segment_ids_BL'] = mask.segment_ids_BS
        axes['segment_ids_BL'] = PartitionSpec('batch', 'length')
    if options.slopes_H is not None:
        arrays['slopes_H'], axes['slopes_H'] = options.slopes_H, PartitionSpec('heads')
    if options.drops:
        arrays['dropout_key'], axes['dropout_key'] = options.dropout_key, PartitionSpec()
    ring = Ring(
        axes=mesh_axes('length', L),
        batch_axes=mesh_axes('batch', B),
        heads_axes=mesh_axes('heads', H),
        whole=(B, H, L, L),
        window=options.window,
        soft_cap=options.soft_cap,
        dropout_rate=options.dropout_rate,
    )

    def attend(*parts: jax.Array) -> jax.Array:
        return _attend_on_one_device(ring, **dict(zip(arrays, parts, strict=True)))

    return shard_map(attend, list(arrays.values()), list(axes.values()), axes['q_BLHK'])


class Ring(NamedTuple):
    """The static options that the devices of a ring share."""

    axes: tuple[str, ...]  # of the mesh, that the sequence is sharded over
    batch_axes: tuple[str, ...]
    heads_axes: tuple[str, ...]
    whole: tuple[int, int, int, int]  # B, H, L, S of all devices together
    window: int
    soft_cap: float
    dropout_rate: float

    @property
    def parts(self) -> int:
        """The number of parts of the sequence."""
        return jax.lax.axis_size(self.axes) if self.axes else 1

    def rounds(self, length: int) -> int:
        """Returns the number of parts, of `length` tokens, that the queries of one part see."""
        reach = -(-(self.window - 1) // length) if self.window else self.parts
        return min(self.parts, 1 + reach)

    def pass_on(self, tree: Any, steps: int = 1) -> Any:
        """Sends `tree` to the device `steps` ahead on the ring; returns the tree it receives."""
        if not self.axes:
            return tree
        to = [(i, (i + steps) % self.parts) for i in range(self.parts)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, to), tree)


class Stay(NamedTuple):
    """The arrays that stay on their device: the queries and what belongs to them."""

    q_BLHK: Float[Array, 'B L H K']
    segment_ids_BL: Int[Array, 'B L'] | None
    slopes_H: Float[Array, 'H'] | None
    dropout_key: Key[Array, ''] | None


class Travel(NamedTuple):
    """The arrays that go round the ring: the keys and what belongs to them."""

    k_BSGK: Float[Array, 'B S G K']
    v_BSGK: Float[Array, 'B S G K']
    segment_ids_BS: Int[Array, 'B S'] | None


class Sums(NamedTuple):
    """The online softmax of a device's queries over the keys received so far."""

    peak_BGRL: Float[Array, 'B G R L']  # the largest score
    total_BGRL: Float[Array, 'B G R L']  # of exp(score - peak)
    values_BGRLK: Float[Array, 'B G R L K']  # weighted by exp(score - peak), after dropout


def _attend_on_one_device(
    ring: Ring,
    q_BLHK: Float[Array, 'B L H K'],
    k_BSGK: Float[Array, 'B L G K'],
    v_BSGK: Float[Array, 'B L G K'],
    segment_ids_BL: Int[Array, 'B L'] | None = None,
    slopes_H: Float[Array, 'H'] | None = None,
    dropout_key: Key[Array, ''] | None = None,
) -> Float[Array, 'B L H K']:
    """Computes the attention of a device's queries to the keys of the whole ring."""
    stay = Stay(q_BLHK, segment_ids_BL, slopes_H, dropout_key)
    return _attend(ring, stay, Travel(k_BSGK, v_BSGK, segment_ids_BL))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: Ring, stay: Stay, travel: Travel) -> Float[Array, 'B L H K']:
    return _forward(ring, stay, travel)[0]


def _forward(ring: Ring, stay: Stay, travel: Travel) -> tuple[jax.Array, Any]:
    """Returns the output and the residuals, whose size does not grow with the ring."""
    B, L, H, K = stay.q_BLHK.shape
    G = travel.k_BSGK.shape[2]

    def visit(sums: Sums, companions: Any, block: Travel, first_key: jax.Array) -> Any:
        scores_BGRLS = _scores(ring, stay, block, first_key)
        peak_BGRL = jnp.maximum(sums.peak_BGRL, scores_BGRLS.max(-1))
        values_BGRLK, total_BGRL = _weigh(ring, stay, block, first_key, scores_BGRLS, peak_BGRL)
        shrink_BGRL = jnp.exp(sums.peak_BGRL - peak_BGRL)
        sums = Sums(
            peak_BGRL,
            sums.total_BGRL * shrink_BGRL + total_BGRL,
            sums.values_BGRLK * shrink_BGRL[..., None] + values_BGRLK,
        )
        return sums, companions

    # Until a query meets a visible key, its peak is MASKED and masked keys count. The first visible
    # key shrinks their sums to an exact 0; every query sees at least its own key.
    zero_BGRL = jnp.zeros((B, G, H // G, L), jnp.float32)
    sums = Sums(zero_BGRL + MASKED, zero_BGRL, jnp.zeros((*zero_BGRL.shape, K), jnp.float32))
    # See `_go_round` for the barriers.
    origin, _ = jax.lax.optimization_barrier((jnp.int32(0), stay.q_BLHK))
    sums, _ = _go_round(ring, travel, visit, sums, origin=origin)

    out_BGRLK = sums.values_BGRLK / sums.total_BGRL[..., None]
    out_BLHK = out_BGRLK.transpose(0, 3, 1, 2, 4).reshape(B, L, H, K).astype(stay.q_BLHK.dtype)
    out_BLHK = checkpoint_name(out_BLHK, 'attention')
    log_total_BGRL = checkpoint_name(sums.peak_BGRL + jnp.log(sums.total_BGRL), 'attention')
    return out_BLHK, (stay, travel, out_BLHK, log_total_BGRL)


def _backward(ring: Ring, kept: Any, dout_BLHK: jax.Array) -> tuple[Stay, Travel]:
    """Sends the keys round again with their gradients, which end on the device of their keys.

    With the weights w = exp(score - log_total), d score = w * (d w - sum of w * d w over all
    keys). The sum equals the product of the output and its gradient, dropout or not. So d score is
    the gradient of `_weigh` for a block, with the cotangents (dout, -that sum).
    """
    stay, travel, out_BLHK, log_total_BGRL = kept
    origin, dout_BLHK = jax.lax.optimization_barrier((jnp.int32(0), dout_BLHK))
    B, L, H, K = stay.q_BLHK.shape
    G = travel.k_BSGK.shape[2]

    def grouped(x_BLHK: jax.Array) -> jax.Array:
        x_BLGRK = x_BLHK.astype(jnp.float32).reshape(B, L, G, H // G, K)
        return x_BLGRK.transpose(0, 2, 3, 1, 4)

    dout_BGRLK = grouped(dout_BLHK)
    cotangents = dout_BGRLK, -(dout_BGRLK * grouped(out_BLHK)).sum(-1)

    def visit(sums: Any, companions: Any, block: Travel, first_key: jax.Array) -> Any:
        def weigh(staying: Any, travelling: Any) -> tuple[jax.Array, jax.Array]:
            own = stay._replace(q_BLHK=staying[0], slopes_H=staying[1])
            keys = block._replace(k_BSGK=travelling[0], v_BSGK=travelling[1])
            scores_BGRLS = _scores(ring, own, keys, first_key)
            return _weigh(ring, own, keys, first_key, scores_BGRLS, log_total_BGRL)

        _, pull_back = jax.vjp(weigh, (stay.q_BLHK, stay.slopes_H), (block.k_BSGK, block.v_BSGK))
        return jax.tree.map(lambda total, x: total + x, (sums, companions), pull_back(cotangents))

    def float32_zeros(arrays: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), arrays)

    def rounded(sums: Any, arrays: Any) -> Any:
        return jax.tree.map(lambda total, x: total.astype(x.dtype), sums, arrays)

    staying, travelling = (stay.q_BLHK, stay.slopes_H), (travel.k_BSGK, travel.v_BSGK)
    dstaying, dtravelling = _go_round(
        ring,
        travel,
        visit,
        float32_zeros(staying),
        companions=float32_zeros(travelling),
        origin=origin,
    )
    dq_BLHK, dslopes_H = rounded(dstaying, staying)
    dk_BSGK, dv_BSGK = rounded(dtravelling, travelling)
    return Stay(dq_BLHK, None, dslopes_H, None), Travel(dk_BSGK, dv_BSGK, None)


_attend.defvjp(_forward, _backward)


def _go_round(
    ring: Ring,
    travel: Travel,
    visit: Callable[..., Any],
    sums: Any,
    *,
    companions: Any = (),
    origin: jax.Array,
) -> tuple[Any, Any]:
    """Calls `visit` for every block of keys of which the device's queries see any.

    `visit(sums, companions, block, first_key)` returns new sums, which stay, and companions:
    arrays that go round with the keys and are cut into blocks like them. `origin` is the slot of
    the first key: a zero tied to an array of this call by an `optimization_barrier`. Without it
    the masks are loop-invariant in a scan over the layers. The scan would then compute those of all
    blocks outside of its loop and keep them.
    """
    length = travel.k_BSGK.shape[1]
    size = max(size for size in range(1, min(length, KEY_BLOCK) + 1) if length % size == 0)
    first_query = part_index(ring.axes) * length

    def visit_part(here: Travel, sums: Any, companions: Any, step: int | jax.Array) -> Any:
        first_of_part = (part_index(ring.axes) - step) % ring.parts * length

        def visit_block(carry: Any, start: jax.Array) -> tuple[Any, None]:
            sums, companions = carry
            block, beside = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), (here, companions)
            )
            first_key = origin + first_of_part + start
            seen = first_key < first_query + length
            if ring.window:
                seen &= first_key + size > first_query - ring.window + 1
            sums, beside = jax.lax.cond(
                seen,
                lambda sums, beside: visit(sums, beside, block, first_key),
                lambda sums, beside: (sums, beside),
                *(sums, beside),
            )
            companions = jax.tree.map(
                lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, start, axis=1),
                companions,
                beside,
            )
            return (sums, companions), None

        carry, _ = jax.lax.scan(visit_block, (sums, companions), jnp.arange(0, length, size))
        return carry

    def go_on(carry: Any, step: jax.Array) -> tuple[Any, None]:
        here, sums, companions = carry
        coming = ring.pass_on(here)  # independent of the results, so it overlaps with the work
        sums, companions = visit_part(here, sums, companions, step)
        return (coming, sums, ring.pass_on(companions)), None

    last = ring.rounds(length) - 1
    carry = travel, sums, companions
    if last:
        carry, _ = jax.lax.scan(go_on, carry, jnp.arange(last))
    sums, companions = visit_part(*carry, last)
    return sums, ring.pass_on(companions, -last) if last else companions


def _scores(
    ring: Ring, stay: Stay, block: Travel, first_key: jax.Array
) -> Float[Array, 'B G R L S']:
    """Computes the scores of a block of keys in float32; MASKED where the mask hides a key."""
    B, L, H, K = stay.q_BLHK.shape
    S, G = block.k_BSGK.shape[1:3]
    q_BLGRK = stay.q_BLHK.reshape(B, L, G, H // G, K)
    scores_BGRLS = jnp.einsum(
        'BLGRK,BSGK->BGRLS', q_BLGRK, block.k_BSGK, preferred_element_type=jnp.float32
    )
    scores_BGRLS *= K**-0.5
    scores_BGRLS = soften(scores_BGRLS, ring.soft_cap)
    query_L1 = (part_index(ring.axes) * L + jnp.arange(L))[:, None]
    distance_LS = query_L1 - (first_key + jnp.arange(S))[None, :]
    if stay.slopes_H is not None:
        penalty_GRLS = stay.slopes_H.reshape(G, H // G, 1, 1) * distance_LS[None, None]
        scores_BGRLS -= penalty_GRLS[None]
    visible_LS = distance_LS >= 0
    if ring.window:
        visible_LS &= distance_LS < ring.window
    visible_BLS = visible_LS[None]
    if stay.segment_ids_BL is not None:
        same_BLS = stay.segment_ids_BL[:, :, None] == block.segment_ids_BS[:, None, :]
        visible_BLS = visible_BLS & same_BLS
    return jnp.where(visible_BLS[:, None, None], scores_BGRLS, MASKED)


def _weigh(
    ring: Ring,
    stay: Stay,
    block: Travel,
    first_key: jax.Array,
    scores_BGRLS: Float[Array, 'B G R L S'],
    reference_BGRL: Float[Array, 'B G R L'],
) -> tuple[Float[Array, 'B G R L K'], Float[Array, 'B G R L']]:
    """Sums the block's weighted values, and its weights exp(score - reference) before dropout."""
    weights_BGRLS = jnp.exp(scores_BGRLS - reference_BGRL[..., None])
    total_BGRL = weights_BGRLS.sum(-1)
    if stay.dropout_key is not None:
        weights_BGRLS = _drop(ring, stay, weights_BGRLS, first_key)
    values_BGRLK = jnp.einsum(
        'BGRLS,BSGK->BGRLK',
        weights_BGRLS.astype(block.v_BSGK.dtype),
        block.v_BSGK,
        preferred_element_type=jnp.float32,
    )
    return values_BGRLK, total_BGRL


def _drop(
    ring: Ring, stay: Stay, weights_BGRLS: Float[Array, 'B G R L S'], first_key: jax.Array
) -> Float[Array, 'B G R L S']:
    """Drops weights of a block; the mask equals the same block of the full matrix's mask."""
    B, G, R, L, S = weights_BGRLS.shape
    start = (
        part_index(ring.batch_axes) * B,
        part_index(ring.heads_axes) * (G * R),
        part_index(ring.axes) * L,
        first_key,
    )
    rate = ring.dropout_rate
    with jax.named_scope('dropout'):
        keep_BHLS = bernoulli_block(
            stay.dropout_key, 1 - rate, (B, G * R, L, S), start=start, whole=ring.whole
        )
        keep_BGRLS = keep_BHLS.reshape(weights_BGRLS.shape)
        return jnp.where(keep_BGRLS, weights_BGRLS / (1 - rate), 0.0)
