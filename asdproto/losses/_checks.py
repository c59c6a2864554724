"""Argument checks shared by every loss. Shapes are static, so they cost nothing once compiled."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def as_float(name: str, x: ArrayLike) -> jax.Array:
    """The argument as a floating array; nothing else has a gradient."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating, found {x.dtype} of shape {x.shape}")
    return x


def accumulator(*arrays: jax.Array) -> Any:
    """Dtype to accumulate in: float32, or float64 if an argument is."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def positive(name: str, value: ArrayLike, dtype: Any) -> jax.Array:
    """A positive scalar as an array; its sign is checked where it is a plain number."""
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{name} must be positive, found {value}")
    return scalar(name, value, dtype)


def scalar(name: str, value: ArrayLike, dtype: Any) -> jax.Array:
    """A scalar hyper-parameter as an array of the accumulator's dtype."""
    array = jnp.asarray(value, dtype)
    if array.ndim:
        raise ValueError(f"{name} must be a scalar, found shape {array.shape}; sweep it with vmap")
    return array


def check_vectors(
    embeddings: ArrayLike, prototypes: ArrayLike, *, ndim: int = 2
) -> tuple[jax.Array, jax.Array]:
    """Asserts ``[..., dim]`` and ``[classes, (per_class,) dim]``; returns arrays."""
    embeddings = as_float("embeddings", embeddings)
    prototypes = as_float("prototypes", prototypes)
    expected = "[classes, dim]" if ndim == 2 else "[classes, per_class, dim]"
    if embeddings.ndim < 1 or prototypes.ndim != ndim:
        raise ValueError(
            f"embeddings must have shape [..., dim] and prototypes {expected}; found embeddings "
            f"{embeddings.shape} and prototypes {prototypes.shape}"
        )
    if embeddings.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            "the last dimensions of embeddings and prototypes must be equal; found embeddings "
            f"{embeddings.shape} and prototypes {prototypes.shape}"
        )
    return embeddings, prototypes


def check_prototypes(
    embeddings: ArrayLike, prototypes: ArrayLike, labels: ArrayLike, *, ndim: int = 2
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As :func:`check_vectors`, and labels of shape ``[...]``."""
    embeddings, prototypes = check_vectors(embeddings, prototypes, ndim=ndim)
    return embeddings, prototypes, check_labels(embeddings, labels)


def check_mix(mix: ArrayLike, labels: jax.Array, prototypes: jax.Array) -> jax.Array:
    """Asserts a coefficient for every example and prototype."""
    mix = as_float("mix", mix)
    shape = (*labels.shape, *prototypes.shape[:-1])
    if mix.shape != shape:
        names = ("classes", "per_class")[: prototypes.ndim - 1]
        raise ValueError(
            f"mix must have shape [..., {', '.join(names)}] = {shape}, found {mix.shape}"
        )
    return mix


def check_labels(embeddings: jax.Array, labels: ArrayLike) -> jax.Array:
    """Asserts integer labels of shape ``[...]`` for embeddings ``[..., dim]``."""
    labels = jnp.asarray(labels)
    if labels.shape != embeddings.shape[:-1]:
        raise ValueError(
            "labels must have the shape of embeddings without the last axis; found labels "
            f"{labels.shape} and embeddings {embeddings.shape}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, found {labels.dtype} of shape {labels.shape}")
    return labels


def check_mask(name: str, mask: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """Asserts that a mask broadcasts to ``shape``; returns it as boolean."""
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    try:
        fits = jnp.broadcast_shapes(mask.shape, shape) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} of shape {mask.shape} does not broadcast to shape {shape}")
    return mask.astype(bool)


def check_batch(embeddings: ArrayLike, labels: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Asserts a flat batch, ``[examples, dim]`` and ``[examples]``, for in-batch losses."""
    embeddings = as_float("embeddings", embeddings)
    if embeddings.ndim != 2:
        raise ValueError(
            "embeddings must have shape [examples, dim] (use vmap for several batches); found "
            f"{embeddings.shape} with labels {jnp.shape(labels)}"
        )
    return embeddings, check_labels(embeddings, labels)
