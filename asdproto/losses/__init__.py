"""Metric-learning losses for JAX: pure functions of arrays that need nothing but JAX.

One contract holds for all. A loss takes embeddings ``[..., dim]``, what to compare them with, and
integer labels ``[...]``, and returns one unreduced number per example: average them with
:func:`masked_mean`, or weigh them as you like. Hyper-parameters are keywords and may be traced, so
that a sweep is one ``vmap``. Masks (``where``) exclude examples, classes or prototypes; what is
excluded may hold anything, even nan, and gives 0. Sums run in float32 whatever the inputs, float64
if an input is. Vectors are taken as they come: where a docstring says unit length, pass them
through :func:`asdproto.prototypes.l2_normalize` first. Gradients of any order, in reverse and
forward mode, are those of the formula.

========================= ==================== ============================ ========================
loss (``_loss``)          source               compares with                differs
========================= ==================== ============================ ========================
prototypical              this paper, Eq. 1    ``prototypes[C, D]``
multi_prototype           this paper, Eq. 3    ``prototypes[C, M, D]``
negative_prototype        this paper, Eq. 6    ``prototypes[C, D]``         needs ``mix`` or ``key``
multi_negative_prototype  Eq. 3 and 6          ``prototypes[C, M, D]``      needs ``mix`` or ``key``
proxy_softmax             Zhai 2019            learned ``[C, D]``, a bias
arcface                   Deng 2019            learned ``[C, D]``
cosface                   Wang 2018            learned ``[C, D]``
adacos                    Zhang 2019           learned ``[C, D]``           state in, state out
sub_cluster_adacos        Wilkinghoff 2021     learned ``[C, M, D]``        state in, state out
adaproj                   Wilkinghoff 2024     learned ``[C, M, D]``        state in, state out
prototypical_network      Snell 2017           ``prototypes[C, D]``
center                    Wen 2016             ``prototypes[C, D]``         no pieces, no shards
supervised_contrastive    Khosla 2020          the batch                    ``[examples, dim]`` only
nt_xent                   Chen 2020            the batch                    ``[examples, dim]`` only
vicreg                    Bardes 2022          a second view of the batch   no labels; three terms
========================= ==================== ============================ ========================

Losses against prototypes, center aside, can be taken by pieces of classes (``chunk_size``) and with
classes spread over devices (``class_axis_name``; reverse mode only). Functions that return logits
(``prototypical_logits``, ``arcface_logits`` ...) are for people who bring their own cross entropy,
such as optax's.

Each loss against prototypes is an equation for one embedding, as the papers write it, and
``_classes.py`` takes it over the batch.
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
