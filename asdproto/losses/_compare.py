"""The comparison that all prototype losses share, dense, chunked by classes, or sharded.

Every loss against prototypes is a function of two things: the scores of an embedding against its
own class's prototypes, and the logsumexp of its scores against all others. Both are sums over
classes in their own sense (plain, and of exponentials), so they can be taken piece by piece. The
gradient is written out: the weight of a score in the whole is ``exp(score - logsumexp)``, which
needs no second logsumexp, and no more memory than the scores. In pieces the scores are computed
again instead of kept, which bounds memory by the batch times one piece, and is exact.

Shapes: batch ``[...]``, ``D`` dimensions, ``C`` classes of ``M`` prototypes each; ``R = C * M``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from asdproto.losses._numerics import (
    LOG_ZERO,
    dots,
    log_add,
    masked_logsumexp,
    softplus,
    squared_length,
)
from asdproto.prototypes import sample_class_mix

Arrays = dict[str, jax.Array]
# From scores [..., C, M] and what Prepare made of the prototypes [C, M, D] to scores [..., C, M'].
Project = Callable[[jax.Array, jax.Array], jax.Array]
Prepare = Callable[[jax.Array], jax.Array]

# Axis of classes in every array that has one.
_CLASS_AXIS = {"prototypes": -3, "mix": -2, "bias": -1, "where": -2}


class _Options(NamedTuple):
    """What is static in a comparison."""

    prepare: Prepare | None
    project: Project | None
    normalize_mixed: bool
    chunk_size: int
    class_axis_name: str | None


class _Inputs(NamedTuple):
    """Arrays of a comparison, by whether they have gradients and are per class."""

    shared: Arrays  # embeddings, scale, low, high
    per_class: Arrays  # prototypes, mix, bias
    fixed: Arrays  # labels (from this device's first class on), key, offset
    fixed_per_class: Arrays  # where


def _mixed_scores(
    scores: jax.Array,
    squared: jax.Array,
    prototype_squared: jax.Array,
    mix: jax.Array,
    normalize: bool,
) -> jax.Array:
    """Scores of mixed negatives, z.(l z + (1-l) p), from z.p, z.z and p.p alone."""
    mixed = mix * squared + (1 - mix) * scores
    if not normalize:
        return mixed
    length2 = mix**2 * squared + (1 - mix) ** 2 * prototype_squared + 2 * mix * (1 - mix) * scores
    # Below this the sum is rounding error of float32: the mixed vector counts as zero.
    zero = length2 <= 1e-8
    return jnp.where(zero, 0, mixed * lax.rsqrt(jnp.where(zero, 1, length2)))


def _take(inputs: _Inputs, start: jax.Array | int, size: int) -> _Inputs:
    def take(arrays: Arrays) -> Arrays:
        return {
            name: lax.dynamic_slice_in_dim(x, start, size, axis=x.ndim + _CLASS_AXIS[name])
            for name, x in arrays.items()
        }

    return inputs._replace(
        per_class=take(inputs.per_class), fixed_per_class=take(inputs.fixed_per_class)
    )


def _flat(prototypes: jax.Array) -> jax.Array:
    return prototypes.reshape(-1, prototypes.shape[-1])


def _prepare(
    options: _Options, shared: Arrays, per_class: Arrays, fixed: Arrays, first: jax.Array | int
) -> Arrays:
    """What :func:`_terms` needs beside the scores, all small or elementwise."""
    embeddings, prototypes = shared["embeddings"], per_class["prototypes"]
    classes, count, _ = prototypes.shape
    side = {"scale": shared["scale"]}
    if "bias" in per_class:
        side["bias"] = per_class["bias"]
    if options.prepare is not None:
        side["prepared"] = options.prepare(prototypes)
    mix = per_class.get("mix")
    if "key" in fixed:
        mix = sample_class_mix(
            fixed["key"],
            embeddings.shape[:-1],
            classes,
            shared["low"],
            shared["high"],
            per_class=count,
            first=fixed["offset"] + first,
        )
    if mix is not None:
        side["mix"] = mix.reshape(*mix.shape[:-2], classes * count)
        side["squared"] = squared_length(embeddings)[..., None]
        if options.normalize_mixed:
            side["prototype_squared"] = squared_length(_flat(prototypes))
    return side


def _terms(
    options: _Options, classes: int, scores: jax.Array, side: Arrays
) -> tuple[jax.Array, list[jax.Array]]:
    """Scores after projection and bias, and the logits that others contribute; elementwise."""
    if options.project is not None:
        scores = scores.reshape(*scores.shape[:-1], classes, scores.shape[-1] // classes)
        scores = options.project(scores, side["prepared"])
        scores = scores.reshape(*scores.shape[:-2], classes * scores.shape[-1])
    if "bias" in side:
        scores = scores + side["bias"] / side["scale"]
    terms = [scores * side["scale"]]
    if "mix" in side:
        mixed = _mixed_scores(
            scores,
            side["squared"],
            side.get("prototype_squared", side["squared"]),
            side["mix"].astype(scores.dtype),
            options.normalize_mixed,
        )
        terms.append(mixed * side["scale"])
    return scores, terms


def _masks(
    inputs: _Inputs, classes: int, rows: int, first: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Place of rows ``[..., R']`` among the example's own; which of them count as others."""
    begin = (inputs.fixed["labels"][..., None] - first) * (rows // classes)
    place = jnp.arange(rows, dtype=jnp.int32) - begin
    others = (place < 0) | (place >= rows // classes)
    if "where" in inputs.fixed_per_class:
        where = inputs.fixed_per_class["where"]
        others &= where.reshape(*where.shape[:-2], rows)
    return place, others


def _piece(
    options: _Options, inputs: _Inputs, first: jax.Array | int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Own scores ``[..., M']`` and logsumexp of others ``[...]`` of some classes; raw scores."""
    prototypes = inputs.per_class["prototypes"]
    classes = prototypes.shape[0]
    raw = dots(inputs.shared["embeddings"], _flat(prototypes))
    side = _prepare(options, inputs.shared, inputs.per_class, inputs.fixed, first)
    scores, terms = _terms(options, classes, raw, side)
    rows = scores.shape[-1]
    _, others = _masks(inputs, classes, rows, first)
    place = inputs.fixed["labels"] - first
    here = (place >= 0) & (place < classes)
    per_class = rows // classes
    index = jnp.clip(place, 0, classes - 1)[..., None] * per_class + jnp.arange(per_class)
    own = jnp.take_along_axis(scores, index, axis=-1)
    return jnp.where(here[..., None], own, 0), masked_logsumexp(terms, others), raw


def _forward(options: _Options, inputs: _Inputs) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Own scores and logsumexp over all classes of all devices; scores if they are in one piece."""
    classes = inputs.per_class["prototypes"].shape[0]
    size = min(options.chunk_size, classes)

    def add(
        total: tuple[jax.Array, jax.Array], first: jax.Array | int, size: int
    ) -> tuple[jax.Array, jax.Array]:
        own, others, _ = _piece(options, _take(inputs, first, size), first)
        return total[0] + own, log_add(total[1], others)

    whole = classes // size
    own, others, raw = _piece(options, _take(inputs, 0, size), 0)
    if whole > 1:
        own, others = lax.fori_loop(
            1, whole, lambda i, total: add(total, i * size, size), (own, others)
        )
    if classes % size:
        own, others = add((own, others), whole * size, classes % size)
    if options.class_axis_name is not None:
        own = lax.psum(own, options.class_axis_name)
        top = lax.pmax(others, options.class_axis_name)
        others = top + jnp.log(lax.psum(jnp.exp(others - top), options.class_axis_name))
    return own, others, raw if size == classes else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _own_and_others(options: _Options, inputs: _Inputs) -> tuple[jax.Array, jax.Array]:
    return _forward(options, inputs)[:2]


def _forward_and_save(options: _Options, inputs: Any) -> tuple[Any, Any]:
    # Only names: the gradients that are wanted are known while tracing.
    wanted = [
        {name: () for name, x in arrays.items() if x.perturbed}
        for arrays in (inputs.shared, inputs.per_class)
    ]
    inputs = jax.tree.map(lambda x: x.value, inputs, is_leaf=lambda x: hasattr(x, "perturbed"))
    own, others, raw = _forward(options, inputs)
    return (own, others), (inputs, others, raw, wanted)


def _piece_gradients(
    options: _Options,
    inputs: _Inputs,
    wanted: tuple[Any, Any],
    first: jax.Array | int,
    raw: jax.Array | None,
    saved_others: jax.Array,
    own_gradient: jax.Array,
    others_gradient: jax.Array,
) -> tuple[Arrays, Arrays]:
    """Gradients of some classes' part, for the wanted arrays only."""
    shared, per_class = inputs.shared, inputs.per_class
    embeddings, prototypes = shared["embeddings"], per_class["prototypes"]
    classes = prototypes.shape[0]
    if raw is None:
        raw = dots(embeddings, _flat(prototypes))

    def prepare(shared: Arrays, per_class: Arrays) -> Arrays:
        merged = ({**inputs.shared, **shared}, {**inputs.per_class, **per_class})
        return _prepare(options, *merged, inputs.fixed, first)

    variables = [
        {name: x[name] for name in w} for x, w in zip((shared, per_class), wanted, strict=True)
    ]
    side, pull_side = jax.vjp(prepare, *variables)
    (scores, terms), pull_terms = jax.vjp(functools.partial(_terms, options, classes), raw, side)
    place, others = _masks(inputs, classes, scores.shape[-1], first)
    # A comparison for each own prototype: a loop that looks up which one it is does not vectorize.
    own_part = sum(
        jnp.where(place == m, own_gradient[..., m : m + 1], 0)
        for m in range(own_gradient.shape[-1])
    )
    # Where nothing is counted the weights below would be exp(0).
    others_gradient = jnp.where(saved_others > LOG_ZERO / 2, others_gradient, 0)
    parts = [
        jnp.exp(jnp.where(others, x, LOG_ZERO) - saved_others[..., None])
        * others_gradient[..., None]
        for x in terms
    ]
    raw_gradient, side_gradient = pull_terms((own_part, parts))
    shared_gradient, class_gradient = pull_side(side_gradient)
    # As in the forward pass: products of the inputs' precision, sums in float32.
    raw_gradient = raw_gradient.astype(jnp.result_type(embeddings, prototypes))
    product = functools.partial(
        jnp.einsum, preferred_element_type=raw.dtype, precision=lax.Precision.HIGHEST
    )
    if "embeddings" in wanted[0]:
        direct = product("...r,rd->...d", raw_gradient, _flat(prototypes))
        shared_gradient["embeddings"] = direct + shared_gradient["embeddings"]
    if "prototypes" in wanted[1]:
        direct = product("...r,...d->rd", raw_gradient, embeddings).reshape(prototypes.shape)
        class_gradient["prototypes"] = direct + class_gradient["prototypes"]
    return shared_gradient, class_gradient


def _backward(options: _Options, saved: Any, gradients: Any) -> tuple[Any]:
    inputs, others, raw, wanted = saved
    gradients = [
        jnp.zeros(x.shape, x.dtype) if isinstance(x, SymbolicZero) else x for x in gradients
    ]
    if options.class_axis_name is not None:
        # Every device returns the same losses; what counts is the mean of what becomes of them.
        gradients = lax.pmean(gradients, options.class_axis_name)
        # Marked as different on each device, so that no wrapper sums their gradients before us.
        device = lax.axis_index(options.class_axis_name)
        shared = {name: x + (0 * device).astype(x.dtype) for name, x in inputs.shared.items()}
        inputs = inputs._replace(shared=shared)
    classes = inputs.per_class["prototypes"].shape[0]
    size = min(options.chunk_size, classes)

    def pull(first: jax.Array | int, size: int) -> tuple[Arrays, Arrays]:
        piece = _take(inputs, first, size)
        common, part = _piece_gradients(options, piece, wanted, first, raw, others, *gradients)
        return common, {name: x.astype(inputs.per_class[name].dtype) for name, x in part.items()}

    def add(
        first: jax.Array | int, gathered: tuple[Arrays, Arrays], size: int
    ) -> tuple[Arrays, Arrays]:
        total, parts = gathered
        common, part = pull(first, size)
        for name, x in part.items():
            axis = x.ndim + _CLASS_AXIS[name]
            parts[name] = lax.dynamic_update_slice_in_dim(parts[name], x, first, axis)
        return {name: x + common[name] for name, x in total.items()}, parts

    whole = classes // size
    if size == classes:
        total, parts = pull(0, size)
    else:
        # Sums over pieces in float32: many small bfloat16 terms would not add up.
        total, parts = (
            {name: jnp.zeros(arrays[name].shape, dtype or arrays[name].dtype) for name in names}
            for arrays, names, dtype in (
                (inputs.shared, wanted[0], others.dtype),
                (inputs.per_class, wanted[1], None),
            )
        )
        gathered = lax.fori_loop(
            0, whole, lambda i, gathered: add(i * size, gathered, size), (total, parts)
        )
        if classes % size:
            gathered = add(whole * size, gathered, classes % size)
        total, parts = gathered
    if options.class_axis_name is not None:
        total = lax.psum(total, options.class_axis_name)
    return (
        inputs._replace(
            shared={
                name: total[name].astype(x.dtype) if name in total else None
                for name, x in inputs.shared.items()
            },
            per_class={name: parts.get(name) for name in inputs.per_class},
            fixed=None,
            fixed_per_class=None,
        ),
    )


_own_and_others.defvjp(_forward_and_save, _backward, symbolic_zeros=True)


def compare(
    embeddings: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    *,
    scale: jax.Array,
    where: jax.Array | None = None,
    mix: jax.Array | None = None,
    key: jax.Array | None = None,
    mix_range: tuple[jax.Array, jax.Array] | None = None,
    normalize_mixed: bool = False,
    bias: jax.Array | None = None,
    prepare: Prepare | None = None,
    project: Project | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores against own prototypes, and the scaled logsumexp over everybody else's.

    Args:
      embeddings: ``[..., D]``.
      prototypes: ``[C, M, D]``; this device's share of the classes with ``class_axis_name``.
      labels: ``[...]``, over the classes of all devices.
      scale: Factor of scores within the logsumexp.
      where: Prototypes that count, broadcastable to ``[..., C, M']``.
      mix: ``[..., C, M]``; adds the mixed negatives of Eq. 6.
      key: In place of ``mix``: coefficients are drawn piece by piece, again in the backward pass.
      mix_range: Bounds of drawn coefficients.
      normalize_mixed: Whether mixed vectors have unit length.
      bias: ``[C]``, added to scaled scores; for one prototype a class.
      prepare: Static function of prototypes ``[C, M, D]``, whose result ``project`` is given.
      project: Static elementwise function of scores ``[..., C, M]`` and that result to scores
        ``[..., C, M']``.
      chunk_size: Classes in a piece; all if None.
      class_axis_name: Mapped axis that classes are spread over, in order.

    Returns:
      Own scores ``[..., M']``, unscaled; which of them count, ``[..., M']`` or ``[..., 1]``;
      logsumexp over others ``[...]``.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, found {chunk_size}")
    classes = prototypes.shape[0]
    inputs = _Inputs({"embeddings": embeddings, "scale": scale}, {"prototypes": prototypes}, {}, {})
    offset: jax.Array | int = 0
    if class_axis_name is not None:
        offset = lax.axis_index(class_axis_name) * classes
    # Rows are counted in int32, which small or unsigned labels could not hold.
    inputs.fixed["labels"] = labels.astype(jnp.int32) - offset
    if where is not None:
        # Leading axes may stay broadcast; the last two are cut into pieces and must be whole.
        count = prototypes.shape[1] if project is None else 1
        where = jnp.broadcast_to(where, (*where.shape[:-2], classes, count))
        inputs.fixed_per_class["where"] = where
    if mix is not None:
        inputs.per_class["mix"] = mix
    if key is not None and mix_range is not None:
        inputs.fixed.update(key=key, offset=jnp.asarray(offset, jnp.int32))
        inputs.shared.update(low=mix_range[0], high=mix_range[1])
    if bias is not None:
        inputs.per_class["bias"] = bias
    if where is not None and where.ndim == 2:  # what is left out for all may hold anything
        masks = {"prototypes": where[..., None], "mix": where, "bias": where[:, 0]}
        inputs = inputs._replace(
            per_class={n: jnp.where(masks[n], x, 0) for n, x in inputs.per_class.items()}
        )
    options = _Options(prepare, project, normalize_mixed, chunk_size or classes, class_axis_name)
    own, others = _own_and_others(options, inputs)
    return own, _own_counted(inputs.fixed["labels"], where, classes, class_axis_name), others


def _own_counted(
    labels: jax.Array, where: jax.Array | None, classes: int, class_axis_name: str | None
) -> jax.Array:
    """Which own prototypes count, ``[..., M']``; none for labels that name no class."""
    counted = ((labels >= 0) & (labels < classes))[..., None]
    if where is not None:
        index = jnp.clip(labels, 0, classes - 1)
        if where.ndim == 2:
            counted &= where[index]
        else:
            where = jnp.broadcast_to(where, (*labels.shape, *where.shape[-2:]))
            counted &= jnp.take_along_axis(where, index[..., None, None], axis=-2)[..., 0, :]
    if class_axis_name is not None:
        counted = lax.psum(counted.astype(jnp.int32), class_axis_name) > 0
    return counted


def negative_log_likelihood(
    own: jax.Array,
    counted: jax.Array,
    others: jax.Array,
    where: jax.Array | None,
    *,
    clusters: bool = False,
) -> jax.Array:
    """-log softmax of own scores ``[..., M]`` against the logsumexp of others.

    Of several own scores it is the mean over each, or with ``clusters`` that of their joint
    probability. 0 where nothing is counted or ``where`` is false.
    """
    valid = counted.any(axis=-1) if where is None else where & counted.any(axis=-1)
    if own.shape[-1] == 1:  # softplus keeps every digit of a loss near 0
        return jnp.where(valid, softplus(others - own[..., 0]), 0)
    counted = jnp.broadcast_to(counted, own.shape)
    own_sum = masked_logsumexp([own], counted)
    loss = softplus(others - own_sum)
    if not clusters:
        loss += own_sum - jnp.mean(own, axis=-1, where=counted | ~valid[..., None])
    return jnp.where(valid, loss, 0)
