"""Properties of single losses."""

import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asdproto import losses
from asdproto.prototypes import (
    class_sums,
    l2_normalize,
    leave_one_out_prototypes,
    sub_prototypes,
    subset_mask,
)
from tests.losses import oracles
from tests.losses.cases import CASES

STATIC = {"chunk_size", "normalize_mixed", "adaptive", "axis_name"}


def _jitted(loss):
    """Compiled whole: operation by operation, a loss takes dozens of small compilations."""
    names = set(inspect.signature(loss).parameters)
    if "options" in names:
        names.add("chunk_size")
    return jax.jit(loss, static_argnames=STATIC & names)


jitted = types.SimpleNamespace(
    **{name: _jitted(getattr(losses, name)) for name in dir(losses) if name.endswith("_loss")}
)

# The same sums in another order.
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


@pytest.fixture(scope="module")
def batch():
    """Embeddings, prototypes, labels: unit vectors of different numbers everywhere."""
    keys = jax.random.split(jax.random.key(3), 4)
    z = l2_normalize(jax.random.normal(keys[0], (9, 6)))
    p = l2_normalize(jax.random.normal(keys[1], (5, 6)))
    return z, p, jax.random.randint(keys[2], (9,), 0, 5)


def test_all_members_drawn_makes_sub_prototypes_the_prototypes(batch):
    z, _, y = batch

    @jax.jit
    def expand():
        sums, counts = class_sums(z, y, 5)
        masks = jax.vmap(lambda k: subset_mask(k, y, 5, 1.0))(
            jax.random.split(jax.random.key(0), 2)
        )
        return l2_normalize(sums), counts, sub_prototypes(z, y, masks, 5)

    prototypes, counts, subs = expand()
    expanded = jnp.concatenate([prototypes[:, None], subs], axis=1)
    np.testing.assert_allclose(expanded, jnp.repeat(prototypes[:, None], 3, axis=1), **CLOSE)
    present = counts > 0
    expanded_loss = jitted.multi_prototype_loss(z, expanded, y, class_where=present)
    # Every class has three equal prototypes: the own one's share of the sum is a third.
    expected = jitted.prototypical_loss(z, prototypes, y, class_where=present) + np.log(3)
    np.testing.assert_allclose(expanded_loss, expected, rtol=1e-5, atol=1e-5)


def test_one_prototype_a_class_is_the_prototypical_loss(batch):
    z, p, y = batch
    expected = jitted.prototypical_loss(z, p, y)
    np.testing.assert_allclose(jitted.multi_prototype_loss(z, p[:, None], y), expected, **CLOSE)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_closed_form_is_the_definition(batch, normalize):
    z, p, y = batch
    # Of any length: the closed form holds for unit vectors and beyond.
    z, p = z * jnp.linspace(0.5, 2, 9)[:, None], p * jnp.linspace(2, 0.5, 5)[:, None]
    mix = jax.random.uniform(jax.random.key(1), (9, 5))
    where, present = jnp.arange(9) != 4, jnp.arange(5) != 2
    weights = jnp.linspace(0.5, 1.5, 9)

    def total(loss):
        def run(z, p, mix, temperature):
            values = loss(
                z,
                p,
                y,
                mix,
                temperature=temperature,
                normalize_mixed=normalize,
                where=where,
                class_where=present,
            )
            return jnp.sum(values * weights), values

        return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2, 3), has_aux=True))

    with jax.enable_x64(True):
        arguments = [jnp.asarray(x, jnp.float64) for x in (z, p, mix, 0.1)]
        found = total(losses.negative_prototype_loss)(*arguments)
        expected = total(oracles.negative_prototype_by_definition)(*arguments)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, expected
        )


def test_mix_has_a_coefficient_for_every_prototype(batch):
    z, p, y = batch
    with pytest.raises(ValueError, match=r"\(9, 5\), found \(9, 4\)"):
        losses.negative_prototype_loss(z, p, y, jnp.zeros((9, 4)))
    with pytest.raises(ValueError, match=r"\(9, 5, 1\), found \(9, 5\)"):
        losses.multi_negative_prototype_loss(z, p[:, None], y, jnp.zeros((9, 5)))


def test_anchors_left_out_of_their_prototypes(batch):
    z, _, y = batch
    sums, counts = class_sums(z, y, 5)
    own, exists = leave_one_out_prototypes(z, y, sums, counts)
    present = counts > 0
    prototypes = l2_normalize(sums)
    loss = jitted.prototypical_loss(
        z, prototypes, y, own_prototypes=own, where=exists, class_where=present, temperature=0.5
    )
    for i in range(9):
        others = [j for j in range(9) if j != i and y[j] == y[i]]
        if not others:
            assert loss[i] == 0
            continue
        mean = np.mean(np.asarray(z)[others], axis=0)
        logits = np.asarray(prototypes @ z[i]) / 0.5
        logits[y[i]] = mean @ np.asarray(z[i]) / np.linalg.norm(mean) / 0.5
        logits = logits[np.asarray(present)]
        expected = np.log(np.exp(logits).sum()) - (mean / np.linalg.norm(mean)) @ z[i] / 0.5
        np.testing.assert_allclose(loss[i], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"own_prototypes \(9, 5\) and embeddings \(9, 6\)"):
        jitted.prototypical_loss(z, prototypes, y, own_prototypes=own[:, :5])


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
    angles = jnp.linspace(0.0, jnp.pi, 200)
    z = jnp.stack([jnp.cos(angles), jnp.sin(angles), 0 * angles], axis=-1)
    prototypes = jnp.eye(3)[jnp.array([0, 2])]
    loss = jitted.arcface_loss(z, prototypes, jnp.zeros(200, int), margin=0.5, scale=10.0)
    assert bool((jnp.diff(loss) >= -1e-5).all())


def test_scale_of_adacos_is_kept_in_bounds(batch):
    z, p, y = batch
    state = losses.AdaCosState(jnp.float32(7))
    _, empty = jitted.adacos_loss(z, p, y, state, where=jnp.zeros(9, bool))
    assert empty.scale == 7
    _, poisoned = jitted.adacos_loss(z * jnp.nan, p, y, state)
    assert poisoned.scale == 7
    _, two = jitted.adacos_loss(z, p[:2], y % 2, losses.AdaCosState(jnp.float32(0.1)))
    assert two.scale == 1
    for classes in (1, 2, 3):
        assert losses.adacos_init(classes).scale >= 1
    with pytest.raises(ValueError, match="found 0 and 1"):
        losses.adacos_init(0)


def test_scale_of_adacos_goes_by_the_median_of_small_angles(batch):
    """Eight examples, so that two angles are in the middle, all of them below pi / 4."""
    _, p, _ = batch
    y = np.arange(8) % 5
    z = l2_normalize(p[y] + jnp.linspace(0.02, 0.3, 8)[:, None] * jnp.roll(p[y], 1, axis=1))
    _, state = jitted.adacos_loss(z, p, y, losses.AdaCosState(jnp.float32(6)))
    cosines = [dict(enumerate(row)) for row in np.asarray(z @ p.T, np.float64)]
    assert max(np.arccos(row[label]) for row, label in zip(cosines, y, strict=True)) < np.pi / 4
    np.testing.assert_allclose(state.scale, oracles.adacos_scale(cosines, y, 6.0), rtol=1e-5)


def test_without_positives_losses_within_a_batch_are_zero(batch):
    z, _, _ = batch

    @jax.jit
    def total(z):
        anchored = (case for case in CASES if case.in_batch and list(case.arrays) == ["embeddings"])
        alone = [case.loss({"embeddings": z}, jnp.arange(9)) for case in anchored]
        return jnp.sum(jnp.stack(alone))

    value, gradient = jax.value_and_grad(total)(z)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_gradients_where_a_sum_has_a_single_term():
    """One negative, or one prototype that counts: sums of exactly 1, where a maximum would tie."""
    z = l2_normalize(jax.random.normal(jax.random.key(0), (3, 4)))
    y = jnp.array([0, 0, 1])

    def expected(z):
        logits = z @ z.T / 0.1
        return jnp.log1p(jnp.exp(logits[0, 2] - logits[0, 1]))

    def gradient(loss):
        return jax.jit(jax.grad(loss))(z)

    found = gradient(lambda z: losses.nt_xent_loss(z, y)[0])
    np.testing.assert_allclose(found, gradient(expected), rtol=1e-5, atol=1e-6)
    several = l2_normalize(jax.random.normal(jax.random.key(1), (2, 3, 4)))
    one = jnp.array([[False, True, False]] * 2)
    found = gradient(lambda z: losses.multi_prototype_loss(z, several, y, class_where=one).sum())
    of_one = gradient(lambda z: losses.prototypical_loss(z, several[:, 1], y).sum())
    np.testing.assert_allclose(found, of_one, rtol=1e-5, atol=1e-6)


def test_wide_embeddings_have_the_covariance_of_the_definition():
    x = np.random.default_rng(0).normal(size=(6, 40)) * np.linspace(0.2, 3, 40)
    covariance = np.cov(x.T)
    off = covariance - np.diag(np.diag(covariance))
    found = jitted.covariance_loss(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, np.sum(off**2) / 40, rtol=1e-5)
    spread = np.sqrt(np.diag(covariance) + 1e-4)
    expected = np.maximum(0, 1 - spread).mean()
    np.testing.assert_allclose(
        jitted.variance_loss(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5
    )
    for few in (x[:1], x[:0]):
        terms = jitted.vicreg_loss(jnp.asarray(few), jnp.asarray(few) + 1)
        assert terms.variance == 0
        assert terms.covariance == 0


def test_masked_mean():
    values = jnp.array([[1.0, 2.0], [6.0, jnp.nan]])
    where = jnp.array([[True, True], [True, False]])
    value, gradient = jax.value_and_grad(losses.masked_mean)(values, where)
    assert value == 3
    np.testing.assert_allclose(gradient, np.where(where, 1 / 3, 0))
    assert losses.masked_mean(values, jnp.zeros((2, 2), bool)) == 0
    with pytest.raises(ValueError, match=r"where must have shape \(2, 2\), found \(3,\)"):
        losses.masked_mean(values, jnp.ones(3, bool))


def test_hessian_vector_products(batch):
    z, p, y = batch
    mix = jnp.full((9, 5), 0.3)
    direction = jax.random.normal(jax.random.key(4), z.shape)

    def product(loss):
        gradient = jax.grad(lambda z: loss(z, p, y, mix, temperature=0.5).sum())
        return jax.jit(lambda z: jax.jvp(gradient, (z,), (direction,))[1])(z)

    np.testing.assert_allclose(
        product(losses.negative_prototype_loss),
        product(oracles.negative_prototype_by_definition),
        rtol=1e-4,
        atol=1e-4,
    )


# MagFace's loss has another term.
LOGITS = {name.removesuffix("_logits") for name in dir(losses) if name.endswith("_logits")}
LOGITS -= {"magface"}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in LOGITS], ids=str)
def test_cross_entropy_of_logits_is_the_loss(case):
    """Of embeddings with two leading axes."""
    arrays, y = case.make()
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    for name in arrays:
        if case.arrays[name].startswith("B"):
            arrays[name] = arrays[name].reshape(2, 4, *arrays[name].shape[1:])
    y = jnp.asarray(y.reshape(2, 4))
    expected = case.loss(arrays, y, **case.hyper)
    function = getattr(losses, f"{case.name}_logits")
    z, p, *more = (arrays[name] for name in case.arrays)
    names = inspect.signature(function).parameters
    if "labels" in names:
        more.insert(0, y)
    bias = {"bias": more.pop()} if "bias" in names else {}
    found = function(z, p, *more, **case.hyper, **bias)
    if isinstance(found, tuple):  # the own class's place may be multiplied by 0
        found = jnp.concatenate(found, axis=-1)
    soft = jax.nn.one_hot(y, found.shape[-1])
    entropy = optax.softmax_cross_entropy(found, soft)
    np.testing.assert_allclose(entropy, expected, rtol=1e-5, atol=1e-5)


def test_a_class_with_some_prototypes_excluded_averages_the_others(batch):
    z, p, y = batch
    several = jnp.stack([p, l2_normalize(p + 0.5), l2_normalize(p - 0.3)], axis=1)
    kept = np.arange(15).reshape(5, 3) % 4 != 1  # of three prototypes, two or three count
    loss = jitted.multi_prototype_loss(z, several, y, class_where=kept, temperature=0.5)
    for i in range(9):
        logits = np.asarray(several @ z[i]) / 0.5
        expected = np.log(np.exp(logits[kept]).sum()) - logits[y[i]][kept[y[i]]].mean()
        np.testing.assert_allclose(loss[i], expected, rtol=1e-5)


def test_labels_of_small_integers_reach_every_class():
    # A prime number of classes, so that pieces leave a rest.
    z = l2_normalize(jax.random.normal(jax.random.key(0), (257, 8)))
    labels = np.arange(257) % 256
    expected = jitted.prototypical_loss(z, z, labels)
    found = jitted.prototypical_loss(z, z, labels.astype(np.uint8), chunk_size=70)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_pieces_add_up_in_float32():
    z = jnp.ones((1, 4), jnp.bfloat16)
    p = (1 + jax.random.uniform(jax.random.key(0), (600, 4))).astype(jnp.bfloat16)

    def gradient(**keywords):
        def loss(z):
            return losses.prototypical_loss(z, p, np.array([7]), **keywords).sum()

        return jax.jit(jax.grad(loss))(z)

    whole = gradient(temperature=100.0).astype(jnp.float32)
    pieces = gradient(temperature=100.0, chunk_size=1).astype(jnp.float32)
    # Results are rounded to 8 bits; sums in bfloat16 would stop growing at 256 of 600 terms.
    np.testing.assert_allclose(pieces, whole, rtol=0.02, atol=0.02 * float(jnp.abs(whole).max()))


def test_fixed_prototypes_cost_no_gradient(batch):
    """What is not differentiated is not computed: no product of the prototypes' shape."""
    z, p, y = batch

    def count_products(argnums):
        def total(z, p):
            return jitted.prototypical_loss(z, p, y, chunk_size=2).sum()

        return str(jax.make_jaxpr(jax.grad(total, argnums))(z, p)).count("dot_general")

    assert count_products(0) < count_products((0, 1))


def test_a_loss_near_zero_keeps_its_digits():
    # One other class, 18 temperatures away: log(1 + exp(-18)) is below the last digit of 1.
    z, y = jnp.array([[1.0, 0.0]]), jnp.array([0])
    loss = jitted.prototypical_loss(z, jnp.eye(2), y, temperature=1 / 18)
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


def test_mixed_up_examples_weigh_two_losses(batch):
    """Which is the cross entropy of soft labels, as these logits know no label."""
    z, p, y = batch
    other, weight = (y + 1) % 5, jnp.linspace(0.1, 0.9, 9)
    soft = weight[:, None] * jax.nn.one_hot(y, 5) + (1 - weight)[:, None] * jax.nn.one_hot(other, 5)
    loss = jitted.prototypical_loss
    mixed = weight * loss(z, p, y) + (1 - weight) * loss(z, p, other)
    entropy = optax.softmax_cross_entropy(losses.prototypical_logits(z, p), soft)
    np.testing.assert_allclose(mixed, entropy, rtol=1e-5)
