"""Properties of single losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto import losses
from asdproto.prototypes import l2_normalize
from tests.losses import oracles


@pytest.fixture(scope="module")
def batch():
    """Embeddings, prototypes, labels: unit vectors of different numbers everywhere."""
    keys = jax.random.split(jax.random.key(3), 4)
    z = l2_normalize(jax.random.normal(keys[0], (9, 6)))
    p = l2_normalize(jax.random.normal(keys[1], (5, 6)))
    return z, p, jax.random.randint(keys[2], (9,), 0, 5)


def test_mix_and_own_prototypes_have_the_shapes_that_examples_and_prototypes_say(batch):
    z, p, y = batch
    with pytest.raises(ValueError, match=r"\(9, 5\), found \(9, 4\)"):
        losses.negative_prototype_loss(z, p, y, jnp.zeros((9, 4)))
    with pytest.raises(ValueError, match=r"\(9, 5, 1\), found \(9, 5\)"):
        losses.multi_negative_prototype_loss(z, p[:, None], y, jnp.zeros((9, 5)))
    with pytest.raises(ValueError, match=r"own_prototypes \(9, 5\) and embeddings \(9, 6\)"):
        losses.prototypical_loss(z, p, y, own_prototypes=z[:, :5])


def test_an_own_prototype_stands_in_the_place_of_the_classs(batch):
    z, p, y = jax.device_get(batch)
    own = np.asarray(l2_normalize(z + 0.3))
    loss = losses.prototypical_loss(z, p, y, own_prototypes=own, temperature=0.5)
    for i in range(9):
        logits = p @ z[i] / 0.5
        logits[y[i]] = own[i] @ z[i] / 0.5
        expected = np.log(np.exp(logits).sum()) - logits[y[i]]
        np.testing.assert_allclose(loss[i], expected, rtol=1e-5)


def test_own_prototypes_of_excluded_examples_may_hold_anything(batch):
    z, p, y = batch
    where, own = jnp.arange(9) != 4, l2_normalize(z + 0.1)
    present = jnp.arange(5) != y[2]  # leaves out an example, too
    mix = jnp.full((9, 5), 0.3)

    @jax.jit
    def gradients(z, own, temperature):
        def total(*varied):
            z, own, temperature = varied
            options = {
                "own_prototypes": own,
                "temperature": temperature,
                "where": where,
                "class_where": present,
            }
            return jnp.sum(losses.negative_prototype_loss(z, p, y, mix, **options))

        return jax.value_and_grad(total, argnums=(0, 1, 2))(z, own, temperature)

    expected = gradients(z, own, 0.5)
    out = jnp.array([2, 4])
    poisoned = gradients(z.at[out].set(jnp.nan), own.at[out].set(jnp.nan), 0.5)
    jax.tree.map(np.testing.assert_array_equal, poisoned, expected)
    assert float(jnp.abs(expected[1][1]).max()) > 0


def test_arcface_keeps_rising_beyond_pi():
    """Own angle from 0 to pi: the loss must never fall, though cos(angle + margin) would."""
    angles = np.linspace(0.0, np.pi, 200, dtype=np.float32)
    z = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=-1)
    prototypes = np.eye(3, dtype=np.float32)[[0, 2]]
    arcface = jax.jit(functools.partial(losses.arcface_loss, margin=0.5, scale=10.0))
    assert (np.diff(arcface(z, prototypes, np.zeros(200, int))) >= -1e-5).all()


def test_scale_of_adacos_is_kept_in_bounds_and_goes_by_the_median_of_small_angles(batch):
    _, p, _ = batch
    y = np.arange(9) % 5
    z = l2_normalize(p[y] + jnp.linspace(0.02, 0.3, 9)[:, None] * jnp.roll(p[y], 1, axis=1))

    @jax.jit
    def adapted(z, y, scale, where, present):
        state = losses.AdaCosState(scale)
        return losses.adacos_loss(z, p, y, state, where=where, class_where=present)[1].scale

    every, classes = np.ones(9, bool), np.ones(5, bool)
    assert adapted(z, y, jnp.float32(7), ~every, classes) == 7
    assert adapted(z * jnp.nan, y, jnp.float32(7), every, classes) == 7
    assert adapted(z, y % 2, jnp.float32(0.1), every, np.arange(5) < 2) == 1
    # Of eight examples two angles are in the middle, all of them below pi / 4.
    eight = np.arange(9) != 8
    cosines = [dict(enumerate(row)) for row in np.asarray(z @ p.T, np.float64)[eight]]
    assert max(np.arccos(row[label]) for row, label in zip(cosines, y[eight], strict=True)) < 0.78
    expected = oracles.adacos_scale(cosines, y[eight], 6.0)
    found = adapted(z, y, jnp.float32(6), eight, classes)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for count in (1, 2, 3):
        assert losses.adacos_init(count).scale >= 1
    with pytest.raises(ValueError, match="found 0 and 1"):
        losses.adacos_init(0)


def test_wide_embeddings_have_the_covariance_of_the_definition():
    x = np.random.default_rng(0).normal(size=(6, 40)) * np.linspace(0.2, 3, 40)
    covariance = np.cov(x.T)
    off = covariance - np.diag(np.diag(covariance))
    found = jax.jit(losses.covariance_loss)(x.astype(np.float32))
    np.testing.assert_allclose(found, np.sum(off**2) / 40, rtol=1e-5)
    terms = jax.jit(losses.vicreg_loss)(x[:1], x[:1] + 1)
    assert terms.variance == terms.covariance == 0


def test_masked_mean():
    values = jnp.array([[1.0, 2.0], [6.0, jnp.nan]])
    where = np.array([[True, True], [True, False]])
    run = jax.jit(jax.value_and_grad(losses.masked_mean))
    value, gradient = run(values, where)
    assert value == 3
    np.testing.assert_allclose(gradient, np.where(where, 1 / 3, 0))
    assert run(values, np.zeros((2, 2), bool))[0] == 0
    with pytest.raises(ValueError, match=r"where must have shape \(2, 2\), found \(3,\)"):
        losses.masked_mean(values, jnp.ones(3, bool))


def test_a_class_with_some_prototypes_excluded_averages_the_others(batch):
    z, p, y = jax.device_get(batch)
    several = np.stack([p, p[:, ::-1], -p[::-1]], axis=1)
    kept = np.arange(15).reshape(5, 3) % 4 != 1  # of three prototypes, two or three count
    run = jax.jit(functools.partial(losses.multi_prototype_loss, temperature=0.5))
    loss = run(z, several, y, class_where=kept)
    for i in range(9):
        logits = several @ z[i] / 0.5
        expected = np.log(np.exp(logits[kept]).sum()) - logits[y[i]][kept[y[i]]].mean()
        np.testing.assert_allclose(loss[i], expected, rtol=1e-5)


def test_labels_of_small_integers_reach_every_class():
    # A prime number of classes, so that pieces leave a rest.
    z = np.random.default_rng(0).normal(size=(257, 8)).astype(np.float32)
    labels = np.arange(257) % 256
    logits = np.float64(z) @ np.float64(z).T
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(257), labels]
    run = jax.jit(functools.partial(losses.prototypical_loss, temperature=1.0, chunk_size=70))
    np.testing.assert_allclose(run(z, z, labels.astype(np.uint8)), expected, rtol=1e-5, atol=1e-4)


def test_gradients_of_pieces_add_up_in_float32():
    z = jnp.ones((1, 4), jnp.bfloat16)
    p = (1 + jax.random.uniform(jax.random.key(0), (600, 4))).astype(jnp.bfloat16)

    def loss(z):
        options = {"temperature": 100.0, "chunk_size": 1}
        return losses.prototypical_loss(z, p, np.array([7]), **options).sum()

    found = jax.jit(jax.grad(loss))(z).astype(jnp.float32)
    rows = np.float64(p)
    shares = np.exp(rows.sum(axis=1) / 100)
    expected = (shares / shares.sum() @ rows - rows[7]) / 100
    # Results are rounded to 8 bits; sums in bfloat16 would stop growing at 256 of 600 terms.
    np.testing.assert_allclose(found[0], expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


def test_fixed_prototypes_cost_no_gradient(batch):
    """What is not differentiated is not computed: no product of the prototypes' shape."""
    z, p, y = batch

    def count_products(argnums):
        def total(z, p):
            return losses.prototypical_loss(z, p, y, chunk_size=2).sum()

        return str(jax.make_jaxpr(jax.grad(total, argnums))(z, p)).count("dot_general")

    assert count_products(0) < count_products((0, 1))


def test_a_loss_near_zero_keeps_its_digits():
    # One other class, 18 temperatures away: log(1 + exp(-18)) is below the last digit of 1.
    run = jax.jit(functools.partial(losses.prototypical_loss, temperature=1 / 18))
    loss = run(jnp.array([[1.0, 0.0]]), jnp.eye(2), jnp.array([0]))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-18.0)), rtol=1e-5)


def test_circle_loss_holds_its_weights(batch):
    """The gradient of the paper's formula with the weights as constants."""
    z, _, _ = batch
    y = jnp.arange(9) % 3
    same = (y[:, None] == y) & ~jnp.eye(9, dtype=bool)
    pull, push = (jnp.maximum(sign * (z @ z.T) + add, 0) for sign, add in ((-1, 1.4), (1, 0.4)))

    def plain(z):
        c = z @ z.T
        positive = jnp.where(same, jnp.exp(-4 * pull * (c - 0.6)), 0).sum(axis=1)
        negative = jnp.where(y[:, None] != y, jnp.exp(4 * push * (c - 0.4)), 0).sum(axis=1)
        return jnp.log1p(positive * negative).sum()

    found = jax.jit(jax.grad(lambda z: losses.circle_loss(z, y, scale=4.0).sum()))(z)
    np.testing.assert_allclose(found, jax.jit(jax.grad(plain))(z), rtol=1e-4, atol=1e-5)
