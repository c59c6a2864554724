"""The pure functions of training: draw an epoch, renew prototypes, take a step, run an epoch.

None of them knows how it is compiled: they take ``axis_name`` and run alike under jit, pmap and
vmap. The random numbers of an epoch are functions of the key and the epoch alone, drawn for the
global batch, so one device, many devices, a loop on the host and a loop on the device see the
same batches. In all of them ``task`` is static, ``index`` holds the training clips, ``hyper`` the
traced hyper-parameters, and ``axis_name`` names the mapped axis over which batches are spread.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from asdproto import prototypes as proto
from asdproto.sampling import (
    ClassMembers,
    Plan,
    crop_starts,
    plan_episodes,
    plan_permutation,
    plan_stacks,
    take_crops,
)
from asdproto.training.stage import Episodes, FrameStacks, Hyper
from asdproto.training.state import Batch, ClipIndex, TrainState, device_rows
from asdproto.training.task import Task


class EpochPlan(NamedTuple):
    """Random choices of one epoch, for all devices.

    Attributes:
      steps: Batches of the steps, ``[steps, global_batch_size]``; padding is clip -1.
      chunks: Batches of the prototype pass, of :attr:`Task.pass_shape`; padding is clip -1.
      membership: float32, shape ``[1 + sub_prototypes, clips]``: which clips each prototype of
        their class averages (1) and which not (0); no rows for objectives without.
      key: Random key for the losses of the epoch's steps.
    """

    steps: Plan
    chunks: Plan
    membership: jax.Array
    key: jax.Array


class ClassSums(NamedTuple):
    """Running sums of the prototype pass.

    Attributes:
      sums: float32, shape ``[1 + sub_prototypes, classes, dim]``.
      counts: float32, shape ``[1 + sub_prototypes, classes]``.
      chunk: int32 scalar, the next chunk.
    """

    sums: jax.Array
    counts: jax.Array
    chunk: jax.Array


def train_step(
    task: Task,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    hyper: Hyper,
    axis_name: str | None = None,
    kernels: Any = None,
) -> tuple[TrainState, jax.Array]:
    """One update: embeddings, loss, gradients, new parameters.

    Args:
      task: Static description.
      state: State before the step.
      batch: This device's part of the batch.
      key: Random key of the epoch's losses.
      hyper: Traced hyper-parameters.
      axis_name: Mapped axis over which the batch is spread, or ``None``.
      kernels: What :func:`cast_kernels` makes of the state's parameters, where a loop carries it.

    Returns:
      State after the step, and the loss of the global batch, float32 scalar. Both are the same on
      all devices.
    """
    stage = task.stage
    if task.global_batch_size == stage.batch:  # no padding to leave out
        batch = batch._replace(where=None)

    keywords: dict[str, Any] = {
        "key": jax.random.fold_in(key, state.step),
        "hyper": hyper,
        "num_classes": task.num_classes,
        "axis_name": axis_name,
    }
    crops, where = batch.crops, batch.where
    if task.objective.augment is not None:
        crops, where = task.objective.augment(batch, **keywords)

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, Any]]:
        variables = {"params": params["encoder"], "batch_stats": state.batch_stats}
        embeddings, updated = task.model.apply(
            variables, crops, train=True, where=where, mutable=["batch_stats"]
        )
        losses, loss_state = task.objective.loss(
            params["loss"], state, embeddings, batch, **keywords
        )
        if batch.where is not None:
            losses = jnp.where(batch.where, losses, 0)
        # The mean over devices of this is the mean over the global batch, padding left out.
        loss = jnp.sum(losses) * (task.num_devices / stage.batch)
        return loss, (updated.get("batch_stats", {}), loss_state)

    params = state.params
    if kernels is not None:
        params = jax.tree.map(
            lambda kernel, x: x if kernel is None else kernel,
            kernels,
            params,
            is_leaf=lambda x: x is None,
        )
    value, gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    loss, (batch_stats, loss_state) = value
    gradients = optax.tree.cast_like(gradients, state.params)
    if axis_name is not None:
        loss, gradients, batch_stats = lax.pmean((loss, gradients, batch_stats), axis_name)
    rate = stage.learning_rate(state.step // task.steps_per_epoch) * hyper.learning_rate_scale
    updates, optimizer = stage.update_rule(rate).update(gradients, state.optimizer, state.params)
    # Asked of the new count: a sweep would have to copy the old ones before it counts on.
    step, count = state.step + 1, task.steps_per_epoch
    before = jnp.where(step % count == 1 % count, 0.0, state.loss_sum)
    state = state._replace(
        step=step,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        optimizer=optimizer,
        loss_state=loss_state,
        loss_sum=before + loss,
    )
    return state, loss


def cast_kernels(task: Task, params: Any) -> Any:
    """The network's large kernels in the dtype of its arithmetic, for the next turn of a loop.

    A module casts its kernel at every use. A loop that carries what this returns writes it where it
    writes the parameters: 22 kernels and 45 MB less of a step for an H100 (width 64, bfloat16).

    Returns:
      Tree of the parameters with ``None`` for those that are not cast.
    """
    dtype = getattr(task.model, "dtype", jnp.float32)

    def cast(path: Any, x: jax.Array) -> jax.Array | None:
        large = path[0].key == "encoder" and x.ndim > 1 and x.size > 1024
        return x.astype(dtype) if large and x.dtype != dtype else None

    return jax.tree_util.tree_map_with_path(cast, params)


def plan_epoch(
    task: Task, step: jax.Array, index: ClipIndex, key: jax.Array, hyper: Hyper
) -> EpochPlan:
    """Draws everything random of the epoch that ``step`` lies in, from the key of the stage."""
    stage, objective = task.stage, task.objective
    epoch_key = jax.random.fold_in(key, step // task.steps_per_epoch)
    plan_key, pass_key, membership_key, loss_key = jax.random.split(epoch_key, 4)
    if isinstance(stage, Episodes):
        plan = plan_episodes(
            plan_key,
            index.frames,
            ClassMembers(index.order, index.offsets, index.counts, task.largest_class),
            steps=task.steps_per_epoch,
            num_ways=stage.ways,
            num_shots=stage.shots,
            crop=task.crop,
        )
    elif isinstance(stage, FrameStacks):
        plan = plan_stacks(plan_key, index.frames, task.num_crops, stage.batch, task.crop)
    else:
        plan = plan_permutation(plan_key, index.frames, stage.batch, task.crop)
    # A random epoch may be cut short, or go round, when its number of steps is given.
    turn = jnp.arange(task.steps_per_epoch) % plan.clips.shape[0]
    steps = Plan(*(jnp.take(x, turn, axis=0) for x in plan))

    calls, size = task.pass_shape
    clips = jnp.tile(jnp.arange(task.num_clips), objective.prototype_crops)
    every = Plan(clips, crop_starts(pass_key, jnp.asarray(index.frames)[clips], task.crop))
    chunks = Plan(*(x.reshape(calls, size) for x in _pad(every, calls * size)))
    membership = jnp.ones((min(task.prototypes_per_class, 1), task.num_clips), jnp.float32)
    if task.prototypes_per_class > 1:
        masks = jax.vmap(
            lambda key: proto.subset_mask(key, index.labels, task.num_classes, hyper.mpe_ratio)
        )(jax.random.split(membership_key, objective.sub_prototypes))
        membership = jnp.concatenate([membership, masks.astype(jnp.float32)])
    return EpochPlan(_pad(steps, task.global_batch_size), chunks, membership, loss_key)


def _pad(plan: Plan, size: int) -> Plan:
    """A plan of ``size`` examples along the last axis."""
    width = [(0, 0)] * (plan.clips.ndim - 1) + [(0, size - plan.clips.shape[-1])]
    return Plan(jnp.pad(plan.clips, width, constant_values=-1), jnp.pad(plan.starts, width))


def take_batch(
    task: Task,
    index: ClipIndex,
    plan: Plan,
    turn: jax.Array,
    axis_name: str | None,
    crops: jax.Array | None = None,
) -> Batch:
    """This device's part of batch ``turn`` of a plan, standardized.

    ``crops`` are what the host gathered, as stored; taken from the resident features when ``None``.
    """
    size = plan.clips.shape[1] // task.num_devices
    first = device_rows(axis_name, size)[0]
    clips, starts = (lax.dynamic_slice(x, (turn, first), (1, size))[0] for x in plan)
    where = clips >= 0
    clips = jnp.maximum(clips, 0)
    if crops is None:
        assert index.features is not None
        crops = take_crops(jnp.asarray(index.features), clips, starts, task.crop)
    standardized = (crops.astype(jnp.float32) - index.mean) * index.scale
    return Batch(clips, standardized, jnp.take(index.labels, clips), where)


def empty_sums(task: Task) -> ClassSums:
    """Sums before the first chunk of the prototype pass."""
    shape = (task.prototypes_per_class, task.num_classes)
    return ClassSums(jnp.zeros((*shape, task.model.embedding_dim)), jnp.zeros(shape), jnp.int32(0))


def add_chunk(
    task: Task, state: TrainState, batch: Batch, membership: jax.Array, sums: ClassSums
) -> ClassSums:
    """Adds one chunk's embeddings, in evaluation mode, to the sums of their classes."""
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    embeddings: Any = task.model.apply(variables, batch.crops, train=False)
    more, counts = jax.vmap(
        lambda weights: proto.class_sums(
            embeddings, batch.labels, task.num_classes, where=batch.where, weights=weights
        )
    )(jnp.take(membership, batch.clips, axis=1))
    return ClassSums(sums.sums + more, sums.counts + counts, sums.chunk + 1)


def finish_prototypes(state: TrainState, sums: ClassSums, axis_name: str | None) -> TrainState:
    """State with the prototypes that the sums of all devices give (Eq. 2)."""
    totals, counts = sums.sums, sums.counts
    if axis_name is not None:
        totals, counts = lax.psum((totals, counts), axis_name)
    prototypes = jnp.swapaxes(proto.class_means(totals, counts), 0, 1)
    return state._replace(prototypes=prototypes)


def scan_pass(
    task: Task, state: TrainState, index: ClipIndex, plan: EpochPlan, axis_name: str | None = None
) -> TrainState:
    """State with renewed prototypes: the prototype pass as one loop on the device."""

    def add(_: Any, sums: ClassSums) -> ClassSums:
        batch = take_batch(task, index, plan.chunks, sums.chunk, axis_name)
        return add_chunk(task, state, batch, plan.membership, sums)

    sums = lax.fori_loop(0, task.pass_shape[0], add, empty_sums(task))
    return finish_prototypes(state, sums, axis_name)


def scan_steps(
    task: Task,
    state: TrainState,
    index: ClipIndex,
    plan: EpochPlan,
    hyper: Hyper,
    axis_name: str | None = None,
) -> TrainState:
    """State after the steps of an epoch, as one loop on the device."""

    def body(_: Any, carried: Any) -> Any:
        state, kernels = carried
        turn = state.step % task.steps_per_epoch
        batch = take_batch(task, index, plan.steps, turn, axis_name)
        state, _ = train_step(task, state, batch, plan.key, hyper, axis_name, kernels)
        return state, cast_kernels(task, state.params)

    carried = state, cast_kernels(task, state.params)
    return lax.fori_loop(0, task.steps_per_epoch, body, carried)[0]


def run_epoch(
    task: Task,
    state: TrainState,
    index: ClipIndex,
    key: jax.Array,
    hyper: Hyper,
    *,
    axis_name: str | None = None,
) -> TrainState:
    """A whole epoch as one pure function.

    ``state.step`` must stand at the start of an epoch, ``index`` hold the features, and ``key`` be
    that of the stage. ``loss_sum`` of the result is the sum of the epoch's losses.
    """
    plan = plan_epoch(task, state.step, index, key, hyper)
    if task.prototypes_per_class:
        state = scan_pass(task, state, index, plan, axis_name)
    return scan_steps(task, state, index, plan, hyper, axis_name)
