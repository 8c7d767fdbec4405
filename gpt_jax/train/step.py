"""One training step and one evaluation step as pure functions of arrays."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax.config import LossKernel, TrainConfig
from gpt_jax.kernels.loss_softmax import LossOptions
from gpt_jax.model.gpt import GPT, output_table, sown_shapes
from gpt_jax.model.layer_stack import to_executed, to_stored
from gpt_jax.model.sown import LOSSES, METRICS, sum_sown
from gpt_jax.optim.trainable import Trainable
from gpt_jax.train.loss import LossSums, cross_entropy
from gpt_jax.train.state import TrainState

# 'tokens' [B, L+1] int32; optional 'segment_ids' [B, L+1] int32, 'loss_mask' [B, L] float32.
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Numbers = dict[str, Any]  # of `step_numbers`: scalars
TrainStep = Callable[[TrainState, Batch, Numbers], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepParts:
    """The components of the train, eval and score steps."""

    model: GPT
    optimizer: Callable[[Numbers], optax.GradientTransformation]
    schedule: Callable[[Numbers], optax.Schedule]
    train: TrainConfig
    micro_batches: int = 1  # per step
    loss_kernel: LossKernel = LossKernel.XLA
    loss_chunk_bytes: int = 2**27
    trainable: Trainable = Trainable()
    total: Callable[[Any], Any] = lambda sums: sums  # all-reduces per-replica sums; jit: identity
    gather: Callable[[Any], Any] = lambda rows: rows  # all-gathers replicas' rows; jit: identity


def stack_batches(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the batches of several steps, stacked for `make_train_steps`."""
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def make_train_step(parts: StepParts) -> TrainStep:
    """Returns the step: gradients over micro-batches, clipping, update; skips non-finite updates.

    Dropout of step t is drawn from fold_in(seed, t), so no random state is stored. A skipped step
    does not advance the learning rate. A batch whose tokens all have weight 0 is skipped too, but
    is not a bad step. A step whose new weights are not finite is a bad step. A profile groups the
    time by the named scopes.
    """
    config, scan, z_loss = parts.model.config, parts.model.scan, parts.train.z_loss
    trainable = parts.trainable
    rates = (config.dropouts.residual, config.dropouts.attention, trainable.lora.dropout)
    has_dropout = any(rate > 0 for rate in rates)

    def train_step(state: TrainState, batch: Batch, numbers: Numbers) -> tuple[TrainState, Metrics]:
        train = dataclasses.replace(parts.train, **numbers['train'])
        key = jax.random.fold_in(jax.random.key(numbers['seed']), state.step)
        batch = _with_loss_mask(batch)
        weight = parts.total(batch['loss_mask'].sum())
        total_weight = jnp.maximum(weight, 1.0)
        executed = to_executed(state.params, config, scan=scan)
        base = None if state.base is None else to_executed(state.base, config, scan=scan)

        def micro_loss(executed: Any, micro: Batch, index: jax.Array) -> tuple[jax.Array, Any]:
            dropout_key = jax.random.fold_in(key, index) if has_dropout else None
            masks = trainable.dropout_masks(state.params, dropout_key)
            if masks is not None:
                executed = jax.tree.map(
                    jnp.multiply, executed, to_executed(masks, config, scan=scan)
                )
            params = trainable.join(executed, base)
            loss, sums, sown = _loss(parts, params, micro, dropout_key, z_loss=z_loss)
            loss = loss / total_weight
            # A micro-batch counts by its tokens, in these sums too.
            sown = jax.tree.map(lambda value: value * (sums.weight / total_weight), sown)
            for value in sown[LOSSES].values():
                loss += value
            return loss, (sums, sown)

        grad_fn = jax.value_and_grad(micro_loss, has_aux=True)
        if parts.micro_batches == 1:
            (loss, (sums, sown)), grads = grad_fn(executed, batch, jnp.int32(0))
        else:
            loss, (sums, sown), grads = _accumulate(
                grad_fn, executed, batch, parts.micro_batches, sown_shapes(config)
            )
        # Without the barrier XLA stacks the gradients again in every operation that reads them,
        # which makes the optimizer of 48 layers three times as slow on a GPU.
        grads = jax.lax.optimization_barrier(to_stored(grads, config, scan=scan))
        loss, sums, sown, grads = parts.total((loss, sums, sown, grads))

        with jax.named_scope('clip'):
            grad_norm = optax.tree.norm(grads)
            if train.clip_norm:
                scale = jnp.minimum(1.0, train.clip_norm / (grad_norm + 1e-6))
                grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        with jax.named_scope('optimizer'):
            optimizer = parts.optimizer(numbers)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema = state.ema
            if train.ema_decay:
                ema = jax.tree.map(
                    lambda new, old: (1 - train.ema_decay) * new + train.ema_decay * old,
                    params,
                    ema,
                )
            finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
            applied = finite & (weight != 0)
            params, opt_state, ema = jax.tree.map(
                lambda new, old: jnp.where(applied, new, old),
                (params, opt_state, ema),
                (state.params, state.opt_state, state.ema),
            )
            # Not a condition of the update, which would then hold the optimizer's arrays twice.
            param_norm = optax.tree.norm(params)
            good = finite & jnp.isfinite(param_norm)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=ema,
            skipped=state.skipped + ~applied,
            bad_steps=jnp.where(good, 0, state.bad_steps + 1),
            base=state.base,
        )
        rate = parts.schedule(numbers)(state.step - state.skipped)
        metrics = {
            'loss': sums.cross_entropy / total_weight,
            'accuracy': sums.correct / total_weight,
            'grad_norm': grad_norm,
            'param_norm': param_norm,
            'learning_rate': jnp.asarray(rate, jnp.float32),
            'skipped_steps': new_state.skipped,
            'bad_steps': new_state.bad_steps,
        }
        if z_loss:
            metrics['z_loss'] = loss - metrics['loss'] - sum(sown[LOSSES].values())
        losses = {name: value for name, value in sown[LOSSES].items() if not name.startswith('_')}
        return new_state, metrics | losses | sown[METRICS]

    return train_step


def make_train_steps(parts: StepParts) -> TrainStep:
    """Returns a function that takes one step per batch of stacked batches."""
    train_step = make_train_step(parts)

    def train_steps(
        state: TrainState, batches: Batch, numbers: Numbers
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: train_step(state, batch, numbers), state, batches)

    return train_steps


def make_eval_step(parts: StepParts) -> Callable[[Any, Batch], LossSums]:
    """Returns a function that sums the cross entropy of a batch, without dropout and gradients."""
    config, scan = parts.model.config, parts.model.scan

    def eval_step(params: Any, batch: Batch) -> LossSums:
        executed = to_executed(params, config, scan=scan)
        _, sums, _ = _loss(parts, executed, _with_loss_mask(batch), None, z_loss=0.0)
        return parts.total(sums)

    return eval_step


def _loss(parts: StepParts, executed: Any, batch: Batch, dropout_key, *, z_loss: float):
    """Computes the summed loss, the sums and what the model sowed of one (micro-)batch."""
    config, tokens = parts.model.config, batch['tokens']
    segments = batch.get('segment_ids')
    (hidden_BLD, _), sown = parts.model.apply(
        {'params': executed},
        tokens[:, :-1],
        segment_ids_BL=None if segments is None else segments[:, :-1],
        dropout_key=dropout_key,
        method='hidden',
        mutable=[LOSSES, METRICS],
    )
    options = LossOptions(
        vocab_size=config.vocab_size,
        soft_cap=config.output_soft_cap,
        z_loss=z_loss,
        chunk_bytes=parts.loss_chunk_bytes,
        kernel=parts.loss_kernel,
    )
    with jax.named_scope('loss'):
        loss, sums = cross_entropy(
            hidden_BLD, output_table(executed, config), tokens[:, 1:], batch['loss_mask'], options
        )
    return loss, sums, sum_sown(sown)


def _with_loss_mask(batch: Batch) -> Batch:
    """Returns the batch with a `loss_mask`, all ones unless it has one."""
    tokens = batch['tokens']
    ones = jnp.ones((tokens.shape[0], tokens.shape[1] - 1), jnp.float32)
    # Hide the constant from XLA, which would compile a different program with other last bits.
    ones = jax.lax.optimization_barrier(ones)
    return {'loss_mask': ones, **batch}


def _accumulate(grad_fn, executed: Any, batch: Batch, micro_batches: int, sown: Any):
    """Sums losses, gradients and what the model sows over micro-batches, one at a time.

    The sums are float32 whatever the parameters are: in bfloat16 small addends would be lost.
    Micro-batch i takes every `micro_batches`-th row, so that rows stay on their devices.
    """

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    def add_micro_batch(total: Any, indexed: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        index, micro = indexed
        (loss, aux), grads = grad_fn(executed, micro, index)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (loss, aux, grads)), None

    zero = jnp.zeros((), jnp.float32)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), executed)
    start = (zero, (LossSums(zero, zero, zero), jax.tree.map(lambda _: zero, sown)), zeros)
    micros = (jnp.arange(micro_batches), jax.tree.map(split, batch))
    total, _ = jax.lax.scan(add_micro_batch, start, micros)
    return total
