"""Losses against class prototypes: Eq. 1 (PL), Eq. 3 (MPE), Eq. 6 (NPE), and the last two together.

All four are one formula with more or fewer prototypes a class and with or without mixed negatives,
so one private function computes them; the public ones name the paper's equations.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from asdproto.losses import _checks, _compare, _numerics
from asdproto.prototypes import mix_negatives

Range = tuple[ArrayLike, ArrayLike]


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
      chunk_size: Classes to compare with at a time. Values and gradients are the same; memory is
        ``[..., chunk_size]`` instead of ``[..., classes]``, and scores are computed twice.
      class_axis_name: Mapped axis that the prototypes are spread over, in order: each device holds
        ``[classes / devices, dim]``, and the embeddings and labels of all. Every device returns
        all losses. Gradients are of the mean over devices of what is made of the losses: whole
        for the embeddings, and for each device's own prototypes; neither is to be summed again.

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
    shape = (*labels.shape, prototypes.shape[0])
    class_where = _checks.check_mask("class_where", class_where, shape)
    return _negative_log_likelihood(
        embeddings,
        prototypes[:, None, :],
        labels,
        temperature=temperature,
        own_prototypes=own_prototypes,
        where=where,
        prototype_where=None if class_where is None else class_where[..., None],
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )


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
      chunk_size: Classes to compare with at a time; see :func:`prototypical_loss`.
      class_axis_name: Mapped axis that classes are spread over; see :func:`prototypical_loss`.

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
    return _negative_log_likelihood(
        embeddings,
        prototypes,
        labels,
        temperature=temperature,
        where=where,
        prototype_where=prototype_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )


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
    value and gradient equal the definition's (:func:`negative_prototype_loss_by_definition`) for
    embeddings of any length.

    Args:
      embeddings: Floating, shape ``[..., dim]``, unit length.
      prototypes: Floating, shape ``[classes, dim]``, unit length.
      labels: Integer, shape ``[...]``; an example whose label is outside ``[0, classes)`` gives 0.
      mix: Coefficients in ``[0, 1]``, shape ``[..., classes]``; those of the own class are not
        used. :func:`asdproto.prototypes.sample_mix` draws them.
      key: Random key in place of ``mix``: coefficients are drawn here, uniformly in ``mix_range``,
        and never kept. They are those of ``sample_class_mix(key, [...], classes, *mix_range)``,
        for any ``chunk_size`` and number of devices.
      mix_range: Bounds of coefficients drawn with ``key``; may be traced.
      normalize_mixed: Whether mixed vectors are scaled to unit length; the paper does not say.
      temperature: Positive scalar; may be traced.
      own_prototypes: Floating, shape ``[..., dim]``; see :func:`prototypical_loss`.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0.
      class_where: Boolean, broadcastable to ``[..., classes]``; excluded classes give neither
        prototypes nor mixed negatives, and examples of them give 0.
      chunk_size: Classes to compare with at a time; see :func:`prototypical_loss`. With ``mix``
        the coefficients themselves are ``[..., classes]``; with ``key`` nothing is.
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
    shape = (*labels.shape, prototypes.shape[0])
    class_where = _checks.check_mask("class_where", class_where, shape)
    if mix is not None:
        mix = _checks.as_float("mix", mix)
        if mix.shape != shape:
            raise ValueError(f"mix must have shape [..., classes] = {shape}, found {mix.shape}")
        mix = mix[..., None]
    return _negative_log_likelihood(
        embeddings,
        prototypes[:, None, :],
        labels,
        mixing=_Mixing(mix, key, mix_range, normalize_mixed),
        temperature=temperature,
        own_prototypes=own_prototypes,
        where=where,
        prototype_where=None if class_where is None else class_where[..., None],
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )


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
      key: Random key in place of ``mix``: coefficients are those of ``sample_class_mix(key, [...],
        classes, *mix_range, per_class=per_class)``.
      mix_range: Bounds of coefficients drawn with ``key``; may be traced.
      normalize_mixed: Whether mixed vectors are scaled to unit length.
      temperature: Positive scalar; may be traced.
      where: Boolean, broadcastable to ``[...]``; excluded examples give 0.
      prototype_where: Boolean, broadcastable to ``[..., classes, per_class]``; excluded prototypes
        occur nowhere, and an example with none of its own left gives 0.
      chunk_size: Classes to compare with at a time; see :func:`prototypical_loss`.
      class_axis_name: Mapped axis that classes are spread over; see :func:`prototypical_loss`.

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
    if mix is not None:
        mix = _checks.as_float("mix", mix)
        shape = (*labels.shape, *prototypes.shape[:2])
        if mix.shape != shape:
            raise ValueError(
                f"mix must have shape [..., classes, per_class] = {shape}, found {mix.shape}"
            )
    return _negative_log_likelihood(
        embeddings,
        prototypes,
        labels,
        mixing=_Mixing(mix, key, mix_range, normalize_mixed),
        temperature=temperature,
        where=where,
        prototype_where=prototype_where,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )


def negative_prototype_loss_by_definition(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    mix: ArrayLike,
    *,
    normalize_mixed: bool = False,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
) -> jax.Array:
    """Eq. 6 as the paper writes it: one anchor at a time, every mixed negative made as a vector.

    To read and to test against. It needs ``batch * classes * dim`` numbers;
    :func:`negative_prototype_loss` gives the same values and gradients without them.

    Args:
      embeddings: Floating, shape ``[..., dim]``.
      prototypes: Floating, shape ``[classes, dim]``.
      labels: Integer in ``[0, classes)``, shape ``[...]``.
      mix: Coefficients in ``[0, 1]``, shape ``[..., classes]``.
      normalize_mixed: Whether mixed vectors are scaled to unit length.
      temperature: Positive scalar; may be traced.
      where: Boolean, broadcastable to ``[...]``.
      class_where: Boolean, broadcastable to ``[..., classes]``.

    Returns:
      Loss per example, shape ``[...]``.

    Raises:
      ValueError: Shapes do not fit; the message names both.

    References:
      Zeng et al., Robust Prototype Learning for Anomalous Sound Detection, 2023, Eq. 5 and 6.

    Examples:
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[1.0, 0.0]])
      >>> prototypes = jnp.array([[1.0, 0.0], [0.6, 0.8]])
      >>> labels, mix = jnp.array([0]), jnp.array([[0.0, 0.25]])
      >>> loss = negative_prototype_loss_by_definition(
      ...     embeddings, prototypes, labels, mix, temperature=0.5)
      >>> [f"{x:.3f}" for x in loss]
      ['0.692']
    """
    embeddings, prototypes, labels = _checks.check_prototypes(embeddings, prototypes, labels)
    mix = jnp.asarray(mix)
    present = jnp.broadcast_to(True if class_where is None else class_where, mix.shape)
    valid = jnp.broadcast_to(True if where is None else where, labels.shape)

    def one(
        anchor: jax.Array, label: jax.Array, mix: jax.Array, present: jax.Array, valid: jax.Array
    ) -> jax.Array:
        others = present & (jnp.arange(prototypes.shape[0]) != label)
        mixed = mix_negatives(anchor, prototypes, mix, normalize_mixed)
        scores = jnp.concatenate([prototypes @ anchor, mixed @ anchor]) / temperature
        counted = jnp.concatenate([present, others])
        loss = jax.nn.logsumexp(scores, where=counted) - scores[label]
        return jnp.where(valid & present[label], loss, 0)

    for _ in range(labels.ndim):
        one = jax.vmap(one)
    return one(embeddings, labels, mix, present, valid)


class _Mixing:
    """Coefficients of mixed negatives, or the key and range to draw them with."""

    def __init__(
        self,
        mix: jax.Array | None,
        key: jax.Array | None,
        mix_range: Range,
        normalize: bool,
    ):
        if (mix is None) == (key is None):
            raise ValueError("exactly one of mix (coefficients) and key (to draw them) is needed")
        self.mix, self.key, self.normalize = mix, key, normalize
        low, high = mix_range
        self.range = (
            _checks.scalar("mix_range", low, jnp.float32),
            _checks.scalar("mix_range", high, jnp.float32),
        )


def _negative_log_likelihood(
    embeddings: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    *,
    temperature: ArrayLike,
    mixing: _Mixing | None = None,
    own_prototypes: ArrayLike | None = None,
    where: ArrayLike | None,
    prototype_where: ArrayLike | None,
    chunk_size: int | None,
    class_axis_name: str | None,
) -> jax.Array:
    """Mean over own prototypes of -log softmax; ``prototypes`` is ``[classes, per_class, dim]``."""
    where = _checks.check_mask("where", where, labels.shape)
    shape = (*labels.shape, *prototypes.shape[:2])
    prototype_where = _checks.check_mask("prototype_where", prototype_where, shape)
    dtype = _checks.accumulator(embeddings, prototypes)
    scale = 1 / _checks.positive("temperature", temperature, dtype)
    embeddings = _numerics.keep(embeddings, where)
    mix = None if mixing is None else mixing.mix
    if mix is not None and where is not None:
        mix = jnp.where(where[..., None, None], mix, 0)
    own, counted, others = _compare.compare(
        embeddings,
        prototypes,
        labels,
        scale=scale,
        where=prototype_where,
        mix=mix,
        key=None if mixing is None else mixing.key,
        mix_range=None if mixing is None else mixing.range,
        normalize_mixed=mixing is not None and mixing.normalize,
        chunk_size=chunk_size,
        class_axis_name=class_axis_name,
    )
    if own_prototypes is not None:
        own_prototypes = _checks.as_float("own_prototypes", own_prototypes)
        if own_prototypes.shape != embeddings.shape:
            raise ValueError(
                "own_prototypes must have the shape of embeddings; found own_prototypes "
                f"{own_prototypes.shape} and embeddings {embeddings.shape}"
            )
        own_prototypes = _numerics.keep(own_prototypes, where)
        own = jnp.sum(embeddings.astype(dtype) * own_prototypes.astype(dtype), axis=-1)[..., None]
    return _compare.negative_log_likelihood(own * scale, counted, others, where)
