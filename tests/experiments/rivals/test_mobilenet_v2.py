import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments.rivals.mobilenet_v2 import STAGES, MobileNetV2, depthwise, round_channels
from tests.models import oracles

TINY = {"alpha": 0.5, "head": 8, "stages": ((1, 16, 1, 1), (3, 24, 2, 2)), "momentum": 0.9}


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _init(model, crops):
    return jax.jit(lambda k: model.init(k, crops, train=False))(jax.random.key(0))


def _size(tree):
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def shapes():
    """Variables and intermediate results of the baseline's network on one of its windows."""
    model, crops = MobileNetV2(), jnp.zeros((1, 64, 128))
    variables = jax.eval_shape(lambda k: model.init(k, crops, train=False), jax.random.key(0))

    def apply(variables):
        return model.apply(variables, crops, train=False, capture_intermediates=True)[1]

    return variables, jax.eval_shape(apply, variables)["intermediates"]


def test_it_is_keras_mobilenet_of_alpha_one_half(shapes):
    # What Keras counts for MobileNetV2(alpha=0.5, include_top=False), running statistics included.
    assert _size(shapes[0]) == 706_224
    assert _size(shapes[0]["params"]) == 687_680


def test_stages_have_the_shapes_of_the_paper(shapes):
    # Table 2 of Sandler et al. at alpha 0.5, for images of 64 x 128 instead of 224 x 224.
    expected = {
        "stem_norm": (32, 64, 16),
        "stage1_block1_project_norm": (32, 64, 8),
        "stage2_block2_project_norm": (16, 32, 16),
        "stage3_block3_project_norm": (8, 16, 16),
        "stage4_block4_project_norm": (4, 8, 32),
        "stage5_block3_project_norm": (4, 8, 48),
        "stage6_block3_project_norm": (2, 4, 80),
        "stage7_block1_project_norm": (2, 4, 160),
        "head_norm": (2, 4, 1280),
    }
    found = {name: shapes[1][name]["__call__"][0].shape for name in expected}
    assert found == {name: (1, *shape) for name, shape in expected.items()}
    assert shapes[1]["__call__"][0].shape == (1, MobileNetV2().embedding_dim)
    assert sum(name.endswith("project_norm") for name in shapes[1]) == 17


def test_operations_a_window_are_those_of_the_docstring(shapes):
    model, crops = MobileNetV2(), jnp.zeros((1, 64, 128))
    program = jax.jit(lambda v: model.apply(v, crops, train=False)).lower(shapes[0])
    counted = program.cost_analysis()["flops"]
    assert f"{counted / 1e6:.0f} million floating" in " ".join(MobileNetV2.__doc__.split())
    # Two for each product of a convolution make up most of them; the stem sees one channel.
    products = 32 * 64 * 9 * 16
    rows, columns, channels = 32, 64, 16
    for expansion, features, blocks, stride in STAGES:
        for step in (stride,) + (1,) * (blocks - 1):
            inner = expansion * channels
            products += rows * columns * channels * inner * (expansion > 1)
            rows, columns, channels = rows // step, columns // step, round_channels(features / 2)
            products += rows * columns * inner * (9 + channels)
    products += rows * columns * channels * 1280
    # The rest are normalizations and additions.
    assert 0.8 * counted < 2 * products < counted


@pytest.mark.parametrize(("channels", "expected"), [(16, 16), (12, 16), (11, 16), (48, 48), (3, 8)])
def test_channels_are_rounded_as_published(channels, expected):
    assert round_channels(channels) == expected


@pytest.mark.parametrize("lowering", ["native", "patches"])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_depthwise_convolution_equals_loops(lowering, size, stride, symmetric):
    shape = (2, 7, 4, 3)
    x, kernel = _random(*shape), _random(size, size, 1, shape[-1], seed=1)
    found = depthwise(x, kernel, strides=stride, symmetric=symmetric, lowering=lowering)
    if symmetric:
        expected = oracles.convolution(
            oracles.wide(x), oracles.wide(kernel), stride=stride, before=size // 2
        )
    else:
        expected = lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=shape[-1],
        )
    # Sums of at most 25 products of unit normals, in float32.
    np.testing.assert_allclose(found, expected, atol=2e-5)


def _forward(variables, crops, stages):
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
    for stage, (expansion, _, blocks, stride) in enumerate(stages, start=1):
        for block in range(blocks):
            name = f"stage{stage}_block{block + 1}"
            y = x
            if expansion > 1:
                y = relu6(norm(f"{name}_expand_norm", y @ params[f"{name}_expand"]["kernel"]))
            step = stride if block == 0 else 1
            y = same(y, params[f"{name}_depthwise"]["kernel"], step)
            y = relu6(norm(f"{name}_depthwise_norm", y))
            y = norm(f"{name}_project_norm", y @ params[f"{name}_project"]["kernel"])
            x = x + y if block and x.shape == y.shape else y
    x = relu6(norm("head_norm", x @ params["head"]["kernel"]))
    return x.mean((1, 2))


@pytest.mark.parametrize(("lowering", "unit"), [("native", False), ("patches", True)])
def test_network_equals_a_plain_forward_pass(lowering, unit):
    model, crops = MobileNetV2(lowering=lowering, unit=unit, **TINY), 2 * _random(2, 8, 16)
    variables = oracles.random_variables(_init(model, crops))
    found = jax.jit(lambda v: model.apply(v, crops, train=False))(variables)
    expected = _forward(variables, crops, TINY["stages"])
    assert found.shape == (2, 8)
    assert found.dtype == jnp.float32
    assert np.ptp(expected) > 0.5  # neither dead nor all at the rectifier's 6
    # Ten layers of float32.
    expected = oracles.unit(expected) if unit else expected
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_devices_and_padding_change_nothing():
    crops = _random(8, 8, 8)
    where = jnp.arange(8) < 5
    model = MobileNetV2(**TINY)
    variables = _init(model, crops)
    alone = jax.jit(lambda v: model.apply(v, crops[:5], train=True, mutable=["batch_stats"]))
    expected, wanted = alone(variables)
    spread = model.clone(axis_name="batch")

    def apply(crops, where):
        return spread.apply(variables, crops, train=True, where=where, mutable=["batch_stats"])

    spoiled = jnp.where(where[:, None, None], crops, 100.0)
    found, stats = jax.pmap(apply, axis_name="batch")(
        spoiled.reshape(4, 2, 8, 8), where.reshape(4, 2)
    )
    np.testing.assert_allclose(found.reshape(8, -1)[:5], expected, atol=2e-5)
    for one, other in zip(jax.tree.leaves(stats), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one[0], other, atol=2e-5)
    # From 0, an update takes what the momentum leaves of the batch mean.
    slow = model.clone(momentum=0.5).apply(variables, crops[:5], train=True, mutable="batch_stats")
    one, other = (found["batch_stats"]["stem_norm"]["mean"] for found in (wanted, slow[1]))
    np.testing.assert_allclose(one / other, (1 - 0.9) / (1 - 0.5), rtol=1e-5)
