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
angular_prototypical      Wan 2018, Chung 2020 ``prototypes[C, D]``
prototypical_network      Snell 2017           ``prototypes[C, D]``
center                    Wen 2016             ``prototypes[C, D]``         no chunks
proxy_softmax             Zhai 2019            learned ``[C, D]``           a bias
logit_adjusted            Menon 2021           learned ``[C, D]``           counts of classes
focal                     Lin 2017             learned ``[C, D]``           no softmax
proxy_nca                 Teh 2020             learned ``[C, D]``
soft_triple               Qian 2019            learned ``[C, M, D]``
proxy_anchor              Kim 2020             learned ``[C, D]``           one number a class
arcface                   Deng 2019            learned ``[C, D]``
sub_center_arcface        Deng 2020            learned ``[C, M, D]``
cosface                   Wang 2018            learned ``[C, D]``
sphereface                Liu 2017             learned ``[C, D]``           of any length
magface                   Meng 2021            learned ``[C, D]``           of any length
adacos                    Zhang 2019           learned ``[C, D]``           state in, state out
sub_cluster_adacos        Wilkinghoff 2021     learned ``[C, M, D]``        state in, state out
adaproj                   Wilkinghoff 2024     learned ``[C, M, D]``        state in, state out
supervised_contrastive    Khosla 2020          the batch                    ``[examples, dim]`` only
nt_xent                   Chen 2020            the batch                    ``[examples, dim]`` only
multi_similarity          Wang 2019            the batch                    ``[examples, dim]`` only
circle                    Sun 2020             the batch                    ``[examples, dim]`` only
triplet                   Hermans 2017         the batch                    ``[examples, dim]`` only
n_pair                    Sohn 2016            a positive for each example  no labels
vicreg                    Bardes 2022          a second view of the batch   no labels; three terms
barlow_twins              Zbontar 2021         a second view of the batch   no labels; one number
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
    magface_logits,
    magface_loss,
    sphereface_logits,
    sphereface_loss,
    sub_center_arcface_logits,
    sub_center_arcface_loss,
)
from asdproto.losses.numerics import masked_mean
from asdproto.losses.pairs import (
    circle_loss,
    multi_similarity_loss,
    n_pair_loss,
    nt_xent_loss,
    supervised_contrastive_loss,
    triplet_loss,
)
from asdproto.losses.prototype import (
    angular_prototypical_loss,
    multi_negative_prototype_loss,
    multi_prototype_loss,
    negative_prototype_logits,
    negative_prototype_loss,
    prototypical_logits,
    prototypical_loss,
)
from asdproto.losses.proxies import (
    focal_loss,
    logit_adjusted_logits,
    logit_adjusted_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
    proxy_softmax_logits,
    proxy_softmax_loss,
    soft_triple_logits,
    soft_triple_loss,
)
from asdproto.losses.views import (
    VICRegTerms,
    barlow_twins_loss,
    covariance_loss,
    variance_loss,
    vicreg_loss,
)

__all__ = [
    "AdaCosState",
    "VICRegTerms",
    "adacos_init",
    "adacos_loss",
    "adaproj_loss",
    "angular_prototypical_loss",
    "arcface_logits",
    "arcface_loss",
    "barlow_twins_loss",
    "center_loss",
    "circle_loss",
    "cosface_logits",
    "cosface_loss",
    "covariance_loss",
    "focal_loss",
    "logit_adjusted_logits",
    "logit_adjusted_loss",
    "magface_logits",
    "magface_loss",
    "masked_mean",
    "multi_negative_prototype_loss",
    "multi_prototype_loss",
    "multi_similarity_loss",
    "n_pair_loss",
    "negative_prototype_logits",
    "negative_prototype_loss",
    "nt_xent_loss",
    "prototypical_logits",
    "prototypical_loss",
    "prototypical_network_logits",
    "prototypical_network_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "proxy_softmax_logits",
    "proxy_softmax_loss",
    "soft_triple_logits",
    "soft_triple_loss",
    "sphereface_logits",
    "sphereface_loss",
    "sub_center_arcface_logits",
    "sub_center_arcface_loss",
    "sub_cluster_adacos_loss",
    "supervised_contrastive_loss",
    "triplet_loss",
    "variance_loss",
    "vicreg_loss",
]
