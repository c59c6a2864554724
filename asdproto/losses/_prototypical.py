"""Losses against class prototypes: Eq. 1 (PL), Eq. 3 (MPE), Eq. 6 (NPE) and their combination."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from asdproto.losses import _checks, _compare
from asdproto.prototypes import mix_negatives


def _negative_log_likelihood(
    embeddings: ArrayLike,
    prototypes: jax.Array,
    labels: ArrayLike,
    *,
    temperature: ArrayLike,
    where: ArrayLike | None,
    prototype_where: ArrayLike | None,
    mix: jax.Array | None = None,
    normalize_mixed: bool = False,
) -> jax.Array:
    """Mean over own prototypes of -log softmax; ``prototypes`` is ``[C, M, D]``."""
    embeddings = _checks.as_float("embeddings", embeddings)
    labels = _checks.check_prototypes(embeddings, prototypes, labels, ndim=3)
    where = _checks.check_mask("where", where, labels.shape)
    shape = (*labels.shape, *prototypes.shape[:2])
    prototype_where = _checks.check_mask("prototype_where", prototype_where, shape)
    if where is not None:  # 0 * nan is nan: what is masked may hold anything
        embeddings = jnp.where(where[..., None], embeddings, 0)
    scale = 1 / jnp.asarray(temperature, _checks.accumulator(embeddings, prototypes))
    own, own_where, others = _compare.compare(
        embeddings,
        prototypes,
        labels,
        scale=scale,
        class_where=prototype_where,
        mix=mix,
        normalize_mixed=normalize_mixed,
    )
    own = own * scale
    everything = jnp.logaddexp(
        others, _compare.masked_logsumexp([(own[..., None, :], own_where[..., None, :])])
    )
    count = jnp.sum(own_where, axis=-1)
    loss = everything - jnp.sum(own, axis=-1) / jnp.maximum(count, 1)
    valid = count > 0 if where is None else (count > 0) & where
    return jnp.where(valid, loss, 0)


def prototypical_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
) -> jax.Array:
    """Negative log-likelihood of an embedding's own prototype (Eq. 1)."""
    prototypes = _checks.as_float("prototypes", prototypes)
    embeddings = _checks.as_float("embeddings", embeddings)
    labels = _checks.check_prototypes(embeddings, prototypes, labels)
    class_where = _checks.check_mask(
        "class_where", class_where, (*labels.shape, prototypes.shape[0])
    )
    return _negative_log_likelihood(
        embeddings,
        prototypes[:, None, :],
        labels,
        temperature=temperature,
        where=where,
        prototype_where=None if class_where is None else class_where[..., None],
    )


def multi_prototype_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
    prototype_where: ArrayLike | None = None,
) -> jax.Array:
    """Mean over the class's prototypes of their negative log-likelihood (Eq. 3)."""
    return _negative_log_likelihood(
        embeddings,
        _checks.as_float("prototypes", prototypes),
        labels,
        temperature=temperature,
        where=where,
        prototype_where=prototype_where,
    )


def negative_prototype_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    mix: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    normalize_mixed: bool = False,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
) -> jax.Array:
    """Prototypical loss with mixed negatives (Eq. 6), in closed form."""
    prototypes = _checks.as_float("prototypes", prototypes)
    embeddings = _checks.as_float("embeddings", embeddings)
    labels = _checks.check_prototypes(embeddings, prototypes, labels)
    shape = (*labels.shape, prototypes.shape[0])
    class_where = _checks.check_mask("class_where", class_where, shape)
    mix = _checks.as_float("mix", mix)
    if mix.shape != shape:
        raise ValueError(f"mix must have shape [..., classes] = {shape}, found {mix.shape}")
    return _negative_log_likelihood(
        embeddings,
        prototypes[:, None, :],
        labels,
        temperature=temperature,
        where=where,
        prototype_where=None if class_where is None else class_where[..., None],
        mix=mix[..., None],
        normalize_mixed=normalize_mixed,
    )


def multi_negative_prototype_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    mix: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    normalize_mixed: bool = False,
    where: ArrayLike | None = None,
    prototype_where: ArrayLike | None = None,
) -> jax.Array:
    """Eq. 3 and Eq. 6 together: several prototypes a class, each other one mixed as a negative."""
    prototypes = _checks.as_float("prototypes", prototypes)
    mix = _checks.as_float("mix", mix)
    if prototypes.ndim == 3 and mix.shape != (*jnp.shape(labels), *prototypes.shape[:2]):
        raise ValueError(
            "mix must have shape [..., classes, per_class] = "
            f"{(*jnp.shape(labels), *prototypes.shape[:2])}, found {mix.shape}"
        )
    return _negative_log_likelihood(
        embeddings,
        prototypes,
        labels,
        temperature=temperature,
        where=where,
        prototype_where=prototype_where,
        mix=mix,
        normalize_mixed=normalize_mixed,
    )


def negative_prototype_loss_by_definition(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    mix: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    normalize_mixed: bool = False,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
) -> jax.Array:
    """Eq. 6 word by word: mixes every negative as a vector, one anchor at a time under vmap."""
    embeddings, prototypes = jnp.asarray(embeddings), jnp.asarray(prototypes)
    labels, mix = jnp.asarray(labels), jnp.asarray(mix)
    present = jnp.broadcast_to(True if class_where is None else class_where, mix.shape)
    valid = jnp.broadcast_to(True if where is None else where, labels.shape)

    def one(anchor, label, mix, present, valid):
        others = present & (jnp.arange(prototypes.shape[0]) != label)
        mixed = mix_negatives(anchor, prototypes, mix, normalize_mixed)
        logits = jnp.concatenate([prototypes @ anchor, mixed @ anchor]) / temperature
        counted = jnp.concatenate([present, others])
        loss = jax.nn.logsumexp(logits, where=counted) - logits[label]
        return jnp.where(valid & present[label], loss, 0)

    for _ in range(labels.ndim):
        one = jax.vmap(one)
    return one(embeddings, labels, mix, present, valid)
