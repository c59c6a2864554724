"""MobileNetV2, MobileFaceNet and the learned spectrogram, against plain forward passes."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto.config import from_dict, to_dict
from asdproto.systems import preset
from experiments.rivals.mobilenet import MobileNetV2
from experiments.rivals.stgram import STgramMFN
from tests.experiments.rivals import tiny
from tests.models import oracles

NET_STAGES = ((1, 16, 1, 1), (3, 24, 2, 2))
NET = {"alpha": 0.5, "head": 8, "stages": NET_STAGES, "momentum": 0.9}
FACE_STAGES = ((2, 8, 2, 2), (3, 8, 1, 1))
every_lowering = pytest.mark.parametrize("lowering", ["native", "patches"])


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _init(model, *inputs):
    return jax.jit(lambda k: model.init(k, *inputs, train=False))(jax.random.key(0))


@pytest.mark.parametrize("name", tiny.KINDS)
def test_networks_are_as_large_as_their_docstrings_say(name):
    system = preset(tiny.KINDS[name], "paper")
    assert from_dict(type(system), json.loads(json.dumps(to_dict(system)))) == system
    text = " ".join(type(system).__doc__.split())
    what = "(parameters|floating-point operations)"
    said = {
        what: float(number.replace(",", "")) * {"million": 1e6, "billion": 1e9}.get(unit, 1)
        for number, unit, what in re.findall(rf"([\d.,]+) ?(million|billion|) {what}", text)
    }
    model = system.encoder()
    crops = jnp.zeros((1, system.crop, system.features.columns))
    shapes = jax.eval_shape(lambda k: model.init(k, crops, train=False), jax.random.key(0))
    program = jax.jit(lambda v: model.apply(v, crops, train=False)).lower(shapes)
    counted = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    # All digits, where they stand there, are what Keras counts for MobileNetV2(alpha=0.5).
    exact = said["parameters"] % 1000
    assert counted == pytest.approx(said["parameters"], rel=0 if exact else 3e-3)
    operations = said["floating-point operations"]
    assert program.cost_analysis()["flops"] == pytest.approx(operations, rel=2e-2)


class Plain:
    """Layers in float64, by the names of the variables that they read."""

    def __init__(self, variables, rectify, epsilon, same=False):
        self.params, self.stats = (oracles.wide(variables[k]) for k in ("params", "batch_stats"))
        self.rectify, self.epsilon, self.same = rectify, epsilon, same

    def norm(self, name, x):
        name = f"{name}_norm"
        return oracles.normalize(x, self.params[name], self.stats[name], self.epsilon)

    def activate(self, name, x):
        return self.rectify(self.norm(name, x), self.params.get(f"{name}_slope"))

    def dense(self, name, x):
        return x @ self.params[name]["kernel"]

    def convolve(self, name, x, stride):
        kernel = self.params[name]
        kernel = kernel["kernel"] if isinstance(kernel, dict) else kernel
        # Even maps, windows of 3: TensorFlow adds one row and column after them, or one around.
        before = 0 if self.same and stride == 2 else 1
        return self.activate(name, oracles.convolution(x, kernel, stride=stride, before=before))

    def blocks(self, x, stages):
        for stage, (expansion, _, blocks, stride) in enumerate(stages, start=1):
            for block in range(blocks):
                name, step = f"stage{stage}_block{block + 1}", stride if block == 0 else 1
                y = x
                if expansion > 1:
                    y = self.activate(f"{name}_expand", self.dense(f"{name}_expand", x))
                y = self.convolve(f"{name}_depthwise", y, step)
                y = self.norm(f"{name}_project", self.dense(f"{name}_project", y))
                x = x + y if step == 1 and x.shape == y.shape else y
        return self.activate("head", self.dense("head", x))


@every_lowering
def test_mobilenet_equals_a_plain_forward_pass(lowering):
    model, crops = MobileNetV2(lowering=lowering, **NET), 2 * _random(2, 8, 16)
    variables = oracles.random_variables(_init(model, crops))
    found = jax.jit(lambda v: model.apply(v, crops, train=False))(variables)
    plain = Plain(variables, lambda x, _: np.clip(x, 0, 6), 1e-3, same=True)
    images = np.repeat(np.asarray(crops, np.float64)[..., None], 3, axis=-1)
    expected = plain.blocks(plain.convolve("stem", images, 2), NET_STAGES).mean((1, 2))
    assert np.ptp(expected) > 0.5  # neither dead nor all at the rectifier's 6
    # Ten layers of float32.
    np.testing.assert_allclose(found, expected, atol=2e-5)


def _tgram(params, hops):
    """Window by window in float64; a window is padded with one hop of zeros on the left."""
    batch, frames, hop = hops.shape
    x = np.pad(np.asarray(hops, np.float64).reshape(batch, -1), ((0, 0), (hop, 0)))
    wide = params["wide"].reshape(2 * hop, -1)
    y = np.stack([x[:, i * hop : i * hop + 2 * hop] @ wide for i in range(frames)], axis=1)
    for layer in (1, 2, 3):
        norm = params[f"norm{layer}"]
        y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5)
        y = y * norm["scale"][:, None] + norm["bias"][:, None]
        padded = np.pad(np.where(y > 0, y, 0.2 * y), ((0, 0), (1, 1), (0, 0)))
        windows = np.stack([padded[:, i : i + frames] for i in range(3)], axis=2)
        y = np.einsum("bfkc,kco->bfo", windows, params[f"conv{layer}"])
    return y


@every_lowering
def test_stgram_equals_a_plain_forward_pass(lowering):
    model = STgramMFN(n_mels=6, lowering=lowering, stages=FACE_STAGES, head=12, embedding_dim=6)
    clip = 5 * _random(2, 15, 6 + 8)  # 8 frames after the stem: an even map to halve
    variables = oracles.random_variables(_init(model, clip))
    found = jax.jit(lambda v: model.apply(v, clip, train=False))(variables)
    tgram = _tgram(oracles.wide(variables["params"]["tgram"]), clip[..., 6:])
    images = np.stack([np.asarray(clip[..., :6], np.float64), tgram], axis=-1)
    plain = Plain(variables, lambda x, slope: np.maximum(x, 0) + slope * np.minimum(x, 0), 1e-5)
    x = plain.convolve("stem_depthwise", plain.convolve("stem", images, 2), 1)
    x = plain.norm("pool", np.sum(plain.blocks(x, FACE_STAGES) * plain.params["pool"], axis=(1, 2)))
    expected = oracles.unit(plain.norm("embedding", plain.dense("embedding", x)))
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    # Twenty layers of float32, then a division by the length.
    np.testing.assert_allclose(found, expected, atol=1e-4)
