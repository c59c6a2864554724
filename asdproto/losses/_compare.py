"""The comparison that all prototype losses share, dense, chunked by classes, or sharded.

Every loss against prototypes is a function of two things: the scores of an embedding against its
own class's prototypes, and the logsumexp of its scores against all others. Both are sums over
classes in their own sense (plain, and of exponentials), so they can be taken piece by piece. The
backward pass computes a piece's scores again instead of keeping them, which bounds memory by the
batch times one piece, and is exact: the weight of a piece in the whole is known from the logsumexp.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from asdproto.losses import _checks
from asdproto.prototypes import sample_class_mix

# Stands for log(0). Finite, so that a difference of two of them is 0 and not nan.
LOG_ZERO = -1e30

Arrays = dict[str, jax.Array]
Project = Callable[[jax.Array, jax.Array], jax.Array]

# Axis of classes in every array that has one.
_CLASS_AXIS = {"prototypes": -3, "mix": -2, "bias": -2, "where": -2}


class _Options(NamedTuple):
    project: Project | None
    normalize_mixed: bool
    chunk_size: int
    class_axis_name: str | None


def dots(embeddings: jax.Array, prototypes: jax.Array) -> jax.Array:
    """Products ``[..., D] x [C, M, D] -> [..., C, M]``, accumulated in float32 or better."""
    return jnp.einsum(
        "...d,cmd->...cm",
        embeddings,
        prototypes,
        preferred_element_type=_checks.accumulator(embeddings, prototypes),
        # For float32 inputs only: at temperature 0.01 the three digits of TF32 are not enough.
        precision=lax.Precision.HIGHEST,
    )


def squared_length(x: jax.Array) -> jax.Array:
    """Sum of squares over the last axis, in float32 or better."""
    return jnp.sum(jnp.square(x.astype(_checks.accumulator(x))), axis=-1)


def masked_logsumexp(
    terms: list[jax.Array], where: jax.Array, axis: int | tuple[int, ...]
) -> jax.Array:
    """Logsumexp over several arrays under one mask; LOG_ZERO, with zero gradient, if all masked."""
    masked = [jnp.where(where, x, LOG_ZERO) for x in terms]
    tops = [jnp.max(x, axis=axis, keepdims=True, initial=LOG_ZERO) for x in masked]
    top = lax.stop_gradient(functools.reduce(jnp.maximum, tops))
    # With all masked every term is exp(0), and LOG_ZERO plus log of a count is LOG_ZERO again.
    total = sum(jnp.sum(jnp.exp(x - top), axis=axis) for x in masked)
    return jnp.squeeze(top, axis) + jnp.log(jnp.maximum(total, 1))


def mixed_scores(
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
    nonzero = length2 > 1e-8
    return jnp.where(nonzero, mixed * lax.rsqrt(jnp.where(nonzero, length2, 1)), 0)


def _piece(
    options: _Options,
    shared: Arrays,
    per_class: Arrays,
    fixed: Arrays,
    fixed_per_class: Arrays,
    first: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    """Own scores ``[..., M]`` and logsumexp over others ``[...]`` of classes from ``first`` on."""
    embeddings, prototypes = shared["embeddings"], per_class["prototypes"]
    scores = dots(embeddings, prototypes)
    if options.project is not None:
        scores = options.project(scores, prototypes)
    if "bias" in per_class:
        scores = scores + per_class["bias"]
    classes = prototypes.shape[0]
    labels = fixed["labels"][..., None, None]
    own = labels == first + lax.broadcasted_iota(jnp.int32, (classes, 1), 0)
    others = ~own
    if "where" in fixed_per_class:
        others &= fixed_per_class["where"]
    terms = [scores * shared["scale"]]
    mix = per_class.get("mix")
    if mix is None and "key" in fixed:
        mix = sample_class_mix(
            fixed["key"],
            scores.shape[:-2],
            classes,
            shared["low"],
            shared["high"],
            per_class=scores.shape[-1],
            first=fixed["offset"] + first,
        ).astype(scores.dtype)
    if mix is not None:
        squared = squared_length(embeddings)[..., None, None]
        mixed = mixed_scores(
            scores, squared, squared_length(prototypes), mix, options.normalize_mixed
        )
        terms.append(mixed * shared["scale"])
    return (
        jnp.sum(jnp.where(own, scores, 0), axis=-2),
        masked_logsumexp(terms, others, axis=(-2, -1)),
    )


def _take(arrays: Arrays, start: jax.Array | int, size: int) -> Arrays:
    return {
        name: lax.dynamic_slice_in_dim(x, start, size, axis=x.ndim + _CLASS_AXIS[name])
        for name, x in arrays.items()
    }


def _log_add(a: jax.Array, b: jax.Array) -> jax.Array:
    top = jnp.maximum(a, b)
    return top + jnp.log1p(jnp.exp(jnp.minimum(a, b) - top))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pieces(
    options: _Options,
    shared: Arrays,
    per_class: Arrays,
    fixed: Arrays,
    fixed_per_class: Arrays,
) -> tuple[jax.Array, jax.Array]:
    """What :func:`_piece` gives, over all classes of all devices, one piece at a time."""
    classes = per_class["prototypes"].shape[0]
    size = min(options.chunk_size, classes)

    def piece(first: jax.Array | int, size: int) -> tuple[jax.Array, jax.Array]:
        return _piece(
            options,
            shared,
            _take(per_class, first, size),
            fixed,
            _take(fixed_per_class, first, size),
            first,
        )

    def add(i: jax.Array, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        own, others = piece(i * size, size)
        return total[0] + own, _log_add(total[1], others)

    whole = classes // size
    own, others = piece(0, size)
    if whole > 1:
        own, others = lax.fori_loop(1, whole, add, (own, others))
    if classes % size:
        rest = piece(whole * size, classes % size)
        own, others = own + rest[0], _log_add(others, rest[1])
    if options.class_axis_name is not None:
        own = lax.psum(own, options.class_axis_name)
        top = lax.pmax(others, options.class_axis_name)
        others = top + jnp.log(lax.psum(jnp.exp(others - top), options.class_axis_name))
    return own, others


def _pieces_forward(
    options: _Options, shared: Arrays, per_class: Arrays, fixed: Arrays, fixed_per_class: Arrays
) -> tuple[Any, Any]:
    own, others = _pieces(options, shared, per_class, fixed, fixed_per_class)
    return (own, others), (shared, per_class, fixed, fixed_per_class, others)


def _pieces_backward(options: _Options, saved: Any, gradients: Any) -> tuple[Any, ...]:
    shared, per_class, fixed, fixed_per_class, others = saved
    if options.class_axis_name is not None:
        # Every device returns the same losses; what counts is the mean of what becomes of them.
        gradients = lax.pmean(gradients, options.class_axis_name)
    own_gradient, others_gradient = gradients
    classes = per_class["prototypes"].shape[0]
    size = min(options.chunk_size, classes)

    def pull(first: jax.Array | int, size: int) -> tuple[Arrays, Arrays]:
        masks = _take(fixed_per_class, first, size)

        def piece(shared: Arrays, per_class: Arrays) -> tuple[jax.Array, jax.Array]:
            return _piece(options, shared, per_class, fixed, masks, first)

        (_, part), back = jax.vjp(piece, shared, _take(per_class, first, size))
        return back((own_gradient, others_gradient * jnp.exp(part - others)))

    def add(total: Arrays, first: jax.Array) -> tuple[Arrays, Arrays]:
        common, piece = pull(first, size)
        return jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, common), piece

    # Sums over pieces in float32: many small bfloat16 terms would not add up.
    total = {name: jnp.zeros(x.shape, _checks.accumulator(x)) for name, x in shared.items()}
    whole = classes // size
    total, stacked = lax.scan(add, total, size * jnp.arange(whole, dtype=jnp.int32))
    own_classes = {}
    for name, x in per_class.items():
        axis = x.ndim + _CLASS_AXIS[name]
        own_classes[name] = jnp.moveaxis(stacked[name], 0, axis).reshape(
            *x.shape[:axis], whole * size, *x.shape[axis + 1 :]
        )
    if classes % size:
        common, piece = pull(whole * size, classes % size)
        total = jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, common)
        for name, x in own_classes.items():
            axis = x.ndim + _CLASS_AXIS[name]
            own_classes[name] = jnp.concatenate([x, piece[name]], axis=axis)
    if options.class_axis_name is not None:
        total = lax.psum(total, options.class_axis_name)
    total = {name: x.astype(shared[name].dtype) for name, x in total.items()}
    return total, own_classes, None, None


_pieces.defvjp(_pieces_forward, _pieces_backward)


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
      bias: ``[C]``, added to scores.
      project: Static function of scores ``[..., C, M]`` and prototypes to scores ``[..., C, M']``.
      chunk_size: Classes in a piece; all if None.
      class_axis_name: Mapped axis that classes are spread over, in order.

    Returns:
      Own scores ``[..., M']``, unscaled; which of them count, ``[..., M']`` or ``[..., 1]``;
      logsumexp over others ``[...]``.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, found {chunk_size}")
    classes = prototypes.shape[0]
    shared = {"embeddings": embeddings, "scale": scale}
    per_class = {"prototypes": prototypes}
    fixed: Arrays = {"labels": labels}
    fixed_per_class: Arrays = {}
    offset: jax.Array | int = 0
    if class_axis_name is not None:
        offset = lax.axis_index(class_axis_name) * classes
        fixed["labels"] = labels - offset
    if where is not None:
        # Leading axes may stay broadcast; the class axis is cut into pieces and must be whole.
        last = where.shape[-1] if where.ndim else 1
        where = jnp.broadcast_to(where, (*where.shape[:-2], classes, last))
        fixed_per_class["where"] = where
    if mix is not None:
        per_class["mix"] = mix
    if key is not None and mix_range is not None:
        fixed |= {"key": key, "offset": jnp.asarray(offset, jnp.int32)}
        shared |= {"low": mix_range[0], "high": mix_range[1]}
    if bias is not None:
        per_class["bias"] = bias[:, None]
    counted = _own_counted(fixed["labels"], where, classes, class_axis_name)
    options = _Options(project, normalize_mixed, chunk_size or classes, class_axis_name)
    arguments = (options, shared, per_class, fixed, fixed_per_class)
    if options.chunk_size >= classes and class_axis_name is None:
        own, others = _piece(*arguments, 0)
    else:
        own, others = _pieces(*arguments)
    return own, counted, others


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


def keep(embeddings: jax.Array, where: jax.Array | None) -> jax.Array:
    """Zeros where excluded: 0 times nan is nan, and what is masked may hold anything."""
    return embeddings if where is None else jnp.where(where[..., None], embeddings, 0)


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
        return jnp.where(valid, jax.nn.softplus(others - own[..., 0]), 0)
    counted = jnp.broadcast_to(counted, own.shape)
    own_sum = masked_logsumexp([own], counted, axis=-1)
    loss = jax.nn.softplus(others - own_sum)
    if not clusters:
        loss += own_sum - jnp.mean(own, axis=-1, where=counted | ~valid[..., None])
    return jnp.where(valid, loss, 0)
