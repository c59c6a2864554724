"""The comparison that all prototype losses share: own scores, and logsumexp over the others."""

import jax
import jax.numpy as jnp
from jax import lax

from asdproto.losses import _checks

# Stands for log(0). Finite, so that differences of two of them are not nan.
LOG_ZERO = -1e30


def dots(embeddings: jax.Array, prototypes: jax.Array) -> jax.Array:
    """Products ``[..., D] x [C, M, D] -> [..., C, M]``, accumulated in float32 or better."""
    return jnp.einsum(
        "...d,cmd->...cm",
        embeddings,
        prototypes,
        preferred_element_type=_checks.accumulator(embeddings, prototypes),
        precision=lax.Precision.HIGHEST,
    )


def masked_logsumexp(terms: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Logsumexp over the last two axes of several masked arrays; LOG_ZERO where all is masked."""
    tops = [jnp.max(jnp.where(mask, x, LOG_ZERO), axis=(-2, -1)) for x, mask in terms]
    top = lax.stop_gradient(jnp.stack(tops).max(axis=0))
    total = sum(
        jnp.sum(
            jnp.where(mask, jnp.exp(jnp.where(mask, x, LOG_ZERO) - top[..., None, None]), 0),
            axis=(-2, -1),
        )
        for x, mask in terms
    )
    some = total > 0
    return jnp.where(some, top + jnp.log(jnp.where(some, total, 1)), LOG_ZERO)


def mixed_scores(
    scores: jax.Array,
    squared: jax.Array,
    prototype_squared: jax.Array,
    mix: jax.Array,
    normalize: bool,
) -> jax.Array:
    """z.(l z + (1-l) p) from z.p, z.z and p.p; over the mixed vector's length if asked."""
    mixed = mix * squared + (1 - mix) * scores
    if not normalize:
        return mixed
    length2 = mix**2 * squared + (1 - mix) ** 2 * prototype_squared + 2 * mix * (1 - mix) * scores
    # Below this the float32 sum is rounding error; the mixed vector counts as zero.
    nonzero = length2 > 1e-8
    return jnp.where(nonzero, mixed * lax.rsqrt(jnp.where(nonzero, length2, 1)), 0)


def compare(
    embeddings: jax.Array,
    prototypes: jax.Array,
    labels: jax.Array,
    *,
    scale: jax.Array,
    class_where: jax.Array | None,
    mix: jax.Array | None = None,
    normalize_mixed: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores against own prototypes, and the scaled logsumexp over everybody else's.

    Args:
      embeddings: ``[..., D]``.
      prototypes: ``[C, M, D]``.
      labels: ``[...]``.
      scale: Factor of scores within the logsumexp.
      class_where: ``[..., C, M]`` or None.
      mix: ``[..., C, M]`` or None; adds the mixed negatives of Eq. 6.
      normalize_mixed: Whether mixed vectors have unit length.

    Returns:
      Own scores ``[..., M]`` (0 where excluded), own mask ``[..., M]``, logsumexp ``[...]``.
    """
    scores = dots(embeddings, prototypes)
    own = (labels[..., None] == jnp.arange(prototypes.shape[0]))[..., None]
    own, present = jnp.broadcast_arrays(own, True if class_where is None else class_where)
    own = jnp.broadcast_to(own, scores.shape)
    present = jnp.broadcast_to(present, scores.shape)
    others = ~own & present
    own = own & present
    terms = [(scores * scale, others)]
    if mix is not None:
        squared = jnp.sum(jnp.square(embeddings.astype(scores.dtype)), axis=-1)[..., None, None]
        prototype_squared = jnp.sum(jnp.square(prototypes.astype(scores.dtype)), axis=-1)
        mixed = mixed_scores(scores, squared, prototype_squared, mix, normalize_mixed)
        terms.append((mixed * scale, others))
    return jnp.sum(jnp.where(own, scores, 0), axis=-2), own.any(axis=-2), masked_logsumexp(terms)
