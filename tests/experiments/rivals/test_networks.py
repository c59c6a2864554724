"""MobileNetV2, MobileFaceNet and the learned spectrogram, against plain forward passes."""

import json

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


@pytest.mark.parametrize(
    ("name", "unit", "parameters", "operations"),
    [
        ("mobilenet", 1e6, "687,680 parameters", "32 million"),
        ("stgram", 1e9, "1.34 million parameters", "1.64 billion"),
        ("dgmix", 1e6, "532,000 parameters", "30 million"),
        ("disentangled", 1e9, "11.2 million parameters", "0.46 billion"),
        ("adacos", 1e9, "11.2 million parameters", "0.46 billion"),
    ],
)
def test_networks_are_as_large_as_their_docstrings_say(name, unit, parameters, operations):
    system = preset(tiny.KINDS[name], "paper")
    assert from_dict(type(system), json.loads(json.dumps(to_dict(system)))) == system
    text = " ".join(type(system).__doc__.split())
    assert parameters in text
    assert f"{operations} floating-point operations" in text
    model = system.encoder()
    crops = jnp.zeros((1, system.crop, system.features.columns))
    shapes = jax.eval_shape(lambda k: model.init(k, crops, train=False), jax.random.key(0))
    program = jax.jit(lambda v: model.apply(v, crops, train=False)).lower(shapes)
    counted = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    number = float(parameters.split()[0].replace(",", "")) * (1e6 if "million" in parameters else 1)
    # All digits, where they stand there, are what Keras counts for MobileNetV2(alpha=0.5).
    assert counted == pytest.approx(number, rel=0 if number % 1000 else 3e-3)
    number = float(operations.split()[0]) * unit
    assert program.cost_analysis()["flops"] == pytest.approx(number, rel=2e-2)


def _mobilenet(variables, crops):
    """The network in float64, its three input channels in full."""
    params, stats = oracles.wide(variables["params"]), oracles.wide(variables["batch_stats"])

    def norm(name, x):
        return oracles.normalize(x, params[name], stats[name], 1e-3)

    def relu6(x):
        return np.clip(x, 0, 6)

    def same(x, kernel, stride):
        # Even maps, windows of 3: TensorFlow adds one row and column after them, or one around.
        return oracles.convolution(x, kernel, stride=stride, before=1 if stride == 1 else 0)

    x = np.repeat(np.asarray(crops, np.float64)[..., None], 3, axis=-1)
    x = relu6(norm("stem_norm", same(x, params["stem"], 2)))
    for stage, (expansion, _, blocks, stride) in enumerate(NET_STAGES, start=1):
        for block in range(blocks):
            name = f"stage{stage}_block{block + 1}"
            y = x
            if expansion > 1:
                y = relu6(norm(f"{name}_expand_norm", y @ params[f"{name}_expand"]["kernel"]))
            y = same(y, params[f"{name}_depthwise"]["kernel"], stride if block == 0 else 1)
            y = relu6(norm(f"{name}_depthwise_norm", y))
            y = norm(f"{name}_project_norm", y @ params[f"{name}_project"]["kernel"])
            x = x + y if block and x.shape == y.shape else y
    return relu6(norm("head_norm", x @ params["head"]["kernel"])).mean((1, 2))


@every_lowering
def test_mobilenet_equals_a_plain_forward_pass(lowering):
    model, crops = MobileNetV2(lowering=lowering, **NET), 2 * _random(2, 8, 16)
    variables = oracles.random_variables(_init(model, crops))
    found = jax.jit(lambda v: model.apply(v, crops, train=False))(variables)
    expected = _mobilenet(variables, crops)
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


def _mobilefacenet(variables, x):
    params, stats = oracles.wide(variables["params"]), oracles.wide(variables["batch_stats"])

    def norm(name, x):
        return oracles.normalize(x, params[f"{name}_norm"], stats[f"{name}_norm"], 1e-5)

    def activate(name, x):
        x = norm(name, x)
        return np.maximum(x, 0) + params[f"{name}_slope"] * np.minimum(x, 0)

    def depthwise(name, x, stride):
        kernel = params[name]["kernel"]
        return activate(name, oracles.convolution(x, kernel, stride=stride, before=1))

    x = activate("stem", oracles.convolution(x, params["stem"], stride=2, before=1))
    x = depthwise("stem_depthwise", x, 1)
    for stage, (_, _, blocks, stride) in enumerate(FACE_STAGES, start=1):
        for block in range(blocks):
            name = f"stage{stage}_block{block + 1}"
            step = stride if block == 0 else 1
            y = activate(f"{name}_expand", x @ params[f"{name}_expand"]["kernel"])
            y = depthwise(f"{name}_depthwise", y, step)
            y = norm(f"{name}_project", y @ params[f"{name}_project"]["kernel"])
            x = x + y if step == 1 and x.shape == y.shape else y
    x = activate("head", x @ params["head"]["kernel"])
    x = norm("pool", np.sum(x * params["pool"], axis=(1, 2)))
    return oracles.unit(norm("embedding", x @ params["embedding"]["kernel"]))


@every_lowering
def test_stgram_equals_a_plain_forward_pass(lowering):
    model = STgramMFN(n_mels=6, lowering=lowering, stages=FACE_STAGES, head=12, embedding_dim=6)
    clip = 5 * _random(2, 15, 6 + 8)  # 8 frames after the stem: an even map to halve
    variables = oracles.random_variables(_init(model, clip))
    found = jax.jit(lambda v: model.apply(v, clip, train=False))(variables)
    tgram = _tgram(oracles.wide(variables["params"]["tgram"]), clip[..., 6:])
    images = np.stack([np.asarray(clip[..., :6], np.float64), tgram], axis=-1)
    expected = _mobilefacenet(variables, images)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    # Twenty layers of float32, then a division by the length.
    np.testing.assert_allclose(found, expected, atol=1e-4)
