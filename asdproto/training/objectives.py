"""Losses as training sees them: :class:`Objective`, the paper's two, and every other by name.

    task = dataclasses.replace(task, objective=make_objective("arcface", task.stage))

The stage's temperature stands for all: margin losses take its inverse as their scale, distances
twice it (between unit vectors, half the squared distance is one minus the cosine). Adaptive losses
set their own, and losses of pairs keep their authors' constants. Learned prototypes begin as random
unit vectors and are brought to unit length at every step; prototypes of the paper's losses are
means of embeddings. MagFace is not among them: it wants the length that unit embeddings lack.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from asdproto import losses
from asdproto import prototypes as proto
from asdproto.training.stage import EpisodePrototypes, Episodes, EpochPrototypes, Hyper, Stage
from asdproto.training.state import Batch, device_rows

# Sub-clusters and subspace dimensions a class, as their authors use them.
SUB_CLUSTERS = 16
SUBSPACE = 16
SUB_CENTERS = 3
# Center loss only pulls; on unit vectors its gradient is of the order of the softmax's at 1.
CENTER_WEIGHT = 0.1

Make = Callable[[Any], "Objective"]  # from a stage with the options that the loss reads
Options = TypeVar("Options")
# Losses and carried state of embeddings, unit prototypes, a batch, the state carried so far.
Compare = Callable[..., tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss as training sees it.

    Training calls ``loss`` with the loss's own parameters, the state before the step
    (:class:`asdproto.training.state.TrainState`: the epoch's prototypes, the loss's carried state),
    what the network makes of the batch (float32 unit embeddings ``[batch, dim]``, or anything else)
    and the batch (:class:`asdproto.training.state.Batch`), and by keyword with

    - ``key``: random key of the step, the same on all devices;
    - ``hyper``: :class:`asdproto.training.stage.Hyper`;
    - ``num_classes``: attribute classes of the data set, static;
    - ``axis_name``: mapped axis over which the batch is spread, or ``None``.

    A loss names the keywords that it needs and takes the others as ``**_``. It returns the loss of
    every example, shape ``[batch]``, and the new carried state. The step leaves out the losses of
    padding; a loss has to ask ``batch.where`` only where examples meet, or for its state.

    Attributes:
      name: For logs and files.
      loss: ``(params, state, embeddings, batch, **keywords) -> (losses, carried state)``, pure.
      init: ``(key, num_classes, dim) -> (params, state)``: learned vectors and carried state of
        the loss itself, such as class weights or an adaptive scale; ``None`` where it has none.
      epoch_prototypes: Whether the loss compares with means over all training clips, which are
        renewed before each epoch and fixed during it.
      sub_prototypes: Random sub-prototypes per class beside each of these means (MPE).
      prototype_crops: Random crops of every clip that these means are taken over.
      augment: ``(batch, **keywords) -> (crops, where)``, pure: what the encoder embeds in the place
        of the batch's crops, such as mixtures of them, and which of it are real. ``None`` leaves
        crops alone.
    """

    name: str
    loss: Callable[..., tuple[jax.Array, Any]]
    init: Callable[[jax.Array, int, int], tuple[Any, Any]] | None = None
    epoch_prototypes: bool = False
    sub_prototypes: int = 0
    prototype_crops: int = 1
    augment: Callable[..., tuple[jax.Array, jax.Array | None]] | None = None


def mpe_objective(options: EpochPrototypes) -> Objective:
    """Stage 1: Eq. 3, prototypes of all training clips and their random sub-prototypes."""

    def loss(params, state, embeddings, batch, *, hyper, **_):
        values = losses.multi_prototype_loss(
            embeddings, state.prototypes, batch.labels, temperature=hyper.temperature
        )
        return values, state.loss_state

    return Objective(
        name="mpe" if options.sub_prototypes else "prototypical",
        loss=loss,
        epoch_prototypes=True,
        sub_prototypes=options.sub_prototypes,
        prototype_crops=options.prototype_crops,
    )


def npe_objective(stage: EpisodePrototypes) -> Objective:
    """Stage 2: Eq. 6, prototypes of the episode and negatives mixed from them."""

    def loss(params, state, embeddings, batch, *, key, hyper, num_classes, axis_name):
        targets, sums, counts = batch_sums(stage, embeddings, batch, num_classes, axis_name)
        where = batch.where
        options: dict[str, Any] = {"temperature": hyper.temperature, "class_where": counts > 0}
        if stage.leave_one_out:
            own, exists = proto.leave_one_out_prototypes(embeddings, targets, sums, counts)
            options["own_prototypes"] = lax.stop_gradient(own) if stage.stop_gradient else own
            where = exists if where is None else exists & where
        prototypes = proto.class_means(sums, counts)
        if stage.mix_range is None:
            values = losses.prototypical_loss(
                embeddings, prototypes, targets, where=where, **options
            )
        else:
            shape = embeddings.shape[0], prototypes.shape[0]
            values = losses.negative_prototype_loss(
                embeddings,
                prototypes,
                targets,
                draw_mix(key, shape, hyper.mix_low, hyper.mix_high, axis_name),
                normalize_mixed=stage.normalize_mixed,
                where=where,
                **options,
            )
        return values, state.loss_state

    return Objective("prototypical" if stage.mix_range is None else "npe", loss)


def batch_sums(
    stage: EpisodePrototypes,
    embeddings: jax.Array,
    batch: Batch,
    num_classes: int,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums behind the prototypes of a batch, over all devices.

    The classes of an episode are those of the episode, by their position in it: N prototypes
    instead of one for every class of the data set.

    Returns:
      Class of every example among the batch's, int32 ``[batch]``; sums, float32
      ``[classes, dim]``; counts, float32 ``[classes]``.
    """
    targets = batch.labels
    if isinstance(stage, Episodes):
        num_classes = stage.ways
        position = device_rows(axis_name, embeddings.shape[0])
        # lax.div, not //: rounding negative numbers down is a kernel of its own on a GPU.
        targets = jnp.minimum(lax.div(position, jnp.int32(stage.shots)), num_classes - 1)
    summands = lax.stop_gradient(embeddings) if stage.stop_gradient else embeddings
    sums, counts = proto.class_sums(summands, targets, num_classes, where=batch.where)
    if axis_name is not None:
        sums, counts = lax.psum((sums, counts), axis_name)
    return targets, sums, counts


def draw_mix(
    key: jax.Array,
    shape: tuple[int, int],
    low: jax.Array | float,
    high: jax.Array | float,
    axis_name: str | None,
) -> jax.Array:
    """This device's rows of the mixing coefficients of a batch, float32 ``[batch, width]``.

    They are drawn for the global batch, so that they do not depend on the number of devices.
    """
    batch, width = shape
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    mix = proto.sample_mix(key, (batch * devices, width), low, high)
    if axis_name is None:
        return mix
    return lax.dynamic_slice_in_dim(mix, lax.axis_index(axis_name) * batch, batch)


def reconstruction_objective() -> Objective:
    """Mean squared error of an autoencoder: the network maps crops to their likes."""

    def loss(params, state, rebuilt, batch, **_):
        return jnp.mean(jnp.square(rebuilt - batch.crops), axis=(1, 2)), state.loss_state

    return Objective("reconstruction", loss)


# --- by name


def make_objective(name: str, stage: Stage) -> Objective:
    """A loss of :data:`OBJECTIVES` as an objective.

    Args:
      name: Its name.
      stage: The stage that it serves, with the sampler and the options that the loss reads.

    Raises:
      ValueError: There is no such loss, or the stage does not suit it.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"there is no loss {name!r}; expected one of {', '.join(OBJECTIVES)}")
    return dataclasses.replace(OBJECTIVES[name](stage), name=name)


def _with(stage: Any, options: type[Options], **changes: Any) -> Options:
    """The stage, changed, if it has such options."""
    if not isinstance(stage, options):
        fields = ", ".join(field.name for field in dataclasses.fields(options))  # type: ignore[arg-type]
        raise ValueError(
            f"found a stage {type(stage).__name__}; this loss reads {fields}, which a stage gets "
            f"by inheriting {options.__name__}"
        )
    return dataclasses.replace(stage, **changes)  # type: ignore[type-var]


def _mixing(stage: Stage, **changes: Any) -> EpisodePrototypes:
    options = _with(stage, EpisodePrototypes, **changes)
    if options.mix_range is None:
        raise ValueError("mix_range=None: losses with mixed negatives need a range, as (0.25, 0.5)")
    return options


def _multi_prototype(stage: Stage) -> Objective:
    options = _with(stage, EpochPrototypes)
    number = max(options.sub_prototypes, 1)
    return mpe_objective(dataclasses.replace(options, sub_prototypes=number))


def _expanded_negatives(stage: Stage) -> Objective:
    """MPE and NPE in one: the epoch's prototypes and sub-prototypes, and negatives mixed of all."""
    normalize = _mixing(stage).normalize_mixed

    def loss(params, state, embeddings, batch, *, key, hyper, axis_name, **_):
        classes, per_class = state.prototypes.shape[:2]
        shape = embeddings.shape[0], classes * per_class
        mix = draw_mix(key, shape, hyper.mix_low, hyper.mix_high, axis_name)
        values = losses.multi_negative_prototype_loss(
            embeddings,
            state.prototypes,
            batch.labels,
            mix.reshape(-1, classes, per_class),
            normalize_mixed=normalize,
            temperature=hyper.temperature,
        )
        return values, state.loss_state

    return dataclasses.replace(_multi_prototype(stage), loss=loss)


def _with_batch_means(compare: Callable[..., jax.Array]) -> Make:
    """An objective against the means of the batch's classes.

    Args:
      compare: ``(embeddings, targets, sums, counts, temperature)`` -> loss of every example.
    """

    def make(stage: Any) -> Objective:
        options = _with(stage, EpisodePrototypes)

        def loss(params, state, embeddings, batch, *, hyper, num_classes, axis_name, **_):
            targets, *sums = batch_sums(options, embeddings, batch, num_classes, axis_name)
            return compare(embeddings, targets, *sums, hyper.temperature), state.loss_state

        return Objective("", loss)

    return make


def _angular_prototypical(embeddings, targets, sums, counts, temperature):
    """Softmax of cosines to the batch's class means, without the anchor in its own."""
    own, exists = proto.leave_one_out_prototypes(embeddings, targets, sums, counts)
    return losses.angular_prototypical_loss(
        embeddings,
        proto.class_means(sums, counts),
        targets,
        own_prototypes=own,
        where=exists,
        class_where=counts > 0,
        scale=1 / temperature,
    )


def _prototypical_network(embeddings, targets, sums, counts, temperature):
    """Squared distances to the batch's plain class means, the anchor's own included."""
    return losses.prototypical_network_loss(
        embeddings,
        sums / jnp.maximum(counts, 1)[:, None],
        targets,
        temperature=2 * temperature,
        class_where=counts > 0,
    )


def _random_units(key: jax.Array, *shape: int) -> jax.Array:
    return proto.l2_normalize(jax.random.normal(key, shape, jnp.float32))


def _learned(
    compare: Compare, *per_class: int, carried: Callable[[int], Any] = lambda num_classes: {}
) -> Make:
    """An objective against learned unit prototypes.

    Args:
      compare: ``(embeddings, prototypes, batch, carried state, **keywords)`` -> losses and the new
        carried state.
      *per_class: Prototypes of each class; one when empty.
      carried: Number of classes -> carried state at the start.
    """

    def init(key, num_classes, dim):
        prototypes = _random_units(key, num_classes, *per_class, dim)
        return {"prototypes": prototypes}, carried(num_classes)

    def loss(params, state, embeddings, batch, **keywords):
        prototypes = proto.l2_normalize(params["prototypes"])
        return compare(embeddings, prototypes, batch, state.loss_state, **keywords)

    return lambda stage: Objective("", loss, init)


def _options(hyper: Hyper, reads: str) -> dict[str, Any]:
    """The temperature as a loss reads it; between unit vectors, distances take twice of it."""
    temperature = hyper.temperature
    return {
        "temperature": {"temperature": temperature},
        "distance temperature": {"temperature": 2 * temperature},
        "scale": {"scale": 1 / temperature},
        "nothing": {},
    }[reads]


def _plain(function: Callable[..., jax.Array], reads: str) -> Compare:
    def compare(embeddings, prototypes, batch, carried, *, hyper, **_):
        values = function(embeddings, prototypes, batch.labels, **_options(hyper, reads))
        return values, carried

    return compare


def _adaptive(function: Callable[..., tuple[jax.Array, Any]]) -> Compare:
    """At a scale that follows training, which is the carried state."""

    def compare(embeddings, prototypes, batch, carried, *, axis_name, **_):
        return function(
            embeddings,
            prototypes,
            batch.labels,
            carried,
            where=batch.where,
            axis_name=axis_name,
        )

    return compare


def _gather(axis_name: str | None, embeddings: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
    """Embeddings, labels and mask of the global batch, for losses that know no devices."""
    where = jnp.ones(batch.labels.shape, bool) if batch.where is None else batch.where
    arrays = embeddings, batch.labels, where
    return arrays if axis_name is None else lax.all_gather(arrays, axis_name, tiled=True)


def _proxy_anchor(embeddings, prototypes, batch, carried, *, hyper, axis_name, **_):
    """One number a class of the global batch; every example is given their mean."""
    z, labels, where = _gather(axis_name, embeddings, batch)
    options = _options(hyper, "scale")
    values = losses.proxy_anchor_loss(z, prototypes, labels, where=where, **options)
    return jnp.full(batch.labels.shape, jnp.mean(values)), carried


def _logit_adjusted(embeddings, prototypes, batch, carried, *, hyper, num_classes, axis_name, **_):
    """Softmax, adjusted to the classes' shares of what was met so far."""
    labels, where = _gather(axis_name, embeddings, batch)[1:]
    met = jax.nn.one_hot(labels, num_classes) * where[:, None]
    counts = carried["counts"] + met.sum(axis=0)
    values = losses.logit_adjusted_loss(
        embeddings, prototypes, batch.labels, counts, temperature=hyper.temperature
    )
    return values, {"counts": counts}


def _softmax_center(stage: Stage) -> Objective:
    """Softmax, and center loss to learned centers beside it."""
    softmax = OBJECTIVES["softmax"](stage)
    assert softmax.init is not None
    init_softmax = softmax.init

    def init(key, num_classes, dim):
        one, other = jax.random.split(key)
        params, carried = init_softmax(one, num_classes, dim)
        return {**params, "centers": _random_units(other, num_classes, dim)}, carried

    def loss(params, state, embeddings, batch, **keywords):
        values, carried = softmax.loss(params, state, embeddings, batch, **keywords)
        center = losses.center_loss(embeddings, params["centers"], batch.labels)
        return values + CENTER_WEIGHT * center, carried

    return Objective("", loss, init)


def _in_batch(function: Callable[..., jax.Array], reads: str = "nothing") -> Make:
    """Examples of a class are each other's positives."""

    def loss(params, state, embeddings, batch, *, hyper, axis_name, **_):
        options = {"where": batch.where, "axis_name": axis_name, **_options(hyper, reads)}
        return function(embeddings, batch.labels, **options), state.loss_state

    return lambda stage: Objective("", loss)


def _n_pair(stage: Any) -> Objective:
    """The first two clips of every class of an episode; every example is given the mean."""
    ways, shots = _with(stage, Episodes).ways, stage.shots
    if shots < 2:
        raise ValueError(f"n_pair takes two clips of a class: shots={shots}; set 2 or more")

    def loss(params, state, embeddings, batch, *, hyper, axis_name, **_):
        z = _gather(axis_name, embeddings, batch)[0][: ways * shots]
        pairs = (z / jnp.sqrt(hyper.temperature)).reshape(ways, shots, -1)
        values = losses.n_pair_loss(pairs[:, 0], pairs[:, 1])
        return jnp.full(batch.labels.shape, jnp.mean(values)), state.loss_state

    return Objective("", loss)


def _views(name: str, function: Callable[..., jax.Array]) -> Make:
    """Neighbors in an episode, clips of one class, are the two views of each other.

    Unit vectors of D dimensions have components of the size of D^-1/2; they are scaled to 1, which
    is the deviation that the variance term of VICReg asks for.
    """

    def loss(params, state, embeddings, batch, *, axis_name, **_):
        size, dim = embeddings.shape
        if size % 2:
            raise ValueError(
                f"{name} takes pairs, found {size} examples a device; choose numbers of devices "
                "and shots that leave an even number on each"
            )
        pairs = (embeddings * dim**0.5).reshape(size // 2, 2, dim)
        where = None if batch.where is None else batch.where.reshape(-1, 2).all(axis=1)
        values = function(pairs[:, 0], pairs[:, 1], where=where, axis_name=axis_name)
        return jnp.repeat(jnp.broadcast_to(values, size // 2), 2), state.loss_state

    def make(stage: Any) -> Objective:
        if _with(stage, Episodes).shots % 2:
            raise ValueError(f"{name} pairs neighbors: shots={stage.shots}; set an even number")
        return Objective("", loss)

    return make


def _vicreg_sum(first: jax.Array, second: jax.Array, **options: Any) -> jax.Array:
    terms = losses.vicreg_loss(first, second, **options)
    return terms.invariance + terms.variance + terms.covariance


OBJECTIVES: dict[str, Make] = {
    # The paper's.
    "prototypical": lambda stage: mpe_objective(_with(stage, EpochPrototypes, sub_prototypes=0)),
    "multi_prototype": _multi_prototype,
    "negative_prototype": lambda stage: npe_objective(_mixing(stage, normalize_mixed=False)),
    "negative_prototype_unit": lambda stage: npe_objective(_mixing(stage, normalize_mixed=True)),
    "mpe_npe": _expanded_negatives,
    # Means of the batch.
    "prototypical_network": _with_batch_means(_prototypical_network),
    "angular_prototypical": _with_batch_means(_angular_prototypical),
    # Learned prototypes.
    "softmax": _learned(_plain(losses.proxy_softmax_loss, "temperature")),
    "softmax_center": _softmax_center,
    "logit_adjusted": _learned(
        _logit_adjusted, carried=lambda num_classes: {"counts": jnp.ones(num_classes)}
    ),
    "focal": _learned(_plain(losses.focal_loss, "temperature")),
    "proxy_nca": _learned(_plain(losses.proxy_nca_loss, "distance temperature")),
    "soft_triple": _learned(_plain(losses.soft_triple_loss, "scale"), SUB_CENTERS),
    "proxy_anchor": _learned(_proxy_anchor),
    "arcface": _learned(_plain(losses.arcface_loss, "scale")),
    "sub_center_arcface": _learned(_plain(losses.sub_center_arcface_loss, "scale"), SUB_CENTERS),
    "cosface": _learned(_plain(losses.cosface_loss, "scale")),
    "sphereface": _learned(_plain(losses.sphereface_loss, "scale")),
    "adacos": _learned(_adaptive(losses.adacos_loss), carried=losses.adacos_init),
    "sub_cluster_adacos": _learned(
        _adaptive(losses.sub_cluster_adacos_loss),
        SUB_CLUSTERS,
        carried=functools.partial(losses.adacos_init, sub_clusters=SUB_CLUSTERS),
    ),
    # Its scale goes by classes, however many vectors span a class's subspace.
    "adaproj": _learned(_adaptive(losses.adaproj_loss), SUBSPACE, carried=losses.adacos_init),
    # Examples of the batch.
    "supervised_contrastive": _in_batch(losses.supervised_contrastive_loss, "temperature"),
    "nt_xent": _in_batch(losses.nt_xent_loss, "temperature"),
    "multi_similarity": _in_batch(losses.multi_similarity_loss),
    "circle": _in_batch(losses.circle_loss),
    "triplet": _in_batch(functools.partial(losses.triplet_loss, hard=True)),
    "n_pair": _n_pair,
    "vicreg": _views("vicreg", _vicreg_sum),
    "barlow_twins": _views("barlow_twins", losses.barlow_twins_loss),
}
