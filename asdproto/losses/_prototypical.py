"""Losses against class prototypes: Eq. 1 (PL), Eq. 3 (MPE), Eq. 6 (NPE), and the last two together.

The equations stand in :func:`_scores` and :func:`_scores_and_mixed`, for one embedding as in the
paper. All four losses are ``-log softmax`` of their logits.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from asdproto.losses import _checks
from asdproto.losses._classes import compare, negative_log_likelihood, over_batch
from asdproto.losses._numerics import LOG_ZERO, dots, keep, squared_length
from asdproto.prototypes import sample_mix

Range = tuple[ArrayLike, ArrayLike]


def _scores(z: jax.Array, prototypes: jax.Array, temperature: jax.Array) -> jax.Array:
    """Logits of Eq. 1 and 3 for one embedding ``[D]``, ``[C]`` or ``[C * M]``."""
    return dots(z, prototypes) / temperature


def _scores_and_mixed(
    z: jax.Array,
    prototypes: jax.Array,
    mix: jax.Array,
    temperature: jax.Array,
    normalize_mixed: bool,
) -> tuple[jax.Array, jax.Array]:
    """Logits of Eq. 6 for one embedding ``[D]``: of prototypes, and of negatives mixed from them.

    The vectors of Eq. 5 are never made: z.m = z.(l z + (1-l) p) = l z.z + (1-l) z.p.
    """
    scores, mix = dots(z, prototypes), mix.reshape(-1)
    mixed = mix * squared_length(z) + (1 - mix) * scores
    if normalize_mixed:  # m.m = l z.m + (1-l) p.m
        p_dot_m = mix * scores + (1 - mix) * squared_length(prototypes).reshape(-1)
        length2 = mix * mixed + (1 - mix) * p_dot_m
        # Below this the sum is rounding error of float32: the mixed vector counts as zero.
        zero = length2 <= 1e-8
        mixed = jnp.where(zero, 0, mixed * lax.rsqrt(jnp.where(zero, 1, length2)))
    return scores / temperature, mixed / temperature


def prototypical_logits(
    embeddings: ArrayLike, prototypes: ArrayLike, *, temperature: ArrayLike = 0.07
) -> jax.Array:
    r"""Logits of Eq. 1, :math:`z \cdot p_c / \tau`, for a cross entropy of one's own.

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]`` or ``[classes, per_class, dim]``, unit length.
      temperature: Positive scalar; may be traced.

    Returns:
      Shape ``[..., classes]`` or ``[..., classes, per_class]``, float32 (float64 if an argument
      is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Zeng et al., Robust Prototype Learning for Anomalous Sound Detection, 2023, Eq. 1 and 3.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(prototypical_logits(jnp.array([1.0, 0.0]), jnp.eye(2), temperature=0.5))
      [2. 0.]
    """
    ndim = 3 if jnp.ndim(prototypes) == 3 else 2
    embeddings, prototypes = _checks.check_vectors(embeddings, prototypes, ndim=ndim)
    dtype = _checks.accumulator(embeddings, prototypes)
    logits = _scores(embeddings, prototypes, _checks.positive("temperature", temperature, dtype))
    return logits.reshape(*embeddings.shape[:-1], *prototypes.shape[:-1])


def prototypical_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    own_prototypes: ArrayLike | None = None,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> jax.Array:
    r"""Negative log-likelihood of an embedding's own prototype (Eq. 1).

    .. math::
       L = -\log \frac{\exp(z \cdot p_y / \tau)}{\sum_{c=1}^C \exp(z \cdot p_c / \tau)}

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` has no
        class and gives 0.
      temperature: Positive scalar; may be traced.
      own_prototypes: Floating, shape ``[..., dim]``: for each example, what stands for its own
        class's prototype, such as the mean without the example itself
        (:func:`asdproto.prototypes.leave_one_out_prototypes`).
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0, whatever they hold.
      class_where: Boolean, broadcastable to ``[..., classes]``; excluded classes do not occur in
        the sum, and examples of them give 0. For classes without a prototype: ``counts > 0``.
      chunk_size: Most classes to compare with at a time. Values and gradients are the same; memory
        is ``[..., chunk_size]`` instead of ``[..., classes]``, and scores are computed twice. Where
        no number between half and all of it divides the classes, prototypes are copied once.
      class_axis_name: Mapped axis that the prototypes are spread over, in order: each device holds
        ``[classes / devices, dim]``, and the embeddings and labels of all. Every device returns
        all losses. Gradients are of the mean over devices of what is made of the losses: whole
        for the embeddings, and for each device's own prototypes; neither is to be summed again.
        They are for reverse mode only.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Zeng et al., Robust Prototype Learning for Anomalous Sound Detection, 2023, Eq. 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> prototypes = jnp.array([[1.0, 0.0], [0.6, 0.8]])
      >>> loss = prototypical_loss(embeddings, prototypes, jnp.array([0, 0]), temperature=0.5)
      >>> [f"{x:.3f}" for x in loss]
      ['0.371', '1.784']
    """
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    dtype = _checks.accumulator(embeddings, prototypes)
    temperature = _checks.positive("temperature", temperature, dtype)
    compared = compare(
        _scores,
        embeddings,
        prototypes,
        labels,
        hyper={"temperature": temperature},
        where=where,
        class_where=class_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )
    if own_prototypes is not None:
        own = _own_scores(embeddings, own_prototypes, temperature, where)
        compared = compared._replace(own=own)
    return negative_log_likelihood(compared)


def multi_prototype_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
    prototype_where: ArrayLike | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> jax.Array:
    r"""Mean negative log-likelihood of a class's several prototypes (MPE, Eq. 3).

    .. math::
       L = -\frac{1}{|P_y|} \sum_{p \in P_y}
           \log \frac{\exp(z \cdot p / \tau)}{\sum_{a \in P} \exp(z \cdot a / \tau)}

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, per_class, dim]``, unit length: the class mean and
        its sub-prototypes (:func:`asdproto.prototypes.sub_prototypes`) side by side.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0.
      temperature: Positive scalar; may be traced.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0.
      prototype_where: Boolean, broadcastable to ``[..., classes, per_class]``; excluded prototypes
        occur in neither sum, and an example with none of its own left gives 0.
      chunk_size: See :func:`prototypical_loss`.
      class_axis_name: See :func:`prototypical_loss`.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Zeng et al., Robust Prototype Learning for Anomalous Sound Detection, 2023, Eq. 3.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[1.0, 0.0]])
      >>> prototypes = jnp.array([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [0.6, 0.8]]])
      >>> loss = multi_prototype_loss(embeddings, prototypes, jnp.array([0]), temperature=0.5)
      >>> [f"{x:.3f}" for x in loss]
      ['1.013']
    """
    embeddings, prototypes, labels = _checks.check_prototypes(
        embeddings, prototypes, labels, ndim=3
    )
    dtype = _checks.accumulator(embeddings, prototypes)
    temperature = _checks.positive("temperature", temperature, dtype)
    compared = compare(
        _scores,
        embeddings,
        prototypes,
        labels,
        hyper={"temperature": temperature},
        where=where,
        prototype_where=prototype_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )
    return negative_log_likelihood(compared)


def negative_prototype_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    mix: ArrayLike,
    *,
    normalize_mixed: bool = False,
    temperature: ArrayLike = 0.07,
) -> jax.Array:
    r"""Logits of Eq. 6: of every class's prototype, then of every class's mixed negative.

    The paper mixes no negative from the own class. Its place holds -1e30, which no softmax sees;
    unlike minus infinity it may be multiplied by a soft label of 0.

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``.
      mix: Coefficients in ``[0, 1]``, shape ``[..., classes]``; see
        :func:`asdproto.prototypes.sample_mix`.
      normalize_mixed: Whether mixed vectors are scaled to unit length; the paper does not say.
      temperature: Positive scalar; may be traced.

    Returns:
      Shape ``[..., 2 * classes]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Zeng et al., Robust Prototype Learning for Anomalous Sound Detection, 2023, Eq. 5 and 6.

    Examples:
      >>> import jax.numpy as jnp
      >>> z, mix = jnp.array([1.0, 0.0]), jnp.array([0.0, 0.25])
      >>> prototypes = jnp.array([[1.0, 0.0], [0.6, 0.8]])
      >>> logits = negative_prototype_logits(z, prototypes, jnp.array(0), mix, temperature=0.5)
      >>> [f"{x:.1f}" for x in logits[jnp.array([0, 1, 3])]]
      ['2.0', '1.2', '1.4']
    """
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    mix = _checks.check_mix(mix, labels, prototypes)
    dtype = _checks.accumulator(embeddings, prototypes)
    temperature = _checks.positive("temperature", temperature, dtype)

    def one(z: jax.Array, label: jax.Array, mix: jax.Array) -> jax.Array:
        scores, mixed = _scores_and_mixed(z, prototypes, mix, temperature, normalize_mixed)
        own = jnp.arange(prototypes.shape[0]) == label
        return jnp.concatenate([scores, jnp.where(own, LOG_ZERO, mixed)])

    return over_batch(one, labels.ndim)(embeddings, labels, mix)


def negative_prototype_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    mix: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
    mix_range: Range = (0.25, 0.5),
    normalize_mixed: bool = False,
    temperature: ArrayLike = 0.07,
    own_prototypes: ArrayLike | None = None,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> jax.Array:
    r"""Prototypical loss with negatives mixed between anchor and prototypes (NPE, Eq. 6).

    .. math::
       L = -\log \frac{\exp(z \cdot p_y / \tau)}
           {\sum_i \exp(z \cdot p_i / \tau) + \sum_{j \ne y} \exp(z \cdot \hat z_j / \tau)},
       \quad \hat z_j = \lambda_j z + (1 - \lambda_j) p_j

    The mixed vectors are never made: :math:`z \cdot \hat z_j = \lambda_j z \cdot z + (1 -
    \lambda_j) z \cdot p_j`. The first product is 1 for unit embeddings but is computed, so that
    value and gradient are the definition's for embeddings of any length.

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0.
      mix: Coefficients in ``[0, 1]``, shape ``[..., classes]``; those of the own class are not
        used. :func:`asdproto.prototypes.sample_mix` draws them.
      key: Random key in place of ``mix``: coefficients are drawn here and never kept. They are
        those of ``sample_mix(key, (*labels.shape, classes), *mix_range)``, for any ``chunk_size``
        and number of devices.
      mix_range: Bounds of coefficients drawn with ``key``; may be traced.
      normalize_mixed: Whether mixed vectors are scaled to unit length; the paper does not say.
      temperature: Positive scalar; may be traced.
      own_prototypes: Floating, shape ``[..., dim]``; see :func:`prototypical_loss`.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0.
      class_where: Boolean, broadcastable to ``[..., classes]``; excluded classes give neither
        prototypes nor mixed negatives, and examples of them give 0.
      chunk_size: See :func:`prototypical_loss`. With ``mix`` the coefficients themselves are
        ``[..., classes]``, and their gradient, where it is taken, is slow; with ``key`` nothing is.
      class_axis_name: Mapped axis that classes (and the last axis of ``mix``) are spread over; see
        :func:`prototypical_loss`.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit, or not exactly one of ``mix`` and ``key`` is given.

    References:
      Zeng et al., Robust Prototype Learning for Anomalous Sound Detection, 2023, Eq. 5 and 6.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[1.0, 0.0]])
      >>> prototypes = jnp.array([[1.0, 0.0], [0.6, 0.8]])
      >>> labels, mix = jnp.array([0]), jnp.array([[0.0, 0.25]])
      >>> loss = negative_prototype_loss(embeddings, prototypes, labels, mix, temperature=0.5)
      >>> [f"{x:.3f}" for x in loss]
      ['0.692']
      >>> negative_prototype_loss(embeddings, prototypes, labels, key=jax.random.key(0)).shape
      (1,)
    """
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    dtype = _checks.accumulator(embeddings, prototypes)
    temperature = _checks.positive("temperature", temperature, dtype)
    compared = compare(
        functools.partial(_scores_and_mixed, normalize_mixed=normalize_mixed),
        embeddings,
        prototypes,
        labels,
        hyper={"temperature": temperature},
        **_mix_or_draw(mix, key, mix_range, labels, prototypes),
        where=where,
        class_where=class_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )
    if own_prototypes is not None:
        own = _own_scores(embeddings, own_prototypes, temperature, where)
        compared = compared._replace(own=own)
    return negative_log_likelihood(compared)


def multi_negative_prototype_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    mix: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
    mix_range: Range = (0.25, 0.5),
    normalize_mixed: bool = False,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
    prototype_where: ArrayLike | None = None,
    chunk_size: int | None = None,
    class_axis_name: str | None = None,
) -> jax.Array:
    r"""Several prototypes a class, and each of the others mixed as a negative (MPE and NPE).

    .. math::
       L = -\frac{1}{|P_y|} \sum_{p \in P_y} \log \frac{\exp(z \cdot p / \tau)}
           {\sum_{a \in P} \exp(z \cdot a / \tau) +
            \sum_{a \in P \setminus P_y} \exp(z \cdot \hat z_a / \tau)},
       \quad \hat z_a = \lambda_a z + (1 - \lambda_a) a

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, per_class, dim]``, unit length.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0.
      mix: Coefficients in ``[0, 1]``, shape ``[..., classes, per_class]``.
      key: Random key in place of ``mix``: coefficients are those of ``sample_mix(key,
        (*labels.shape, classes * per_class), *mix_range)``, reshaped.
      mix_range: Bounds of coefficients drawn with ``key``; may be traced.
      normalize_mixed: Whether mixed vectors are scaled to unit length.
      temperature: Positive scalar; may be traced.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0.
      prototype_where: Boolean, broadcastable to ``[..., classes, per_class]``; excluded prototypes
        occur nowhere, and an example with none of its own left gives 0.
      chunk_size: See :func:`negative_prototype_loss`.
      class_axis_name: See :func:`prototypical_loss`.

    Returns:
      Loss per example, shape ``[...]``, float32 (float64 if an argument is).

    Raises:
      ValueError: Shapes do not fit, or not exactly one of ``mix`` and ``key`` is given.

    References:
      Zeng et al., Robust Prototype Learning for Anomalous Sound Detection, 2023, Eq. 3 and 6; the
      paper uses them in different stages, their combination is ours.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[1.0, 0.0]])
      >>> prototypes = jnp.array([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [0.6, 0.8]]])
      >>> mix = jnp.full((1, 2, 2), 0.5)
      >>> loss = multi_negative_prototype_loss(
      ...     embeddings, prototypes, jnp.array([0]), mix, temperature=0.5)
      >>> [f"{x:.3f}" for x in loss]
      ['1.392']
    """
    embeddings, prototypes, labels = _checks.check_prototypes(
        embeddings, prototypes, labels, ndim=3
    )
    dtype = _checks.accumulator(embeddings, prototypes)
    temperature = _checks.positive("temperature", temperature, dtype)
    compared = compare(
        functools.partial(_scores_and_mixed, normalize_mixed=normalize_mixed),
        embeddings,
        prototypes,
        labels,
        hyper={"temperature": temperature},
        **_mix_or_draw(mix, key, mix_range, labels, prototypes),
        where=where,
        prototype_where=prototype_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )
    return negative_log_likelihood(compared)


def _mix_or_draw(
    mix: ArrayLike | None,
    key: jax.Array | None,
    mix_range: Range,
    labels: jax.Array,
    prototypes: jax.Array,
) -> dict[str, Any]:
    """What :func:`compare` is given: coefficients, or how to draw those of some classes."""
    if (mix is None) == (key is None):
        raise ValueError("exactly one of mix (coefficients) and key (to draw them) is needed")
    if mix is not None:
        return {"mix": _checks.check_mix(mix, labels, prototypes)}
    assert key is not None
    several = prototypes.shape[1:-1]

    def draw(first: jax.Array | int, size: int, low: jax.Array, high: jax.Array) -> jax.Array:
        each = math.prod(several)
        drawn = sample_mix(key, (*labels.shape, size * each), low, high, first=first * each)
        return drawn.reshape(*labels.shape, size, *several)

    bounds = [_checks.scalar("mix_range", bound, jnp.float32) for bound in mix_range]
    return {"draw": draw, "mix_range": bounds}


def _own_scores(
    embeddings: jax.Array,
    own_prototypes: ArrayLike,
    temperature: jax.Array,
    where: ArrayLike | None,
) -> jax.Array:
    """Logits ``[..., 1]`` of what stands for each example's own prototype."""
    own_prototypes = _checks.as_float("own_prototypes", own_prototypes)
    if own_prototypes.shape != embeddings.shape:
        raise ValueError(
            "own_prototypes must have the shape of embeddings; found own_prototypes "
            f"{own_prototypes.shape} and embeddings {embeddings.shape}"
        )
    where = _checks.check_mask("where", where, embeddings.shape[:-1])
    embeddings, own_prototypes = keep(embeddings, where), keep(own_prototypes, where)
    own = jnp.sum(embeddings.astype(temperature.dtype) * own_prototypes, axis=-1, keepdims=True)
    return own / temperature
