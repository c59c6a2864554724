import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from asdproto.models import convolution, normalization
from asdproto.models.normalization import BatchNorm
from asdproto.models.resnet import ResNet, TimeFrequencyAttentionPooling
from tests.models import oracles


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


# The last two are strided stems of one channel, which have a form of their own. XLA's convolution
# with strides is compared in test_network_is_the_same_in_patches.
@pytest.mark.parametrize("lowering", ["native_if_large", "patches"])
@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        ((2, 9, 6, 3), 3, 1),
        ((2, 16, 12, 3), 7, 2),
        ((3, 2, 4, 3), 3, 2),
        ((2, 16, 12, 1), 7, 2),
        ((1, 15, 9, 1), 5, 2),
    ],
)
def test_convolution_equals_loops(lowering, shape, size, stride):
    x, kernel = _random(*shape), _random(size, size, shape[-1], 5, seed=1)
    convolve = functools.partial(convolution.convolve, strides=stride, lowering=lowering)
    found = jax.jit(convolve)(x, kernel)
    # Sums of at most 147 products of unit normals, in float32.
    expected = oracles.convolution(*oracles.wide((x, kernel)), stride=stride, before=size // 2)
    np.testing.assert_allclose(found, expected, atol=5e-5)


@pytest.mark.parametrize(("shape", "native"), [((3, 3), True), ((2, 4), False), ((4, 8), True)])
def test_windows_that_fit_are_convolutions(shape, native):
    program = jax.make_jaxpr(
        functools.partial(convolution.convolve, strides=1, lowering="native_if_fits")
    )(jnp.ones((1, *shape, 2)), jnp.ones((3, 3, 2, 2)))
    assert ("conv_general_dilated" in str(program)) == native


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 5, 2)])
def test_max_pool_equals_windowed_reduction(shape):
    x = _random(*shape)
    weights = _random(shape[0], -(-shape[1] // 2), -(-shape[2] // 2), shape[3], seed=1)

    def pooled(pool):
        def weighted(x):
            y = pool(x)
            return jnp.sum(weights * y), y

        return jax.jit(jax.grad(weighted, has_aux=True))(x)

    gradient, found = pooled(convolution.max_pool_3x3)
    wanted, expected = pooled(lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def _init(model, x, **keywords):
    return jax.jit(lambda key: model.init(key, x, **keywords))(jax.random.key(0))


def _train(model, variables, *arguments, **keywords):
    """Result and renewed statistics."""
    apply = functools.partial(model.apply, mutable=["batch_stats"], **keywords)
    return jax.jit(apply)(variables, *arguments)


def test_batch_norm_by_running_statistics_equals_flax():
    """Of variances so small that the epsilon shows; test_reference.py has batches."""
    x = _random(6, 5, 4, 3) * 3 + 1
    params = {"scale": jnp.array([0.5, 1, 2]), "bias": jnp.array([0.1, 0, -0.2])}
    stats = {"mean": jnp.arange(3.0), "var": jnp.full(3, 1e-4)}
    variables = {"params": params, "batch_stats": stats}
    expected = nn.BatchNorm(use_running_average=True, momentum=0.9).apply(variables, x)
    np.testing.assert_allclose(BatchNorm(train=False).apply(variables, x), expected, rtol=1e-5)


@pytest.mark.parametrize("where", [None, jnp.zeros(6, bool)])
def test_batch_norm_of_channels_that_never_move_or_padding_alone_stays_finite(where):
    """The mean of squares less the square of the mean comes out below 0 for some channels."""
    x = jnp.broadcast_to(jnp.linspace(1e3, 2e3, 64), (6, 5, 64))
    norm = BatchNorm(train=True)
    y, stats = _train(norm, _init(norm, x), x, where)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, stats)))


def _plain_batch_norm(params, x, where, shortcut, relu, epsilon=1e-5):
    """The definition, for automatic differentiation."""
    rows = jnp.broadcast_to(where[:, None, None], x.shape)
    mean = jnp.mean(x, (0, 1), where=rows)
    var = jnp.mean(jnp.square(x - mean), (0, 1), where=rows)
    y = (x - mean) / jnp.sqrt(var + epsilon) * params["scale"] + params["bias"]
    return jnp.maximum(y + shortcut, 0) if relu else y + shortcut


@pytest.mark.parametrize(
    ("devices", "relu", "with_shortcut", "masked"),
    [
        (1, False, False, False),
        (1, True, True, True),
        (4, True, False, True),
    ],
)
def test_batch_norm_gradients_are_those_of_its_definition(devices, relu, with_shortcut, masked):
    x, weights = 3 * _random(8, 5, 3) + 1, _random(8, 5, 3, seed=1)
    shortcut = _random(8, 5, 3, seed=2)
    params = {"scale": jnp.array([0.5, 1, 2]), "bias": jnp.array([0.1, 0, -0.2])}
    where = jnp.arange(8) < 5 if masked else jnp.ones(8, bool)
    # What is left out reaches the loss through its own result alone, and is left out of that too.
    weights = jnp.where(where[:, None, None], weights, 0)
    norm = BatchNorm(train=True, relu=relu, axis_name="batch" if devices > 1 else None)
    stats = norm.init(jax.random.key(0), x)["batch_stats"]

    def ours(params, x, shortcut, where, weights):
        variables = {"params": params, "batch_stats": stats}
        optional = where if masked else None, shortcut if with_shortcut else None
        y, _ = norm.apply(variables, x, *optional, mutable=["batch_stats"])
        return jnp.sum(weights * y)

    def definition(params, x, shortcut):
        added = shortcut if with_shortcut else 0
        return jnp.sum(weights * _plain_batch_norm(params, x, where, added, relu))

    expected = jax.jit(jax.grad(definition, (0, 1, 2)))(params, x, shortcut)
    gradient = jax.grad(ours, (0, 1, 2))
    if devices == 1:
        found = jax.jit(gradient)(params, x, shortcut, where, weights)
    else:
        batch = x, shortcut, where, weights
        parts = [jnp.reshape(a, (devices, -1, *a.shape[1:])) for a in batch]
        mapped = jax.pmap(gradient, axis_name="batch", in_axes=(None, 0, 0, 0, 0))
        to_params, *others = mapped(params, *parts)
        found = (jax.tree.map(lambda g: g.sum(0), to_params), *(g.reshape(x.shape) for g in others))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("shape", [(6, 7, 5, 3), (30, 8, 9, 3), (1999, 2)])
def test_batch_norm_sums_are_the_same_in_both_forms(shape):
    first, second = _random(*shape), _random(*shape, seed=1)
    pairs = zip(
        normalization._sum_of_pairs(first, second),
        normalization._two_sums(first, second),
        strict=True,
    )
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("attention", ["time-frequency", "time", "frequency", "mean"])
def test_pooling_equals_its_formula(attention):
    x = _random(3, 5, 4, 8)
    pool = TimeFrequencyAttentionPooling(attention, hidden=6)
    variables = _init(pool, x)
    found = jax.jit(pool.apply)(variables, x)
    wide, params = oracles.wide((x, variables.get("params", {})))

    def weights(axis, summary):
        hidden = params[f"{axis}_hidden"]
        h = np.tanh(summary @ hidden["kernel"] + hidden["bias"])
        return scipy.special.softmax((h @ params[f"{axis}_logit"]["kernel"])[..., 0], axis=-1)

    a = np.full((3, 5), 1 / 5)
    b = np.full((3, 4), 1 / 4)
    if attention in ("time", "time-frequency"):
        a = weights("time", wide.mean(axis=2))
    if attention in ("frequency", "time-frequency"):
        b = weights("frequency", wide.mean(axis=1))
    expected = np.einsum("bt,bf,btfc->bc", a, b, wide)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_attention_in_bfloat16_still_adds_up_to_one_and_knows_its_axes():
    pool = TimeFrequencyAttentionPooling("time", dtype=jnp.bfloat16)
    x = jnp.ones((1, 50, 4, 8))  # whatever is weighed, the sum of weights comes out
    found = jax.jit(pool.apply)(_init(pool, x), x)
    np.testing.assert_allclose(found, 1, atol=1e-5)  # 1 / 50 in bfloat16 is off by 1e-3
    with pytest.raises(ValueError, match="attention='space'"):
        TimeFrequencyAttentionPooling("space").init(jax.random.key(0), x)


def test_full_network_is_resnet18():
    model, crops = ResNet(), jnp.zeros((3, 64, 128))
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), crops)
    params = {k: v for k, v in shapes["params"].items() if k != "pool"}
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    # ResNet18 has 11,689,512 parameters: less its classifier of 513,000, and less the two input
    # channels of the 7 x 7 stem that a spectrogram lacks.
    assert count == 11_689_512 - 513_000 - 2 * 49 * 64
    # The pooling's two attentions: 512 x 128 and a bias of 128, then 128 x 1.
    pool = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]["pool"]))
    assert pool == 2 * (512 * 128 + 128 + 128)

    apply = functools.partial(model.apply, train=False, capture_intermediates=True)
    embeddings, captured = jax.eval_shape(apply, shapes, crops)
    assert embeddings.shape == (3, 512) == (3, model.embedding_dim)
    # Crops of 64 frames x 128 bands end as maps of 2 x 4.
    ends = {1: (16, 32, 64), 2: (8, 16, 128), 3: (4, 8, 256), 4: (2, 4, 512)}
    maps = {"stem": (32, 64, 64)} | {f"stage{s}_block2_norm2": ends[s] for s in ends}
    for name, shape in maps.items():
        assert captured["intermediates"][name]["__call__"][0].shape == (3, *shape)


def test_first_weights_follow_their_fan():
    """The stem's window of 49 has one channel in and 64 out."""

    def stem(**kwargs):
        model = ResNet(stages=(1,), **kwargs)
        return _init(model, jnp.zeros((1, 16, 16)), train=False)["params"]["stem"]["kernel"]

    # Of 3,136 normal numbers the standard deviation is known to 1.3 %.
    np.testing.assert_allclose(np.std(stem()), (2 / (49 * 64)) ** 0.5, rtol=0.05)
    fan_in = stem(init_weights="fan_in")
    np.testing.assert_allclose(np.std(fan_in), (2 / 49) ** 0.5, rtol=0.05)
    assert np.abs(fan_in).max() < 2.3 * (2 / 49) ** 0.5  # truncated


def _small(**kwargs):
    return ResNet(width=4, stages=(1, 1, 1), **kwargs)


CROPS, REAL = _random(6, 32, 24), jnp.arange(6) < 4


@pytest.fixture(scope="module")
def variables():
    return _init(_small(), CROPS, train=False)


@pytest.fixture(scope="module")
def embed(variables):
    """From crops to embeddings, and results of the layers."""
    apply = functools.partial(_small().apply, train=False, capture_intermediates=True)
    return jax.jit(functools.partial(apply, variables))


@pytest.fixture(scope="module")
def trained(variables):
    """From crops to embeddings of a batch with padding, and its statistics."""
    apply = functools.partial(_small().apply, train=True, where=REAL, mutable=["batch_stats"])
    return jax.jit(functools.partial(apply, variables))


def test_embeddings_are_unit_float32_and_depend_on_each_crop_alone(embed):
    z, _ = embed(CROPS)
    assert z.shape == (6, 16)
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=1), 1, atol=1e-6)
    company, _ = embed(CROPS.at[3:].multiply(2))
    np.testing.assert_allclose(z[:3], company[:3], atol=1e-5)


def test_padding_leaves_no_trace_in_a_network(trained):
    found, stats = trained(CROPS.at[4:].set(1e3))
    expected, wanted = trained(CROPS)
    np.testing.assert_allclose(found[:4], expected[:4], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, wanted)


def test_all_stages_join_a_quarter_of_the_embedding(variables, embed):
    last, kept = embed(CROPS)
    joined = _small(all_stages=True)
    assert joined.embedding_dim == 4 + 8 + 16
    z = np.asarray(jax.jit(functools.partial(joined.apply, train=False))(variables, CROPS))
    assert z.shape == (6, 28)
    expected = [0.25 * np.asarray(last)]
    for stage in 1, 2:
        maps = kept["intermediates"][f"stage{stage}_block1_norm2"]["__call__"][0]
        mean = np.asarray(maps, np.float64).mean(axis=(1, 2))
        expected.append(mean / np.linalg.norm(mean, axis=1, keepdims=True))
    np.testing.assert_allclose(z, np.concatenate(expected, axis=1) / 2.0625**0.5, atol=1e-6)


def test_network_is_the_same_in_patches(variables, trained):
    found, _ = _train(_small(lowering="patches"), variables, CROPS, train=True, where=REAL)
    np.testing.assert_allclose(found, trained(CROPS)[0], atol=2e-5)


def test_bfloat16_stays_close_and_keeps_float32_parameters(variables, trained):
    model = _small(dtype=jnp.bfloat16)
    started = jax.eval_shape(lambda key: model.init(key, CROPS, train=False), jax.random.key(0))
    found, stats = _train(model, variables, CROPS, train=True, where=REAL)
    for leaf in (found, *jax.tree.leaves((started, stats))):
        assert leaf.dtype == jnp.float32
    # bfloat16 keeps 8 bits; a dozen layers leave directions within a few hundredths.
    assert float(jnp.min(jnp.sum(found * trained(CROPS)[0], axis=1)[REAL])) > 0.99


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    def jit(function, *, compiler_options):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")

    monkeypatch.setattr(convolution.jax, "jit", jit)
    assert convolution.compiler_options.__wrapped__("cpu") is None
    assert convolution.compiler_options.__wrapped__("gpu") is None
