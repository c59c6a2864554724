"""Metric-learning losses for JAX: pure functions of arrays that need nothing but JAX.

**One contract.** ``loss(embeddings, prototypes, labels, *, where=None, class_where=None,
chunk_size=None, ...)`` returns one unreduced number per example:

- ``embeddings`` are floating, ``[..., dim]``; ``prototypes`` ``[classes, dim]``, or ``[classes,
  per_class, dim]`` for losses of several a class; ``labels`` integer ``[...]``. An example whose
  label is outside ``[0, classes)`` has no class and gives 0.
- Vectors are taken as they come. They are meant to be of unit length where a docstring does not say
  "any length": pass them through :func:`asdproto.prototypes.l2_normalize` first.
- ``where``, boolean ``[...]``: examples that count; the others give 0. ``class_where``, boolean
  ``[classes]`` or ``[classes, per_class]``: prototypes that count, as ``counts > 0``; an example
  without any of its own gives 0. What is excluded may hold anything, even nan, and changes neither
  values nor gradients.
- ``chunk_size``: most classes at a time. Values and gradients are the same, memory is that of a
  chunk, scores are computed twice.
- Hyper-parameters are scalar keywords and may be traced, so that a sweep is one ``vmap``. A
  temperature or a scale is positive; defaults are the authors'.
- Sums run in float32 whatever the inputs, in float64 if an input is, and losses are of that dtype.
  Gradients of any order, in reverse and forward mode, are those of the formula. Nothing is random:
  coefficients are arguments.
- Losses trace under ``jit``, ``vmap``, ``pmap`` and ``shard_map``, over automatic and explicit
  meshes with examples or classes spread over devices, and under strict promotion of dtypes and
  ranks. A symbolic batch size can be exported.
- A ValueError names the shapes that do not fit.

**Within a batch.** ``loss(embeddings, labels, *, where=None, axis_name=None, chunk_size=None,
...)`` compares examples ``[examples, dim]`` with each other, and returns one number per anchor: 0
for one without positives, which are the other examples of its class.

- An example with a negative label has no class: it gives 0 and is a negative to everyone. One that
  is excluded is no anchor, and compared with none.
- ``axis_name`` is a mapped axis that examples are spread over: each device's anchors are compared
  with the examples of all. Average gradients over devices, as for any mean.
- ``chunk_size``: anchors at a time; the number of examples must then be known, not symbolic.

**One form.** A loss against prototypes is minus the log-softmax of its ``_logits``, and that
function is the equation as the paper writes it, for one embedding or a batch of them. Masks and
chunks are added once, in ``softmax.py``. For a cross entropy of one's own, such as optax's, and for
soft labels, take the logits. A loss of another form says so, and has none.

In equations z is an embedding, p a prototype, w a learned one and y an example's own class;
examples take ``jnp`` for ``jax.numpy``. docs/losses.md lists all losses with their sources. Average
them with :func:`masked_mean`.
"""

from asdproto.losses.adacos import AdaCosState as AdaCosState
from asdproto.losses.adacos import adacos_init as adacos_init
from asdproto.losses.adacos import adacos_loss as adacos_loss
from asdproto.losses.adacos import adaproj_loss as adaproj_loss
from asdproto.losses.adacos import sub_cluster_adacos_loss as sub_cluster_adacos_loss
from asdproto.losses.distance import center_loss as center_loss
from asdproto.losses.distance import prototypical_network_logits as prototypical_network_logits
from asdproto.losses.distance import prototypical_network_loss as prototypical_network_loss
from asdproto.losses.margin import arcface_logits as arcface_logits
from asdproto.losses.margin import arcface_loss as arcface_loss
from asdproto.losses.margin import cosface_logits as cosface_logits
from asdproto.losses.margin import cosface_loss as cosface_loss
from asdproto.losses.margin import magface_logits as magface_logits
from asdproto.losses.margin import magface_loss as magface_loss
from asdproto.losses.margin import sphereface_logits as sphereface_logits
from asdproto.losses.margin import sphereface_loss as sphereface_loss
from asdproto.losses.margin import sub_center_arcface_logits as sub_center_arcface_logits
from asdproto.losses.margin import sub_center_arcface_loss as sub_center_arcface_loss
from asdproto.losses.numerics import masked_mean as masked_mean
from asdproto.losses.pairs import circle_loss as circle_loss
from asdproto.losses.pairs import multi_similarity_loss as multi_similarity_loss
from asdproto.losses.pairs import n_pair_loss as n_pair_loss
from asdproto.losses.pairs import nt_xent_loss as nt_xent_loss
from asdproto.losses.pairs import supervised_contrastive_loss as supervised_contrastive_loss
from asdproto.losses.pairs import triplet_loss as triplet_loss
from asdproto.losses.prototype import angular_prototypical_loss as angular_prototypical_loss
from asdproto.losses.prototype import multi_negative_prototype_loss as multi_negative_prototype_loss
from asdproto.losses.prototype import multi_prototype_loss as multi_prototype_loss
from asdproto.losses.prototype import negative_prototype_logits as negative_prototype_logits
from asdproto.losses.prototype import negative_prototype_loss as negative_prototype_loss
from asdproto.losses.prototype import prototypical_logits as prototypical_logits
from asdproto.losses.prototype import prototypical_loss as prototypical_loss
from asdproto.losses.proxies import focal_loss as focal_loss
from asdproto.losses.proxies import logit_adjusted_logits as logit_adjusted_logits
from asdproto.losses.proxies import logit_adjusted_loss as logit_adjusted_loss
from asdproto.losses.proxies import proxy_anchor_loss as proxy_anchor_loss
from asdproto.losses.proxies import proxy_nca_loss as proxy_nca_loss
from asdproto.losses.proxies import proxy_softmax_logits as proxy_softmax_logits
from asdproto.losses.proxies import proxy_softmax_loss as proxy_softmax_loss
from asdproto.losses.proxies import soft_triple_logits as soft_triple_logits
from asdproto.losses.proxies import soft_triple_loss as soft_triple_loss
from asdproto.losses.views import VICRegTerms as VICRegTerms
from asdproto.losses.views import barlow_twins_loss as barlow_twins_loss
from asdproto.losses.views import covariance_loss as covariance_loss
from asdproto.losses.views import variance_loss as variance_loss
from asdproto.losses.views import vicreg_loss as vicreg_loss
