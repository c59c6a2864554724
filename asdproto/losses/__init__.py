"""Metric-learning losses for JAX: pure functions of arrays that need nothing but JAX.

**One contract.** ``loss(embeddings, prototypes, labels, *, where=None, class_where=None,
chunk_size=None, ...)`` returns one unreduced number per example:

- ``embeddings`` are floating, ``[..., dim]``; ``prototypes`` ``[classes, dim]``, or ``[classes,
  per_class, dim]`` for losses of several a class; ``labels`` integer ``[...]``. An example whose
  label is outside ``[0, classes)`` has no class and gives 0.
- ``where``, boolean ``[...]``: examples that count; the others give 0. ``class_where``, boolean
  ``[classes]`` or ``[classes, per_class]``: prototypes that count, as ``counts > 0``; an example
  without any of its own gives 0. What is excluded may hold anything, even nan, and changes neither
  values nor gradients.
- ``chunk_size``: most classes (or examples, where these are compared with each other) at a time.
  Values and gradients are the same, memory is that of a chunk, scores are computed twice.
- Hyper-parameters are scalar keywords and may be traced, so that a sweep is one ``vmap``.
- Sums run in float32 whatever the inputs, in float64 if an input is. Gradients of any order, in
  reverse and forward mode, are those of the formula. Nothing is random: coefficients are arguments.
- Losses trace under ``jit``, ``vmap``, ``pmap`` and ``shard_map``, over automatic and explicit
  meshes with examples or classes spread over devices, and under strict promotion of dtypes and
  ranks. A symbolic batch size can be exported.
- A ValueError names the shapes that do not fit.

Vectors are taken as they come: where a docstring says unit length, pass them through
:func:`asdproto.prototypes.l2_normalize` first. Average losses with :func:`masked_mean`.

**One form.** A loss against prototypes is minus the log-softmax of its ``_logits``, and that
function is the equation as the paper writes it, for one embedding or a batch of them. Masks and
chunks are added once, in ``softmax.py``. For a cross entropy of one's own, such as optax's, and for
soft labels, take the logits.

========================= ==================== ============================ ========================
loss (``_loss``)          source               compares with                differs
========================= ==================== ============================ ========================
prototypical              this paper, Eq. 1    ``prototypes[C, D]``
multi_prototype           this paper, Eq. 3    ``prototypes[C, M, D]``
negative_prototype        this paper, Eq. 6    ``prototypes[C, D]``         needs ``mix``
multi_negative_prototype  Eq. 3 and 6          ``prototypes[C, M, D]``      needs ``mix``
proxy_softmax             Zhai 2019            learned ``[C, D]``, a bias
arcface                   Deng 2019            learned ``[C, D]``
cosface                   Wang 2018            learned ``[C, D]``
adacos                    Zhang 2019           learned ``[C, D]``           state in, state out
sub_cluster_adacos        Wilkinghoff 2021     learned ``[C, M, D]``        state in, state out
adaproj                   Wilkinghoff 2024     learned ``[C, M, D]``        state in, state out
prototypical_network      Snell 2017           ``prototypes[C, D]``
center                    Wen 2016             ``prototypes[C, D]``         no chunks
supervised_contrastive    Khosla 2020          the batch                    ``[examples, dim]`` only
nt_xent                   Chen 2020            the batch                    ``[examples, dim]`` only
vicreg                    Bardes 2022          a second view of the batch   no labels; three terms
========================= ==================== ============================ ========================
"""

from asdproto.losses.adacos import (
    AdaCosState,
    adacos_init,
    adacos_loss,
    adaproj_loss,
    sub_cluster_adacos_loss,
)
from asdproto.losses.distance import (
    center_loss,
    prototypical_network_logits,
    prototypical_network_loss,
)
from asdproto.losses.margin import (
    arcface_logits,
    arcface_loss,
    cosface_logits,
    cosface_loss,
    proxy_softmax_logits,
    proxy_softmax_loss,
)
from asdproto.losses.numerics import masked_mean
from asdproto.losses.pairs import nt_xent_loss, supervised_contrastive_loss
from asdproto.losses.prototype import (
    multi_negative_prototype_loss,
    multi_prototype_loss,
    negative_prototype_logits,
    negative_prototype_loss,
    prototypical_logits,
    prototypical_loss,
)
from asdproto.losses.views import VICRegTerms, covariance_loss, variance_loss, vicreg_loss

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
