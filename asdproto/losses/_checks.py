"""Argument checks and small helpers shared by every loss."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def as_float(name: str, x: ArrayLike) -> jax.Array:
    """The argument as a floating array; integers would silently truncate gradients."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating, found {x.dtype} of shape {x.shape}")
    return x


def accumulator(*arrays: jax.Array) -> Any:
    """Dtype to accumulate in: float32, or float64 if an argument is."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def check_prototypes(
    embeddings: jax.Array, prototypes: jax.Array, labels: ArrayLike, *, ndim: int = 2
) -> jax.Array:
    """Asserts ``[..., dim]``, ``[classes, (per_class,) dim]`` and ``[...]``; returns the labels."""
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
    return check_labels(embeddings, labels)


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
