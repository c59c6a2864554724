"""Values and gradients are those of pytorch-metric-learning, where that is installed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto import losses
from asdproto.prototypes import l2_normalize

torch = pytest.importorskip("torch")
rivals = pytest.importorskip("pytorch_metric_learning.losses")

pytestmark = pytest.mark.filterwarnings("ignore")  # they are the rival's

BATCH, CLASSES, CENTERS, DIM = 12, 4, 3, 6
Z = np.random.default_rng(0).normal(size=(BATCH, DIM)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(CLASSES, CENTERS, DIM)).astype(np.float32)
Y = np.arange(BATCH) % CLASSES
DEGREES = float(np.degrees(0.5))


def softmax(loss, **hyper):
    return lambda z, w: loss(l2_normalize(z), l2_normalize(w), Y, **hyper).mean()


def pairs(loss, **hyper):
    return lambda z, w: loss(l2_normalize(z), Y, **hyper).mean()


def sphereface(z, w):
    return losses.sphereface_loss(z, l2_normalize(w), Y, margin=2.0).mean()


def n_pair(z, w):
    """The rival pairs the first two examples of each class."""
    return losses.n_pair_loss(z[:CLASSES], z[CLASSES : 2 * CLASSES]).mean()


SIZES = {"num_classes": CLASSES, "embedding_size": DIM}
CASES = {
    "proxy_softmax": (
        softmax(losses.proxy_softmax_loss),
        functools.partial(rivals.NormalizedSoftmaxLoss, temperature=0.05, **SIZES),
    ),
    "arcface": (
        softmax(losses.arcface_loss),
        functools.partial(rivals.ArcFaceLoss, margin=DEGREES, scale=64, **SIZES),
    ),
    "cosface": (
        softmax(losses.cosface_loss),
        functools.partial(rivals.CosFaceLoss, margin=0.35, scale=64, **SIZES),
    ),
    "sub_center_arcface": (
        softmax(losses.sub_center_arcface_loss),
        functools.partial(
            rivals.SubCenterArcFaceLoss, margin=DEGREES, scale=64, sub_centers=CENTERS, **SIZES
        ),
    ),
    "sphereface": (
        sphereface,
        functools.partial(rivals.SphereFaceLoss, margin=2, scale=1, **SIZES),
    ),
    "proxy_nca": (
        softmax(losses.proxy_nca_loss),
        functools.partial(rivals.ProxyNCALoss, softmax_scale=9, **SIZES),
    ),
    "soft_triple": (
        softmax(losses.soft_triple_loss),
        functools.partial(rivals.SoftTripleLoss, centers_per_class=CENTERS, **SIZES),
    ),
    "proxy_anchor": (
        softmax(losses.proxy_anchor_loss),
        functools.partial(rivals.ProxyAnchorLoss, margin=0.1, alpha=32, **SIZES),
    ),
    "supervised_contrastive": (
        pairs(losses.supervised_contrastive_loss),
        functools.partial(rivals.SupConLoss, temperature=0.1),
    ),
    "nt_xent": (
        pairs(losses.nt_xent_loss),
        functools.partial(rivals.NTXentLoss, temperature=0.1),
    ),
    "multi_similarity": (pairs(losses.multi_similarity_loss), rivals.MultiSimilarityLoss),
    "circle": (pairs(losses.circle_loss), rivals.CircleLoss),
    "triplet": (
        pairs(losses.triplet_loss),
        functools.partial(rivals.TripletMarginLoss, margin=0.2),
    ),
    "n_pair": (n_pair, rivals.NPairsLoss),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_pytorch_metric_learning(name):
    ours, make = CASES[name]
    several = name in ("sub_center_arcface", "soft_triple")
    w = W if several else W[:, 0]
    rows = w.reshape(-1, DIM)
    if name == "triplet":
        from pytorch_metric_learning.reducers import MeanReducer

        make = functools.partial(make, reducer=MeanReducer())
    module = make()
    weights = [x for x in ("W", "proxies", "fc") if hasattr(module, x)]
    flipped = bool(weights) and getattr(module, weights[0]).shape != rows.shape
    if weights:
        getattr(module, weights[0]).data = torch.from_numpy((rows.T if flipped else rows).copy())
    z = torch.from_numpy(Z.copy()).requires_grad_()
    if name == "n_pair":
        module.distance.normalize_embeddings = False
        value = module(z[: 2 * CLASSES], torch.from_numpy(Y[: 2 * CLASSES]))
    else:
        value = module(z, torch.from_numpy(Y))
    value.backward()
    found, gradients = jax.value_and_grad(ours, argnums=(0, 1))(jnp.asarray(Z), jnp.asarray(w))
    # Both in float32; scales up to 80 magnify its rounding.
    np.testing.assert_allclose(found, value.item(), rtol=2e-5)
    np.testing.assert_allclose(gradients[0], z.grad, rtol=1e-3, atol=1e-5)
    if weights:
        gradient = getattr(module, weights[0]).grad
        expected = (gradient.T if flipped else gradient).reshape(w.shape)
        np.testing.assert_allclose(gradients[1], expected, rtol=1e-3, atol=1e-5)
