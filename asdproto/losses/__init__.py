"""Metric-learning losses for JAX: pure functions of arrays, per example, unreduced."""

from asdproto.losses._prototypical import (
    multi_negative_prototype_loss,
    multi_prototype_loss,
    negative_prototype_loss,
    negative_prototype_loss_by_definition,
    prototypical_loss,
)

__all__ = [
    "multi_negative_prototype_loss",
    "multi_prototype_loss",
    "negative_prototype_loss",
    "negative_prototype_loss_by_definition",
    "prototypical_loss",
]
