"""What every loss promises, one test per promise, over all losses."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto import losses
from tests.losses.cases import BATCH, CASES, CLASSES, DIM, PROTOTYPE_CASES

every_loss = pytest.mark.parametrize("case", CASES, ids=str)
every_prototype_loss = pytest.mark.parametrize("case", PROTOTYPE_CASES, ids=str)
every_loss_in_pieces = pytest.mark.parametrize("case", [c for c in CASES if c.pieces], ids=str)

# Weights of the losses in the sum that is differentiated: no two examples may count alike.
WEIGHTS = jnp.asarray(np.linspace(0.5, 1.5, BATCH))

# float32 keeps 7 digits; logits here are below 30 and sums short, so 5 digits of a value are sure.
FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}


def to(arrays, dtype):
    return {name: jnp.asarray(x, dtype) for name, x in arrays.items()}


@functools.cache
def compiled(case):
    """Losses per example, and gradients of their weighted sum; with every mask, once compiled."""

    def run(arrays, labels, hyper, where, present):
        def total(arrays, hyper):
            masks = {} if case.in_batch else {"class_where": present}
            loss = case.loss(arrays, labels, where=where, **masks, **hyper)
            return jnp.sum(loss * WEIGHTS.astype(loss.dtype)), loss

        (_, loss), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
            arrays, hyper
        )
        return loss, gradients

    return jax.jit(run)


def evaluate(case, arrays, labels, *, where=None, present=None, dtype=jnp.float32, hyper=None):
    where = jnp.ones(BATCH, bool) if where is None else jnp.asarray(where)
    present = jnp.ones(CLASSES, bool) if present is None else jnp.asarray(present)
    hyper = {name: jnp.float32(x) for name, x in (hyper or case.hyper).items()}
    return compiled(case)(to(arrays, dtype), jnp.asarray(labels), hyper, where, present)


def assert_finite(tree):
    for leaf in jax.tree.leaves(tree):
        assert bool(jnp.isfinite(leaf).all()), leaf


@every_loss
def test_values_equal_the_oracle_and_gradients_finite_differences(case):
    """Gradients in float64, in reverse and forward mode."""
    arrays, labels = case.make()
    expected = case.oracle(arrays, labels, range(CLASSES), **case.hyper)
    loss, _ = evaluate(case, arrays, labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, **FLOAT32)
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        labels, weights = jnp.asarray(labels), jnp.linspace(0.5, 1.5, BATCH)

        def total(arrays, hyper):
            return jnp.sum(case.loss(arrays, labels, **case.fixed, **hyper) * weights)

        @jax.jit
        def run(point, direction):
            loss = case.loss(point[0], labels, **point[1])
            value, gradient = jax.value_and_grad(total, argnums=(0, 1))(*point)
            products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
            _, forward = jax.jvp(total, point, direction)
            return loss, value, sum(jax.tree.leaves(products)), forward

        point = to(arrays, jnp.float64), {n: jnp.float64(x) for n, x in case.hyper.items()}
        direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), point)
        if case.fixed:  # the scale, which is state, has no gradient
            direction = direction[0], jax.tree.map(jnp.zeros_like, direction[1])
        loss, _, inner, forward = run(point, direction)
        assert loss.dtype == jnp.float64
        np.testing.assert_allclose(loss, expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(forward, inner, rtol=1e-9, atol=1e-9)
        if case.detached:  # see test_degenerate.py
            return
        step = 1e-6
        ahead, behind = (
            run(jax.tree.map(lambda x, d, s=s: x + s * d, point, direction), direction)[1]
            for s in (step, -step)
        )
        # Central differences: the third derivative times step^2, and rounding 1e-16 / step.
        np.testing.assert_allclose(inner, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


@every_loss
def test_vmap_over_batches_and_hyper_parameters_equals_a_loop(case):
    batches, expected = [], []
    for seed, factor in ((4, 0.7), (5, 1.3)):
        arrays, labels = case.make(seed=seed)
        hyper = {name: jnp.float32(factor * x) for name, x in case.hyper.items()}
        batches.append((to(arrays, jnp.float32), jnp.asarray(labels), hyper))
        expected.append(evaluate(case, arrays, labels, hyper=hyper)[0])
    run = jax.jit(jax.vmap(lambda arrays, y, hyper: case.loss(arrays, y, **hyper)))
    mapped = run(*jax.tree.map(lambda *x: jnp.stack(x), *batches))
    np.testing.assert_allclose(mapped, jnp.stack(expected), rtol=1e-5, atol=1e-5)


@every_prototype_loss
def test_leading_axes_are_batch_axes(case):
    arrays, labels = case.make(seed=6)
    where = np.arange(BATCH) % 3 != 1
    expected, _ = evaluate(case, arrays, labels, where=where)
    folded = {
        name: x.reshape(2, 4, *x.shape[1:]) if case.arrays[name].startswith("B") else x
        for name, x in to(arrays, jnp.float32).items()
    }
    run = jax.jit(lambda arrays, y, where: case.loss(arrays, y, where=where, **case.hyper))
    loss = run(folded, labels.reshape(2, 4), where.reshape(2, 4))
    np.testing.assert_allclose(loss.reshape(-1), expected, rtol=1e-6, atol=1e-6)


@every_loss
def test_excluded_examples_change_nothing_even_if_not_finite(case):
    arrays, labels = case.make(seed=7)
    where = np.array([True, False, True, True, False, True, True, True])
    kept = {n: x[where] if case.arrays[n].startswith("B") else x for n, x in arrays.items()}
    expected = case.oracle(kept, labels[where], range(CLASSES), **case.hyper)
    poisoned = {n: x.copy() for n, x in arrays.items()}
    for name in poisoned:
        if case.arrays[name].startswith("B"):
            poisoned[name][~where] = np.nan
    loss, gradients = evaluate(case, poisoned, labels, where=where)
    np.testing.assert_allclose(loss[where], expected, **FLOAT32)
    np.testing.assert_array_equal(loss[~where], 0)
    assert_finite(gradients)
    for name, gradient in gradients[0].items():
        if case.arrays[name].startswith("B"):
            np.testing.assert_array_equal(gradient[~where], 0)


@every_loss
def test_what_counts_and_is_not_finite_is_noticed(case):
    """A run that went wrong must show: nothing may turn nan into a harmless number."""
    arrays, labels = case.make(seed=20)
    name = next(iter(case.arrays))
    arrays[name][3, 1] = np.nan
    loss, _ = evaluate(case, arrays, labels)
    assert not np.isfinite(loss[3])


@every_loss
def test_nothing_counted_gives_zero_and_zero_gradients(case):
    arrays, labels = case.make(seed=8)
    loss, gradients = evaluate(case, arrays, labels, where=np.zeros(BATCH, bool))
    for leaf in jax.tree.leaves((loss, gradients)):
        np.testing.assert_array_equal(leaf, 0)


@every_loss
def test_no_class_gives_zero_and_zero_gradients(case):
    if case.whole or case.name == "n_pair":
        pytest.skip("has no labels, or is of the whole batch")
    arrays, labels = case.make(seed=9)
    labels[[2, 5]] = -1  # two examples without a class are no class of their own
    loss, gradients = evaluate(case, arrays, labels)
    np.testing.assert_array_equal(loss[np.array([2, 5])], 0)
    assert_finite(gradients)
    if case.in_batch:
        expected = case.oracle(arrays, labels, None, **case.hyper)
        np.testing.assert_allclose(loss, expected, **FLOAT32)
    else:
        labels[5] = CLASSES
        arrays["embeddings"][[2, 5]] = np.nan
        loss, gradients = evaluate(case, arrays, labels)
        np.testing.assert_array_equal(loss[np.array([2, 5])], 0)
        assert_finite(gradients)
        np.testing.assert_array_equal(gradients[0]["embeddings"][np.array([2, 5])], 0)


def test_labels_of_64_bits_do_not_wrap():
    with jax.enable_x64(True):
        loss = losses.arcface_loss(jnp.eye(2), jnp.eye(2), np.array([2**32, -(2**32) + 1]))
    np.testing.assert_array_equal(loss, 0)


@every_prototype_loss
def test_excluded_classes_occur_nowhere(case):
    arrays, labels = case.make(seed=10)
    present = np.array([True, True, False, True, False, True])
    labels = np.array([0, 1, 3, 5, 3, 1, 0, 5])
    expected = case.oracle(arrays, labels, np.flatnonzero(present), **case.hyper)
    poisoned = {n: x.copy() for n, x in arrays.items()}
    for name, axis in case.class_axes().items():
        np.moveaxis(poisoned[name], axis, 0)[~present] = np.nan
    loss, gradients = evaluate(case, poisoned, labels, present=present)
    np.testing.assert_allclose(loss, expected, **FLOAT32)
    assert_finite(gradients)
    for name, axis in case.class_axes().items():
        gradient = np.moveaxis(np.asarray(gradients[0][name]), axis, 0)
        np.testing.assert_array_equal(gradient[~present], 0)
    labels[1] = 2
    loss, gradients = evaluate(case, poisoned, labels, present=present)
    assert loss[1] == 0
    assert_finite(gradients)
    np.testing.assert_array_equal(gradients[0]["embeddings"][1], 0)


@every_prototype_loss
def test_a_single_class_is_certain(case):
    if case.name == "center":
        pytest.skip("compares with the own class only")
    arrays, labels = case.make(seed=11)
    labels[:] = 2
    loss, _ = evaluate(case, arrays, labels, present=np.arange(CLASSES) == 2)
    if "multi" in case.name or case.name == "magface":
        # Several own prototypes compete with each other, as Eq. 3 says; MagFace adds a term.
        expected = case.oracle(arrays, labels, [2], **case.hyper)
        np.testing.assert_allclose(loss, expected, **FLOAT32)
    else:
        np.testing.assert_array_equal(loss, 0)


@every_prototype_loss
def test_renaming_classes_changes_nothing(case):
    arrays, labels = case.make(seed=12)
    order = np.random.default_rng(0).permutation(CLASSES)
    axes = case.class_axes()
    renamed = {n: np.take(x, order, axes[n]) if n in axes else x for n, x in arrays.items()}
    expected, _ = evaluate(case, arrays, labels)
    loss, _ = evaluate(case, renamed, np.argsort(order)[labels])
    np.testing.assert_allclose(loss, expected, rtol=2e-6, atol=2e-6)


@every_loss
def test_reordering_examples_reorders_losses(case):
    arrays, labels = case.make(seed=13)
    order = np.random.default_rng(1).permutation(BATCH)
    moved = {n: x[order] if case.arrays[n].startswith("B") else x for n, x in arrays.items()}
    expected, _ = evaluate(case, arrays, labels)
    loss, _ = evaluate(case, moved, labels[order])
    np.testing.assert_allclose(loss, expected[order], rtol=2e-6, atol=2e-6)


@every_loss
def test_bfloat16_inputs_are_summed_in_float32(case):
    arrays, labels = case.make(seed=14)
    rounded = {n: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for n, x in arrays.items()}
    expected = case.oracle(rounded, labels, range(CLASSES), **case.hyper)
    loss, gradients = evaluate(case, arrays, labels, dtype=jnp.bfloat16)
    assert loss.dtype == jnp.float32
    # The inputs are rounded before the oracle sees them, so only float32 rounding is left; the
    # squares of arccos near its ends magnify it.
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-4)
    exact = evaluate(case, rounded, labels)[1][0]
    for name, gradient in gradients[0].items():
        assert gradient.dtype == jnp.bfloat16
        # Scores' gradients and results are rounded to 8 bits each.
        scale = float(jnp.abs(exact[name]).max())
        np.testing.assert_allclose(
            np.asarray(gradient, np.float32), exact[name], rtol=0, atol=0.02 * scale
        )


@every_loss
def test_extreme_inputs_have_finite_losses_and_gradients(case):
    sharp = {n: {"temperature": 0.01, "scale": 200.0}.get(n, x) for n, x in case.hyper.items()}
    rng = np.random.default_rng(15)
    for kind in ("zero", "same", "opposite", "axes"):
        arrays, labels = case.make(seed=15)
        axis = np.eye(DIM)[0]
        for name, letters in case.arrays.items():
            if letters.endswith("D"):
                shape = arrays[name].shape
                if kind == "zero":
                    arrays[name] = np.zeros(shape)
                elif kind == "axes":
                    arrays[name] = np.eye(DIM)[rng.integers(0, DIM, shape[:-1])]
                else:
                    sign = -1 if kind == "opposite" and name == "embeddings" else 1
                    arrays[name] = np.broadcast_to(sign * axis, shape).copy()
            if name == "mix":
                arrays[name][:, 0] = 0.5  # between opposite vectors lies the zero vector
                arrays[name][:, 1], arrays[name][:, 2] = 0.0, 1.0
        assert_finite(evaluate(case, arrays, labels))
        assert_finite(evaluate(case, arrays, labels, hyper=sharp))
        assert_finite(evaluate(case, arrays, labels, dtype=jnp.bfloat16, hyper=sharp))


@every_loss
def test_small_temperatures_lose_no_digits(case):
    sharp = {n: {"temperature": 0.01, "scale": 100.0}.get(n, x) for n, x in case.hyper.items()}
    arrays, labels = case.make(seed=16)
    expected = case.oracle(arrays, labels, range(CLASSES), **sharp)
    loss, _ = evaluate(case, arrays, labels, hyper=sharp)
    # A dot product of float32 is good to 1e-7, a hundred times that in the logits; raw vectors
    # are a few times longer.
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=2e-4)


@every_loss
def test_an_empty_batch_has_no_losses(case):
    arrays, labels = case.make(batch=0)
    loss = jax.eval_shape(
        lambda arrays, y: case.loss(arrays, y, **case.hyper),
        to(arrays, jnp.float32),
        jnp.asarray(labels, jnp.int32),
    )
    assert loss.shape == (0,)


def assert_same(found, expected):
    """To 4e-6 of the largest entry: the same float32 sums, taken in another order."""

    def same(a, b):
        scale = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=4e-6 * scale)

    jax.tree.map(same, found, expected)


@every_loss_in_pieces
def test_pieces_equal_the_whole(case):
    arrays, labels = case.make(seed=18, classes=7)
    present = jnp.asarray([True, True, False, True, True, True, True])
    masks = {} if case.in_batch else {"class_where": present}
    expected = evaluate(case, arrays, labels, present=present)
    hyper = {n: jnp.float32(x) for n, x in case.hyper.items()}
    # 4 leaves a rest; the others are the ends of the range, and need no test for every loss.
    sizes = (1, 4, 7) if case.name in ("prototypical", "nt_xent") else (4,)
    for size in sizes:

        def total(arrays, hyper, size=size):
            loss = case.loss(arrays, jnp.asarray(labels), chunk_size=size, **masks, **hyper)
            return jnp.sum(loss * WEIGHTS.astype(loss.dtype)), loss

        run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        (_, loss), gradients = run(to(arrays, jnp.float32), hyper)
        assert_same((loss, gradients), expected)


@every_prototype_loss
def test_errors_name_both_shapes(case):
    arrays, labels = case.make()
    arrays = to(arrays, jnp.float32)

    def refuses(message, arrays=arrays, labels=labels, **keywords):
        def loss(arrays):
            return case.loss(arrays, labels, **case.hyper | keywords)

        with pytest.raises(ValueError, match=message):
            jax.eval_shape(loss, arrays)

    prototypes = re.escape(str(arrays["prototypes"].shape))
    refuses(r"\(8, 4\).*" + prototypes, arrays | {"embeddings": arrays["embeddings"][:, :-1]})
    refuses(r"labels \(7,\) and embeddings \(8, 5\)", labels=labels[:-1])
    refuses("labels must be integers", labels=np.ones(BATCH))
    refuses(r"where must have shape \(8,\), found \(3,\)", where=np.ones(3, bool))
    refuses(r"class_where must have shape .* found \(4,\)", class_where=np.ones(4, bool))
    for shape in ((1, CLASSES), (BATCH, CLASSES), (1, CLASSES, 3), (CLASSES, 2)):
        refuses("class_where must have shape", class_where=np.ones(shape, bool))
    integers = arrays | {"embeddings": jnp.ones((BATCH, DIM), int)}
    refuses("embeddings must be floating, found int32", integers)
    if case.pieces:
        refuses("chunk_size must be at least 1", chunk_size=0)
    for name in {"temperature", "scale"} & set(case.hyper) - ({"scale"} if case.fixed else set()):
        refuses(f"{name} must be positive, found -1", **{name: np.float32(-1)})
        refuses(rf"{name} must be a scalar, found shape \(2,\)", **{name: jnp.ones(2)})


def test_errors_of_in_batch_losses_name_both_shapes():
    z = jnp.ones((4, 3))
    for loss in (losses.supervised_contrastive_loss, losses.nt_xent_loss):
        with pytest.raises(ValueError, match=r"labels \(3,\) and embeddings \(4, 3\)"):
            loss(z, jnp.zeros(3, int))
        with pytest.raises(ValueError, match=r"found \(2, 4, 3\); for several batches use vmap"):
            loss(jnp.ones((2, 4, 3)), jnp.zeros((2, 4), int))
    with pytest.raises(ValueError, match=r"first \(4, 3\) and second \(4, 2\)"):
        losses.vicreg_loss(z, z[:, :2])


def test_every_public_loss_is_in_the_suite():
    covered = {case.name for case in CASES}
    public = {name.removesuffix("_loss") for name in dir(losses) if name.endswith("_loss")}
    assert public - covered == {"variance", "covariance"}  # the terms of vicreg
