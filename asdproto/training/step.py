"""The pure functions of training: draw an epoch, renew prototypes, take a step.

None of them knows how it is compiled: they take ``axis_name`` and run alike under jit, pmap and
vmap. The random numbers of an epoch are functions of the key and the epoch alone, drawn for the
global batch, so one device, many devices, a loop on the host and a loop on the device see the
same batches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from asdproto import prototypes as proto
from asdproto.sampling import crop_starts, plan_episodes, plan_permutation, take_crops
from asdproto.training.stage import Hyper, LossInputs
from asdproto.training.state import Packing, Table, Task, TrainState, members_of


class EpochDraw(NamedTuple):
    """Random choices of one epoch, for all devices.

    Attributes:
      clips: int32, shape ``[steps, global_batch]``; padding repeats the first clip.
      starts: int32, shape ``[steps, global_batch]``, first frames of the crops.
      pass_starts: int32, shape ``[chunks * chunk * devices]``, crops of the prototype pass.
      members: float32, shape ``[1 + sub_prototypes, chunks * chunk * devices]``: who counts in
        each prototype of its class; zeros for padding.
      key: Random key for the losses of the epoch's steps.
    """

    clips: jax.Array
    starts: jax.Array
    pass_starts: jax.Array
    members: jax.Array
    key: jax.Array


class Batch(NamedTuple):
    """One device's part of a batch.

    Attributes:
      crops: Floating, shape ``[batch, crop, mels]``, as stored.
      labels: int32, shape ``[batch]``.
      where: Boolean, shape ``[batch]``, or ``None`` when nothing is padding.
      members: float32, shape ``[1 + sub_prototypes, batch]`` in the prototype pass, else ``None``.
    """

    crops: jax.Array
    labels: jax.Array
    where: jax.Array | None = None
    members: jax.Array | None = None


class Sums(NamedTuple):
    """Running sums of the prototype pass.

    Attributes:
      sums: float32, shape ``[1 + sub_prototypes, classes, dim]``.
      counts: float32, shape ``[1 + sub_prototypes, classes]``.
      chunk: int32 scalar, the next chunk.
    """

    sums: jax.Array
    counts: jax.Array
    chunk: jax.Array


def draw_epoch(
    task: Task, step: jax.Array, table: Table, key: jax.Array, hyper: Hyper
) -> EpochDraw:
    """Draws everything random of the epoch that ``step`` lies in.

    Args:
      task: Static description.
      step: int32 scalar, steps done.
      table: The training clips.
      key: Random key of the stage.
      hyper: Traced hyper-parameters.

    Returns:
      The epoch's choices.
    """
    stage = task.stage
    epoch_key = jax.random.fold_in(key, step // task.steps)
    plan_key, pass_key, mask_key, loss_key = jax.random.split(epoch_key, 4)
    if stage.sampler == "random":
        plan = plan_permutation(plan_key, table.frames, stage.batch_size, task.crop)
    else:
        plan = plan_episodes(
            plan_key,
            table.frames,
            members_of(table, task.largest_class),
            steps=task.steps,
            num_ways=stage.ways,
            num_shots=stage.shots,
            crop=task.crop,
        )
    # A random epoch may be cut short, or go round, when its number of steps is given.
    turn = jnp.arange(task.steps) % plan.clips.shape[0]
    pad = ((0, 0), (0, task.global_batch - stage.batch))
    clips, starts = (jnp.pad(jnp.take(x, turn, axis=0), pad) for x in plan)

    padding = task.chunks * task.device_chunk * task.num_devices - task.num_clips
    starts_all = jnp.pad(crop_starts(pass_key, table.frames, task.crop), (0, padding))
    members = jnp.ones((min(task.members, 1), task.num_clips), jnp.float32)
    if task.members > 1:
        masks = jax.vmap(
            lambda key: proto.subset_mask(key, table.labels, task.num_classes, hyper.mpe_ratio)
        )(jax.random.split(mask_key, task.members - 1))
        members = jnp.concatenate([members, masks.astype(jnp.float32)])
    members = jnp.pad(members, ((0, 0), (0, padding)))
    return EpochDraw(clips, starts, starts_all, members, loss_key)


def _part(axis_name: str | None, size: int) -> jax.Array | int:
    """Position of this device's first example in a global batch of ``size`` per device."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * size


def batch_rows(
    task: Task, draw: EpochDraw, step: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Clips and first frames of this device's part of a step, int32, shape ``[device_batch]``."""
    index = step % task.steps
    first = _part(axis_name, task.device_batch)
    sizes = (1, task.device_batch)
    clips = lax.dynamic_slice(draw.clips, (index, first), sizes)[0]
    return clips, lax.dynamic_slice(draw.starts, (index, first), sizes)[0]


def take_batch(
    task: Task,
    features: jax.Array,
    table: Table,
    draw: EpochDraw,
    step: jax.Array,
    axis_name: str | None,
) -> Batch:
    """Gathers this device's part of a step's batch from resident features."""
    clips, starts = batch_rows(task, draw, step, axis_name)
    crops = take_crops(features, clips, starts, task.crop)
    return Batch(crops, jnp.take(table.labels, clips), padding(task, axis_name))


def padding(task: Task, axis_name: str | None) -> jax.Array | None:
    """Which of this device's rows are real, boolean ``[device_batch]``; ``None`` when all are."""
    if task.global_batch == task.stage.batch:
        return None
    rows = _part(axis_name, task.device_batch) + jnp.arange(task.device_batch)
    return rows < task.stage.batch


def chunk_rows(
    task: Task, table: Table, draw: EpochDraw, chunk: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array, Batch]:
    """Clips, first frames and (without crops) the batch of one chunk of the prototype pass."""
    size = task.device_chunk
    first = chunk * size * task.num_devices + _part(axis_name, size)
    rows = first + jnp.arange(size, dtype=jnp.int32)
    valid = rows < task.num_clips
    clips = jnp.where(valid, rows, 0)
    starts = lax.dynamic_slice_in_dim(draw.pass_starts, first, size)
    members = lax.dynamic_slice_in_dim(draw.members, first, size, axis=1)
    labels = jnp.where(valid, jnp.take(table.labels, clips), -1)
    return clips, starts, Batch(jnp.zeros(0), labels, None, members)


def standardize(crops: jax.Array, table: Table) -> jax.Array:
    """Stored crops to zero mean and unit deviation per mel band, float32."""
    return (crops.astype(jnp.float32) - table.mean) * table.scale


def empty_sums(task: Task) -> Sums:
    """Sums before the first chunk."""
    shape = (task.members, task.num_classes)
    return Sums(jnp.zeros((*shape, task.model.embedding_dim)), jnp.zeros(shape), jnp.int32(0))


def add_chunk(task: Task, state: TrainState, table: Table, batch: Batch, sums: Sums) -> Sums:
    """Adds one chunk's embeddings, in evaluation mode, to the sums of their classes."""
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    crops = standardize(batch.crops, table)
    embeddings: Any = task.model.apply(variables, crops, train=False)
    more, counts = jax.vmap(
        lambda weights: proto.class_sums(
            embeddings, batch.labels, task.num_classes, weights=weights
        )
    )(batch.members)
    return Sums(sums.sums + more, sums.counts + counts, sums.chunk + 1)


def finish_prototypes(
    task: Task, state: TrainState, sums: Sums, axis_name: str | None
) -> TrainState:
    """State with the prototypes that the sums of all devices give."""
    totals, counts = sums.sums, sums.counts
    if axis_name is not None:
        totals, counts = lax.psum((totals, counts), axis_name)
    prototypes = jnp.swapaxes(proto.class_means(totals, counts), 0, 1)
    return state._replace(prototypes=prototypes)


def train_step(
    task: Task,
    state: TrainState,
    table: Table,
    batch: Batch,
    key: jax.Array,
    hyper: Hyper,
    axis_name: str | None = None,
    packing: Packing | None = None,
    weights: Any = None,
) -> tuple[TrainState, jax.Array]:
    """One update.

    Args:
      task: Static description.
      state: State before the step.
      table: The training clips.
      batch: This device's part of the batch.
      key: Random key of the epoch's losses.
      hyper: Traced hyper-parameters.
      axis_name: Mapped axis over which the batch is spread, or ``None``.
      packing: How the state is packed, where it is.
      weights: ``packing.weights`` of the state's parameters.

    Returns:
      State after the step, and the loss of the global batch, float32 scalar. Both are the same on
      all devices.
    """
    stage = task.stage
    crops = standardize(batch.crops, table)
    key = jax.random.fold_in(key, state.step)

    def loss_fn(weights: Any) -> tuple[jax.Array, tuple[Any, Any]]:
        params = weights if packing is None else packing.unpack(weights)
        variables = {"params": params["encoder"], "batch_stats": state.batch_stats}
        embeddings, updated = task.model.apply(
            variables, crops, train=True, where=batch.where, mutable=["batch_stats"]
        )
        inputs = _loss_inputs(task, state, table, batch, embeddings, key, hyper, axis_name)
        values, loss_state = task.objective.loss(params["loss"], state.loss_state, inputs)
        if batch.where is not None:
            values = jnp.where(batch.where, values, 0)
        # The mean over devices of this is the mean over the global batch, padding left out.
        loss = jnp.sum(values) * (task.num_devices / stage.batch)
        return loss, (updated.get("batch_stats", {}), loss_state)

    (loss, (batch_stats, loss_state)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params if weights is None else weights
    )
    gradients = jax.tree.map(lambda gradient: gradient.astype(jnp.float32), gradients)
    if axis_name is not None:
        loss, gradients, batch_stats = lax.pmean((loss, gradients, batch_stats), axis_name)
    direction, optimizer = task.optimizer().update(gradients, state.optimizer, state.params)
    rate = stage.learning_rate(state.step // task.steps) * hyper.learning_rate_scale
    params = optax.apply_updates(state.params, jax.tree.map(lambda d: -rate * d, direction))
    running = jnp.where(state.step % task.steps == 0, 0.0, state.loss_sum)
    state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        optimizer=optimizer,
        loss_state=loss_state,
        prototypes=state.prototypes,
        loss_sum=running + loss,
    )
    return state, loss


def _loss_inputs(
    task: Task,
    state: TrainState,
    table: Table,
    batch: Batch,
    embeddings: jax.Array,
    key: jax.Array,
    hyper: Hyper,
    axis_name: str | None,
) -> LossInputs:
    """The batch as the loss sees it, with the prototypes that the objective asks for."""
    objective = task.objective
    rows = _part(axis_name, task.device_batch)
    prototypes = present = sums = counts = None
    targets = batch.labels
    if objective.prototypes == "epoch":
        prototypes, present = state.prototypes, jnp.asarray(table.counts) > 0
    elif objective.prototypes == "batch":
        classes = task.num_classes
        if task.stage.sampler == "episodes":
            # The episode's own classes, by position: N prototypes instead of one per class.
            classes = task.stage.ways
            position = rows + jnp.arange(task.device_batch, dtype=jnp.int32)
            targets = jnp.minimum(position // task.stage.shots, classes - 1)
        summands = lax.stop_gradient(embeddings) if objective.stop_gradient else embeddings
        sums, counts = proto.class_sums(summands, targets, classes, where=batch.where)
        if axis_name is not None:
            sums, counts = lax.psum((sums, counts), axis_name)
        prototypes, present = proto.class_means(sums, counts)[:, None], counts > 0
    return LossInputs(
        embeddings=embeddings,
        labels=batch.labels,
        where=batch.where,
        prototypes=prototypes,
        targets=targets,
        present=present,
        sums=sums,
        counts=counts,
        key=key,
        hyper=hyper,
        rows=rows,
        global_batch=task.global_batch,
        axis_name=axis_name,
        num_classes=task.num_classes,
    )
