import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto import prototypes


def data(examples=23, classes=5, dim=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(examples, dim)).astype(np.float32), rng.integers(0, classes, examples)


def unit_mean(rows):
    """Zeros of nothing."""
    mean = rows.astype(np.float64).mean(axis=0) if len(rows) else np.zeros(rows.shape[1])
    return mean / max(np.linalg.norm(mean), 1e-30)


def assert_close(found, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def test_l2_normalize():
    x = np.array([[3.0, 4.0], [1e-20, 0.0], [0.0, 0.0], [-1e15, 1e15]], np.float32)
    expected = np.array([[0.6, 0.8], [0, 0], [0, 0], [-np.sqrt(0.5), np.sqrt(0.5)]])
    assert_close(prototypes.l2_normalize(x), expected)
    assert_close(prototypes.l2_normalize(x.T, axis=0), expected.T)
    short = prototypes.l2_normalize(jnp.array([3e-8, 4e-8]))  # far from zero, but for its square
    assert_close(short, [0.6, 0.8])
    for dtype, size in ((jnp.float32, 1e25), (jnp.bfloat16, 3e38)):  # squares are infinite
        x, direction = (jnp.array(v, dtype) * size for v in ([0.6, 0.8], [0.8, -0.6]))
        value, change = jax.jvp(prototypes.l2_normalize, (x,), (direction,))
        assert value.dtype == dtype
        assert_close(value.astype(float), [0.6, 0.8], rtol=0.01)
        assert_close(change.astype(float), [0.8, -0.6], rtol=0.01)


def test_l2_normalize_has_a_gradient_everywhere():
    weights = jnp.array([1.0, 2.0])
    gradient = jax.grad(lambda x: (prototypes.l2_normalize(x) @ weights).sum())
    found = gradient(jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(found[0], 0)
    # (w - u (u.w)) / |x| with u = x / |x|
    assert_close(found[1], (weights - jnp.array([0.6, 0.8]) * 2.2) / 5)


def test_class_sums_equal_a_loop():
    z, y = data()
    y[3] = -1  # of no class
    where = np.arange(len(y)) % 4 != 1
    weights = np.linspace(0.5, 2, len(y)).astype(np.float32)
    poisoned = np.where(where[:, None], z, np.nan)
    sums, counts = prototypes.class_sums(poisoned, y, 6, where=where, weights=weights)
    expected, total = np.zeros((6, 4)), np.zeros(6)
    for vector, label, counted, weight in zip(z, y, where, weights, strict=True):
        if counted and label >= 0:
            expected[label] += weight * vector.astype(np.float64)
            total[label] += weight
    assert_close(sums, expected)
    assert_close(counts, total)


def test_bfloat16_embeddings_are_summed_in_float32():
    ones = jnp.ones((1000, 1), jnp.bfloat16)
    sums, counts = prototypes.class_sums(ones, jnp.zeros(1000, int), 1)
    assert sums.dtype == counts.dtype == jnp.float32
    assert sums[0, 0] == counts[0] == 1000  # bfloat16 stops counting at 256


def test_class_prototypes_of_one_device_and_of_four():
    """Unit vectors, zero for absent classes; fine-tuning takes their gradient through the psum."""
    z, y = data(examples=24)
    y[y == 2] = 1

    def total(z, y, axis_name=None):
        means, counts = prototypes.class_prototypes(z, y, 5, axis_name=axis_name)
        return (means * jnp.arange(20.0).reshape(5, 4)).sum(), (means, counts)

    (_, (means, counts)), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(z), y)
    np.testing.assert_array_equal(counts, np.bincount(y, minlength=5))
    assert_close(means, [unit_mean(z[y == c]) for c in range(5)])
    assert bool(jnp.isfinite(gradient).all())

    # Every device returns the same total, and a gradient under pmap is that of the sum of what
    # devices return: four times the total. A step that averages gradients divides by it.
    spread, several = jax.pmap(
        jax.grad(lambda z, y: total(z, y, "d"), has_aux=True),
        axis_name="d",
        devices=jax.devices()[:4],
    )(z.reshape(4, 6, 4), y.reshape(4, 6))
    assert_close(spread.reshape(24, 4) / 4, gradient, rtol=1e-4, atol=1e-5)
    assert_close(several[0], np.broadcast_to(means, (4, 5, 4)))
    np.testing.assert_array_equal(several[1][2], counts)


def test_leave_one_out_equals_a_loop():
    z, y = data(examples=11)
    sums, counts = prototypes.class_sums(z, y, 5)
    found, exists = prototypes.leave_one_out_prototypes(z, y, sums, counts)
    for i in range(11):
        others = z[(y == y[i]) & (np.arange(11) != i)]
        assert exists[i] == (len(others) > 0)
        assert_close(found[i], unit_mean(others), rtol=1e-4, atol=1e-5)


def test_subsets_have_exactly_their_share():
    """Of classes of 1, 3, 100, 30 and no examples: the share rounded up, at least 1."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [1, 3, 100, 30, 0]))
    draw = jax.jit(lambda key, ratio: prototypes.subset_mask(key, labels, 5, ratio))
    for ratio, expected in (
        (1.0, [1, 3, 100, 30, 0]),
        (0.25, [1, 1, 25, 8, 0]),
        (0.125, [1, 1, 13, 4, 0]),
        (0.07, [1, 1, 7, 3, 0]),
        (0.334, [1, 2, 34, 11, 0]),
        (1e-9, [1, 1, 1, 1, 0]),
        (0.3, [1, 1, 30, 9, 0]),  # 0.3 * 100 is 30.000002 in float32
    ):
        mask, other = (np.asarray(draw(jax.random.key(seed), ratio)) for seed in (1, 2))
        np.testing.assert_array_equal(np.bincount(labels[mask], minlength=5), expected)
        assert ratio == 1 or (mask != other).any()


def test_subsets_leave_out_what_is_masked_or_of_no_class():
    labels = np.array([0, 0, 0, 0, 1, 1, -1, 7, 0])
    where = np.array([True, True, False, True, False, True, True, True, True])
    mask = np.asarray(prototypes.subset_mask(jax.random.key(0), labels, 3, 0.5, where=where))
    assert not mask[~where].any()
    assert not mask[[6, 7]].any()
    np.testing.assert_array_equal(np.bincount(labels[mask], minlength=2), [2, 1])


def test_every_member_is_drawn_equally_often():
    labels = jnp.asarray(np.repeat(np.arange(3), [4, 8, 20]))
    draw = jax.jit(jax.vmap(lambda key: prototypes.subset_mask(key, labels, 3, 0.25)))
    often = np.asarray(draw(jax.random.split(jax.random.key(5), 4000))).mean(axis=0)
    # Standard deviation of a share of 1/4 over 4,000 draws: 0.007; five of them.
    assert_close(often, 0.25, atol=0.035)


def test_sub_prototypes_equal_a_loop():
    z, y = data(examples=30)
    masks = np.random.default_rng(1).random((3, 30)) < 0.6
    where = np.arange(30) != 7
    found = prototypes.sub_prototypes(z, y, masks, 5, where=where)
    expected = [[unit_mean(z[(y == c) & mask & where]) for mask in masks] for c in range(5)]
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_mixed_negatives_equal_a_loop(normalize):
    rng = np.random.default_rng(0)
    anchors, others, mix = rng.normal(size=(2, 4)), rng.normal(size=(3, 4)), rng.random((2, 3))
    found = prototypes.mix_negatives(anchors, others, mix, normalize)
    for i in range(2):
        for c in range(3):
            mixed = mix[i, c] * anchors[i] + (1 - mix[i, c]) * others[c]
            mixed = mixed / np.linalg.norm(mixed) if normalize else mixed
            assert_close(found[i, c], mixed)


def test_drawn_coefficients_are_uniform_and_bounds_may_be_traced():
    draw = jax.jit(lambda low, high: prototypes.sample_mix(jax.random.key(0), (200, 50), low, high))
    values = np.asarray(draw(0.25, 0.5))
    assert values.min() >= 0.25
    assert values.max() < 0.5
    assert abs(values.mean() - 0.375) < 0.004  # five standard deviations: 0.072 / 100 * 5
    np.testing.assert_allclose(draw(0.5, 0.5), 0.5)


def test_errors_name_both_shapes():
    z, y = data()
    key = jax.random.key(0)

    def refuses(message, function, *arguments, **keywords):
        with pytest.raises(ValueError, match=message):
            function(*arguments, **keywords)

    sums, means = prototypes.class_sums, prototypes.class_means
    refuses(r"labels \(22,\) and embeddings \(23, 4\)", sums, z, y[:-1], 5)
    refuses(r"shape \[examples, dim\], found \(23,\)", sums, z[:, 0], y, 5)
    refuses("labels must be integers, found float", sums, z, y.astype(np.float32), 5)
    refuses(r"where must have shape \(23,\), found \(3,\)", sums, z, y, 5, where=np.ones(3, bool))
    refuses(r"weights has shape \(3,\), labels have \(23,\)", sums, z, y, 5, weights=np.ones(3))
    refuses(r"sums \(5, 4\) and counts \(4,\)", means, np.ones((5, 4)), np.ones(4))
    leave_one_out, ones = prototypes.leave_one_out_prototypes, np.ones((5, 4))
    refuses(r"counts \(4,\) and .*found sums \(5, 4\)", leave_one_out, z, y, ones, np.ones(4))
    masks = np.ones((2, 22), bool)
    refuses(r"masks \(2, 22\) and labels \(23,\)", prototypes.sub_prototypes, z, y, masks, 5)
    refuses(r"found float32 \(23,\)", prototypes.subset_mask, key, z[:, 0], 5, 0.5)
    mix = prototypes.mix_negatives
    refuses(r"anchor \(4,\) and prototypes \(3, 5\)", mix, z[0], np.ones((3, 5)), np.ones(3))
    refuses(r"mix must have shape .*\(3,\), found \(2,\)", mix, z[0], np.ones((3, 4)), np.ones(2))


def everything(embeddings, labels, where, key):
    sums, counts = prototypes.class_sums(embeddings, labels, 5, where=where)
    own, exists = prototypes.leave_one_out_prototypes(embeddings, labels, sums, counts)
    mask = prototypes.subset_mask(key, labels, 5, 0.5, where=where)
    several = prototypes.sub_prototypes(embeddings, labels, mask[None], 5, where=where)
    means = prototypes.class_means(sums, counts)
    mix = prototypes.sample_mix(key, (3, 5), 0.25, 0.5)
    return own, exists, several, prototypes.mix_negatives(means[0], means, mix[0], normalize=True)


def test_traces_in_every_mode():
    """Promotion refused, examples over an explicit mesh, and a batch of a symbolic size."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))

    def arguments(size, sharding=None):
        shapes = ((size, 4), jnp.float32), ((size,), jnp.int32), ((size,), bool)
        return *(jax.ShapeDtypeStruct(*x, sharding=sharding) for x in shapes), jax.random.key(0)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        jax.jit(everything).trace(*arguments(24))
    with jax.set_mesh(mesh):
        jax.jit(everything).trace(*arguments(24, rows))
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = arguments(batch)[:-1]
    jax.export.export(jax.jit(lambda *x: everything(*x, jax.random.key(0))))(*shapes)
