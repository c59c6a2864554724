import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rivals.mobilefacenet import MobileFaceNet, STgramMFN, Tgram
from tests.models import oracles

TINY = {"stages": ((2, 8, 2, 2), (1, 8, 1, 1)), "head": 12, "dim": 6}


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _init(model, *inputs, **more):
    return jax.jit(lambda k: model.init(k, *inputs, **more))(jax.random.key(0))


def _size(tree):
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def shapes():
    """Variables and intermediate results on a clip of 10 s."""
    model, clip = STgramMFN(), jnp.zeros((1, 313, 128 + 512))
    variables = jax.eval_shape(lambda k: model.init(k, clip, train=False), jax.random.key(0))

    def apply(variables):
        return model.apply(variables, clip, train=False, capture_intermediates=True)[1]

    return variables, jax.eval_shape(apply, variables)["intermediates"]


def test_parameters_are_those_of_the_published_layers(shapes):
    params = shapes[0]["params"]
    # One wide convolution; three narrow ones, each after a gain and a bias for all 313 frames.
    assert _size(params["tgram"]) == 1024 * 128 + 3 * (3 * 128 * 128 + 2 * 313)

    def layer(weights, channels, activated=True):
        return weights + channels * (3 if activated else 2)  # scale, bias and slope of a channel

    def bottleneck(expansion, before, after):
        inner = expansion * before
        expanded = layer(before * inner, inner) + layer(9 * inner, inner)
        return expanded + layer(inner * after, after, activated=False)

    expected = layer(9 * 2 * 64, 64) + layer(9 * 64, 64)
    expected += 5 * bottleneck(2, 64, 64) + bottleneck(4, 64, 128) + 6 * bottleneck(2, 128, 128)
    expected += bottleneck(4, 128, 128) + 2 * bottleneck(2, 128, 128)
    expected += layer(128 * 512, 512) + layer(8 * 20 * 512, 512, False) + layer(512 * 128, 128, 0)
    assert _size(params["mobilefacenet"]) == expected


def test_stages_have_the_shapes_of_the_paper(shapes):
    # Table 1 of Chen et al., for images of 313 frames and 128 bands instead of 112 x 112.
    expected = {
        "stem_norm": (157, 64, 64),
        "stem_depthwise_norm": (157, 64, 64),
        "stage1_block5_project_norm": (79, 32, 64),
        "stage2_block1_project_norm": (40, 16, 128),
        "stage3_block6_project_norm": (40, 16, 128),
        "stage4_block1_project_norm": (20, 8, 128),
        "stage5_block2_project_norm": (20, 8, 128),
        "head_norm": (20, 8, 512),
        "pool_norm": (512,),
        "embedding_norm": (128,),
    }
    network = shapes[1]["mobilefacenet"]
    found = {name: network[name]["__call__"][0].shape for name in expected}
    assert found == {name: (1, *shape) for name, shape in expected.items()}
    assert shapes[1]["tgram"]["__call__"][0].shape == (1, 313, 128)
    assert shapes[1]["__call__"][0].shape == (1, STgramMFN().embedding_dim)


def test_operations_a_clip_are_those_of_the_docstring(shapes):
    model, clip = STgramMFN(), jnp.zeros((1, 313, 128 + 512))
    program = jax.jit(lambda v: model.apply(v, clip, train=False)).lower(shapes[0])
    text = " ".join(STgramMFN.__doc__.split())
    assert f"{program.cost_analysis()['flops'] / 1e9:.2f} billion floating" in text
    assert f"{_size(shapes[0]['params']) / 1e6:.2f} million parameters" in text


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
        y = np.where(y > 0, y, 0.2 * y)
        padded = np.pad(y, ((0, 0), (1, 1), (0, 0)))
        kernel = params[f"conv{layer}"]
        windows = np.stack([padded[:, i : i + frames] for i in range(3)], axis=2)
        y = np.einsum("bfkc,kco->bfo", windows, kernel)
    return y


def test_learned_spectrogram_equals_its_formula():
    hops = _random(3, 6, 8)
    tgram = Tgram(bands=5)
    params = oracles.random_variables(_init(tgram, hops))["params"]
    found = tgram.apply({"params": params}, hops)
    assert found.shape == (3, 6, 5)
    # Five layers of float32, numbers of size 5.
    np.testing.assert_allclose(found, _tgram(oracles.wide(params), hops), atol=1e-4)


def _forward(variables, x, stages):
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
    for stage, (_, _, blocks, stride) in enumerate(stages, start=1):
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


@pytest.mark.parametrize("lowering", ["native", "patches"])
def test_network_equals_a_plain_forward_pass(lowering):
    model = STgramMFN(n_mels=6, lowering=lowering, **TINY)
    clip = 5 * _random(2, 15, 6 + 8)  # 8 frames after the stem: an even map to halve
    variables = oracles.random_variables(_init(model, clip, train=False))
    found = jax.jit(lambda v: model.apply(v, clip, train=False))(variables)
    tgram = _tgram(oracles.wide(variables["params"]["tgram"]), clip[..., 6:])
    inner = {kind: tree["mobilefacenet"] for kind, tree in variables.items()}
    images = np.stack([np.asarray(clip[..., :6], np.float64), tgram], axis=-1)
    expected = _forward(inner, images, TINY["stages"])
    assert found.shape == (2, 6)
    assert found.dtype == jnp.float32
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    # Twenty layers of float32, then a division by the length.
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_devices_and_padding_change_nothing():
    images = _random(8, 8, 8, 2)
    where = jnp.arange(8) < 5
    model = MobileFaceNet(stem=8, **TINY)
    variables = _init(model, images, train=False)
    alone = jax.jit(lambda v: model.apply(v, images[:5], train=True, mutable=["batch_stats"]))
    expected, wanted = alone(variables)
    spread = model.clone(axis_name="batch")

    def apply(images, where):
        return spread.apply(variables, images, train=True, where=where, mutable=["batch_stats"])

    spoiled = jnp.where(where[:, None, None, None], images, 100.0)
    found, stats = jax.pmap(apply, axis_name="batch")(
        spoiled.reshape(4, 2, 8, 8, 2), where.reshape(4, 2)
    )
    np.testing.assert_allclose(found.reshape(8, -1)[:5], expected, atol=1e-4)
    for one, other in zip(jax.tree.leaves(stats), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one[0], other, atol=2e-5)
