"""Metric-learning losses for JAX: pure functions of arrays that need nothing but JAX.

One contract holds for all. A loss takes embeddings ``[..., dim]``, what to compare them with, and
integer labels ``[...]``, and returns one unreduced number per example: average them with
:func:`masked_mean`, or weigh them as you like. Hyper-parameters are keywords and may be traced, so
that a sweep is one ``vmap``. Masks (``where``) exclude examples, classes or prototypes; what is
excluded may hold anything, even nan, and gives 0. Sums run in float32 whatever the inputs, float64
if an input is. Vectors are taken as they come: where a docstring says unit length, pass them
through :func:`asdproto.prototypes.l2_normalize` first.

Gradients against prototypes are written out by hand, to keep one matrix of scores and no more. So
they are for reverse mode (``grad``, ``vjp``), and their own derivatives for forward mode over it
(Hessian-vector products); ``jvp`` of the loss itself is refused.
"""

from asdproto.losses._adacos import (
    AdaCosState,
    adacos_init,
    adacos_loss,
    adaproj_loss,
    sub_cluster_adacos_loss,
)
from asdproto.losses._contrastive import nt_xent_loss, supervised_contrastive_loss
from asdproto.losses._distance import (
    center_loss,
    prototypical_network_logits,
    prototypical_network_loss,
)
from asdproto.losses._margin import (
    arcface_logits,
    arcface_loss,
    cosface_logits,
    cosface_loss,
    proxy_softmax_logits,
    proxy_softmax_loss,
)
from asdproto.losses._numerics import masked_mean
from asdproto.losses._prototypical import (
    multi_negative_prototype_loss,
    multi_prototype_loss,
    negative_prototype_logits,
    negative_prototype_loss,
    prototypical_logits,
    prototypical_loss,
)
from asdproto.losses._vicreg import VICRegTerms, covariance_loss, variance_loss, vicreg_loss

__all__ = [
    "AdaCosState",
    "VICRegTerms",
    "adacos_init",
    "adacos_loss",
    "adaproj_loss",
    "arcface_logits",
    "arcface_loss",
    "center_loss",
    "cosface_logits",
    "cosface_loss",
    "covariance_loss",
    "masked_mean",
    "multi_negative_prototype_loss",
    "multi_prototype_loss",
    "negative_prototype_logits",
    "negative_prototype_loss",
    "nt_xent_loss",
    "prototypical_logits",
    "prototypical_loss",
    "prototypical_network_logits",
    "prototypical_network_loss",
    "proxy_softmax_logits",
    "proxy_softmax_loss",
    "sub_cluster_adacos_loss",
    "supervised_contrastive_loss",
    "variance_loss",
    "vicreg_loss",
]
