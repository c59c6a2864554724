"""Prototypes: class means (Eq. 2), random sub-prototypes (MPE) and mixed negatives (Eq. 5).

Everything is a pure function of arrays and an explicit key, safe under jit, vmap, grad and pmap.
Means are kept as sums and counts until the last moment, because sums of parts add up: over batches
of a loop, and over devices with one ``psum``. A ValueError names the shapes that do not fit.

References:
  Zeng et al., Robust Prototype Learning for Anomalous Sound Detection, 2023.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses.numerics import (
    accumulator,
    as_labels,
    as_mask,
    as_pairs,
    as_rows,
    expand,
    keep,
    own_class,
    replicated,
    take_rows,
)


def l2_normalize(x: ArrayLike, axis: int = -1, eps: float = 1e-12) -> jax.Array:
    """Scales vectors to unit length; zero vectors stay zero, with zero gradient.

    Args:
      x: Floating, any shape.
      axis: Axis that holds the vectors.
      eps: Vectors no longer than this count as zero.

    Returns:
      Same shape and dtype as ``x``; lengths are computed in float32 or better.

    Examples:
      >>> print(l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
      [[0.6 0.8]
       [0.  0. ]]
    """
    x = jnp.asarray(x)
    wide = x.astype(accumulator(x))
    # Powers of two, so that others keep their bits; squares of longer vectors would overflow.
    largest = jnp.max(jnp.abs(wide), axis=axis, keepdims=True, initial=0)
    exponent = jnp.finfo(wide.dtype).maxexp
    wide *= jnp.where(largest > 2.0 ** (exponent // 2 - 4), 2.0 ** (-5 * exponent // 8), 1.0)
    squared = jnp.sum(jnp.square(wide), axis=axis, keepdims=True)
    # Both branches must be finite: a nan in the branch not taken would still reach the gradient.
    # Asked this way round, a vector that holds nan stays nan and is noticed.
    zero = squared <= eps**2
    unit = wide * lax.rsqrt(jnp.where(zero, 1.0, squared))
    return jnp.where(zero, 0.0, unit).astype(x.dtype)


def class_sums(
    embeddings: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Sums the embeddings of every class.

    A product with the one-hot labels rather than a scatter: scatters add in no fixed order on a
    GPU, and the same seed must give the same prototypes bit for bit.

    Args:
      embeddings: Floating, shape ``[examples, dim]``.
      labels: Integer, shape ``[examples]``; examples labeled outside ``[0, num_classes)`` are
        left out.
      num_classes: Number of classes; static.
      where: Boolean, shape ``[examples]``; excluded examples count nowhere.
      weights: Floating, shape ``[examples]``; weight of each example in sum and count.

    Returns:
      Sums, shape ``[num_classes, dim]``, and counts (sums of weights), shape ``[num_classes]``;
      both float32 (float64 if the embeddings are).

    Examples:
      >>> sums, counts = class_sums(jnp.array([[1.0], [2.0], [4.0]]), jnp.array([0, 1, 0]), 3)
      >>> print(sums.ravel(), counts)
      [5. 2. 0.] [2. 1. 0.]
    """
    embeddings = as_rows("embeddings", embeddings)
    labels = as_labels(labels, embeddings)
    dtype = accumulator(embeddings)
    member = own_class(labels, num_classes).astype(dtype)
    if weights is not None:
        weights = jnp.asarray(weights)
        if weights.shape != labels.shape:
            raise ValueError(f"weights has shape {weights.shape}, labels have {labels.shape}")
        member *= weights.astype(dtype)[:, None]
    if where is not None:
        where = as_mask("where", where, labels.shape)
        member, embeddings = keep(member, where), keep(embeddings, where)
    member, embeddings = replicated(member), replicated(embeddings.astype(dtype))
    sums = jnp.einsum("nc,nd->cd", member, embeddings, precision=lax.Precision.HIGHEST)
    return sums, jnp.sum(member, axis=0)


def class_means(sums: ArrayLike, counts: ArrayLike) -> jax.Array:
    r"""Unit prototypes from sums and counts (Eq. 2, with the normalization its note asks for).

    .. math:: p_c = \frac{s_c / n_c}{\lVert s_c / n_c \rVert}

    Args:
      sums: Floating, shape ``[..., dim]``, as :func:`class_sums` gives.
      counts: Floating, shape ``[...]``.

    Returns:
      Unit vectors, shape ``[..., dim]``; a class without examples gives a zero vector (leave it
      out of a loss with ``class_where=counts > 0``).

    Examples:
      >>> print(class_means(jnp.array([[6.0, 8.0], [0.0, 0.0]]), jnp.array([2.0, 0.0])))
      [[0.6 0.8]
       [0.  0. ]]
    """
    sums, counts = jnp.asarray(sums), jnp.asarray(counts)
    if sums.shape[:-1] != counts.shape:
        raise ValueError(
            f"sums must have the shape of counts and one more axis; found sums {sums.shape} and "
            f"counts {counts.shape}"
        )
    present = counts > 0
    # The division cancels in the normalization but keeps its zero threshold one of means.
    means = sums / jnp.where(present, counts, 1)[..., None]
    return l2_normalize(jnp.where(present[..., None], means, 0))


def class_prototypes(
    embeddings: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Unit prototype of every class (Eq. 2), over all devices when ``axis_name`` is given.

    Examples are spread over that mapped axis, which sums and counts are added over; further
    arguments are those of :func:`class_sums`.

    Returns:
      Prototypes, shape ``[num_classes, dim]`` (zero vectors for absent classes), and counts, shape
      ``[num_classes]``.

    Examples:
      >>> prototypes, counts = class_prototypes(
      ...     jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]]), jnp.array([0, 1, 1]), 3)
      >>> print(counts)
      [1. 2. 0.]
    """
    sums, counts = class_sums(embeddings, labels, num_classes, where=where, weights=weights)
    if axis_name is not None:
        sums, counts = lax.psum((sums, counts), axis_name)
    return class_means(sums, counts), counts


def leave_one_out_prototypes(
    embeddings: ArrayLike, labels: ArrayLike, sums: ArrayLike, counts: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Own prototype of every example, computed without that example.

    Only an anchor's own class changes when the anchor is left out, so one vector per anchor says
    everything; pass it to a prototype loss as ``own_prototypes``.

    Args:
      embeddings: Floating, shape ``[examples, dim]``; each must be one of its class's summands.
      labels: Integer in ``[0, classes)``, shape ``[examples]``.
      sums: Floating, shape ``[classes, dim]``, as :func:`class_sums` gives (summed over devices).
      counts: Floating, shape ``[classes]``.

    Returns:
      Unit vectors, shape ``[examples, dim]``, and a boolean array, shape ``[examples]``, false for
      examples that are alone in their class (their vector is zero): pass it as ``where``.
    """
    embeddings = as_rows("embeddings", embeddings)
    labels, sums, counts = as_labels(labels, embeddings), jnp.asarray(sums), jnp.asarray(counts)
    if sums.shape != (counts.shape[0], embeddings.shape[1]):
        raise ValueError(
            f"sums must have shape [classes, dim] to fit counts {counts.shape} and embeddings "
            f"{embeddings.shape}; found sums {sums.shape}"
        )
    others = take_rows(counts, labels) - 1
    exists = others > 0.5
    rest = take_rows(sums, labels) - embeddings.astype(sums.dtype)
    return class_means(rest, jnp.where(exists, others, 0)), exists


def subset_mask(
    key: jax.Array,
    labels: ArrayLike,
    num_classes: int,
    ratio: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Draws a random share of every class (section 3.1.1): ``max(1, ceil(ratio * size))`` members.

    One sort by (class, random number) ranks every member within its class, so the cost does not
    grow with the number of classes.

    Args:
      key: Random key.
      labels: Integer, shape ``[examples]``; labels outside ``[0, num_classes)`` are never drawn.
      num_classes: Number of classes; static.
      ratio: Share in ``(0, 1]``; may be traced. A product within one part in a million above a
        whole number counts as that number, so that 0.07 of 100 is 7.
      where: Boolean, shape ``[examples]``; excluded examples neither count nor are drawn.

    Returns:
      Boolean, shape ``[examples]``; classes without examples have no member drawn.

    Examples:
      >>> labels = jnp.repeat(jnp.arange(2), 8)
      >>> mask = subset_mask(jax.random.key(0), labels, 2, 0.25)
      >>> print(jnp.sum(mask[:8]), jnp.sum(mask[8:]))
      2 2
    """
    labels = jnp.asarray(labels)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers of shape [examples], found {labels.dtype} {labels.shape}"
        )
    counted = (labels >= 0) & (labels < num_classes)
    if where is not None:
        counted &= as_mask("where", where, labels.shape)
    labels, counted = replicated(labels), replicated(counted)
    examples = labels.shape[0]
    group = jnp.where(counted, labels, num_classes).astype(jnp.int32)
    noise = jax.random.bits(key, (examples,), jnp.uint32)
    place = jnp.arange(examples, dtype=jnp.int32)
    group, _, place = lax.sort((group, noise, place), num_keys=2)
    # Sums of integers are the same in any order, so a scatter may count.
    sizes = jnp.zeros(num_classes + 1, jnp.int32).at[group].add(1)
    starts = jnp.cumsum(sizes) - sizes
    sizes = sizes.at[num_classes].set(0)
    share = jnp.asarray(ratio, jnp.float32) * sizes.astype(jnp.float32)
    quota = jnp.ceil(share * (1 - 1e-6)).astype(jnp.int32)
    drawn = jnp.arange(examples, dtype=jnp.int32) - starts[group] < quota[group]
    return jnp.zeros(examples, bool).at[place].set(drawn, unique_indices=True)


def sub_prototypes(
    embeddings: ArrayLike,
    labels: ArrayLike,
    masks: ArrayLike,
    num_classes: int,
    *,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Sub-prototypes of multiple-prototype expansion (section 3.1.1): Eq. 2 of subsets of a class.

    Arguments are those of :func:`class_prototypes`, and masks, boolean ``[subsets, examples]``: one
    :func:`subset_mask` per sub-prototype. With ``axis_name`` they must be slices of masks drawn
    over the labels of all devices, or the share is one of each device's part.

    Returns:
      Unit vectors, shape ``[num_classes, subsets, dim]``; zero vectors for absent classes.

    Examples:
      >>> embeddings = jax.random.normal(jax.random.key(0), (12, 5))
      >>> labels = jnp.arange(12) % 3
      >>> masks = jax.vmap(lambda k: subset_mask(k, labels, 3, 0.5))(
      ...     jax.random.split(jax.random.key(1), 4))
      >>> sub_prototypes(embeddings, labels, masks, 3).shape
      (3, 4, 5)
    """
    masks, labels = jnp.asarray(masks), jnp.asarray(labels)
    if masks.ndim != 2 or masks.shape[1:] != labels.shape:
        raise ValueError(
            "masks must have shape [subsets, examples] and labels shape [examples]; found masks "
            f"{masks.shape} and labels {labels.shape}"
        )

    def one(mask: jax.Array) -> jax.Array:
        return class_prototypes(
            embeddings, labels, num_classes, where=where, weights=mask, axis_name=axis_name
        )[0]

    return jax.vmap(one, out_axes=1)(masks)


def mix_negatives(
    anchor: ArrayLike, prototypes: ArrayLike, mix: ArrayLike, normalize: bool = False
) -> jax.Array:
    r"""Pseudo-anomalies between an anchor and prototypes (Eq. 5).

    .. math:: \hat z_i = \lambda_i z_a + (1 - \lambda_i) p_i

    Args:
      anchor: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      mix: Coefficients in ``[0, 1]``, shape ``[..., classes]``.
      normalize: Whether to scale the mixed vectors back to unit length; the paper does not say.

    Returns:
      Shape ``[..., classes, dim]``. The losses never need this array: see
      :func:`asdproto.losses.negative_prototype_loss`.

    Examples:
      >>> print(mix_negatives(jnp.array([1.0, 0.0]), jnp.array([[0.0, 1.0]]), jnp.array([0.25])))
      [[0.25 0.75]]
    """
    anchor, prototypes = jnp.asarray(anchor), jnp.asarray(prototypes)
    if anchor.shape[-1:] != prototypes.shape[-1:] or prototypes.ndim != 2:
        raise ValueError(
            "anchor must have shape [..., dim] and prototypes shape [classes, dim]; found anchor "
            f"{anchor.shape} and prototypes {prototypes.shape}"
        )
    mix = as_pairs(mix, (*anchor.shape[:-1], prototypes.shape[0]))[..., None]
    mixed = mix * anchor[..., None, :] + (1 - mix) * expand(prototypes, mix.ndim)
    return l2_normalize(mixed) if normalize else mixed


def sample_mix(
    key: jax.Array, shape: tuple[int, ...], low: ArrayLike = 0.25, high: ArrayLike = 0.5
) -> jax.Array:
    """Mixing coefficients of (anchor, negative) pairs (Table 3), uniform in ``[low, high)``.

    Under ``pmap`` and ``shard_map`` every device draws the same numbers from the same key. Where
    devices hold different anchors, fold the device into the key
    (``jax.random.fold_in(key, lax.axis_index(axis_name))``), or draw for the anchors of all and
    take this device's rows, which makes the numbers those of one device.

    Args:
      key: Random key.
      shape: Shape of the result, ``[..., negatives]``; the leading axes are those of the anchors.
      low: Lower bound in ``[0, 1]``; may be traced. The defaults are Table 3's best range.
      high: Upper bound in ``[low, 1]``; may be traced.

    Returns:
      Float32 of the given shape.

    Examples:
      >>> sample_mix(jax.random.key(0), (4, 10)).shape
      (4, 10)
    """
    return jax.random.uniform(key, shape, jnp.float32, low, high)
