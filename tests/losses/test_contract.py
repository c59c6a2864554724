"""What every loss promises, one test per promise, over all losses.

All of it where JAX is told to promote neither dtypes nor ranks.
"""

import fractions
import functools
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asdproto import losses
from tests.losses import oracles
from tests.losses.cases import BATCH, CASES, CLASSES, DIM, PROTOTYPE_CASES

every_loss = pytest.mark.parametrize("case", CASES, ids=str)
every_prototype_loss = pytest.mark.parametrize("case", PROTOTYPE_CASES, ids=str)
BY_NAME = {case.name: case for case in CASES}

# Weights of the losses in the sum that is differentiated: no two examples may count alike.
WEIGHTS = np.linspace(0.5, 1.5, BATCH)

# float32 keeps 7 digits; logits here are below 30 and sums short, so 5 digits of a value are sure.
FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module", autouse=True)
def _no_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@functools.cache
def compiled(case, **options):
    """Losses per example, and gradients of their weighted sum; with every mask, once compiled."""

    def run(arrays, labels, hyper, where, present):
        def total(arrays, hyper):
            masks = {} if case.in_batch else {"class_where": present}
            loss = case.loss(arrays, labels, where=where, **masks, **options, **hyper)
            return jnp.sum(loss * jnp.asarray(WEIGHTS.reshape(loss.shape), loss.dtype)), loss

        (_, loss), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
            arrays, hyper
        )
        return loss, gradients

    return jax.jit(run)


def evaluate(
    case, arrays, labels, *, where=None, present=None, dtype=np.float32, hyper=None, **options
):
    where = np.ones(labels.shape, bool) if where is None else where
    present = np.ones(CLASSES, bool) if present is None else present
    arrays = {name: x.astype(dtype) for name, x in arrays.items()}
    scalar = np.float64 if dtype == np.float64 else np.float32
    hyper = {name: scalar(x) for name, x in (hyper or case.hyper).items()}
    with jax.enable_x64(dtype == np.float64):
        return jax.device_get(compiled(case, **options)(arrays, labels, hyper, where, present))


def assert_finite(tree):
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(leaf).all(), leaf


def check_gradients(case, arrays, labels, **masks):
    """Against finite differences, in float64."""
    options = {"dtype": np.float64, **case.fixed, **masks}
    rng, step = np.random.default_rng(2), 1e-6
    point = arrays, case.hyper
    direction = jax.tree.map(lambda x: rng.normal(size=np.shape(x)), point)
    if case.fixed:  # the scale, which is state, has no gradient
        direction = direction[0], jax.tree.map(np.zeros_like, direction[1])
    _, gradients = evaluate(case, arrays, labels, **options)
    products = jax.tree.map(lambda g, d: np.sum(g * d), gradients, direction)
    ahead, behind = (
        evaluate(case, moved, labels, hyper=hyper, **options)[0] @ WEIGHTS
        for moved, hyper in (
            jax.tree.map(lambda x, d, s=s: x + s * d, point, direction) for s in (step, -step)
        )
    )
    # Central differences: the third derivative times step^2, and rounding 1e-16 / step.
    expected = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), expected, rtol=1e-6, atol=1e-7)


@every_loss
def test_values_equal_the_oracle_and_gradients_finite_differences(case):
    arrays, labels = case.make()
    expected = case.oracle(arrays, labels, range(CLASSES), **case.hyper)
    loss, _ = evaluate(case, arrays, labels)
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, expected, **FLOAT32)
    loss, _ = evaluate(case, arrays, labels, dtype=np.float64)
    assert loss.dtype == np.float64
    np.testing.assert_allclose(loss, expected, rtol=1e-10, atol=1e-12)
    if not case.detached:  # see test_degenerate.py
        check_gradients(case, arrays, labels)
    # A dot product of float32 is good to 1e-7, a hundred times that in sharp logits; raw vectors
    # are a few times longer.
    sharp = {n: {"temperature": 0.01, "scale": 100.0}.get(n, x) for n, x in case.hyper.items()}
    loss, _ = evaluate(case, arrays, labels, hyper=sharp)
    expected = case.oracle(arrays, labels, range(CLASSES), **sharp)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("name", ["prototypical", "nt_xent"])
def test_gradients_where_a_sum_has_a_single_term(name):
    """One negative class, or one negative: a sum of exactly 1, where a maximum would tie."""
    arrays, _ = BY_NAME[name].make(seed=3)
    where, present = np.arange(BATCH) < 3, np.arange(CLASSES) < 2
    masks = {"where": where} if name == "nt_xent" else {"where": where, "present": present}
    check_gradients(BY_NAME[name], arrays, np.array([0, 0, 1, 0, 0, 0, 0, 0]), **masks)


def test_the_renewed_scale_of_adacos_has_no_gradient():
    case = BY_NAME["adacos"]
    arrays, labels = case.make()
    cosines = [dict(enumerate(row)) for row in arrays["embeddings"] @ arrays["prototypes"].T]
    renewed = {"scale": oracles.adacos_scale(cosines, labels, case.hyper["scale"])}
    _, (found, _) = evaluate(case, arrays, labels, dtype=np.float64)
    _, (expected, _) = evaluate(
        case, arrays, labels, dtype=np.float64, hyper=renewed, adaptive=False
    )
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["negative_prototype", "supervised_contrastive"])
def test_hessian_vector_products_equal_finite_differences(name):
    """Of a loss with each of the derivatives that are written by hand."""
    case = BY_NAME[name]
    arrays, labels = case.make(seed=4)
    direction = np.random.default_rng(2).normal(size=arrays["embeddings"].shape)

    def gradient(z):
        loss = case.loss({**arrays, "embeddings": z}, labels, **case.hyper)
        return loss @ jnp.asarray(WEIGHTS)

    def product(z, direction):
        return jax.jvp(jax.grad(gradient), (z,), (direction,))[1]

    with jax.enable_x64(True):
        found = jax.jit(product)(arrays["embeddings"], direction)
    ahead, behind = (
        evaluate(case, {**arrays, "embeddings": moved}, labels, dtype=np.float64)[1][0]
        for moved in (arrays["embeddings"] + s * direction for s in (1e-6, -1e-6))
    )
    expected = (ahead["embeddings"] - behind["embeddings"]) / 2e-6
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)  # as above


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


@every_prototype_loss
def test_no_class_gives_zero_and_zero_gradients(case):
    arrays, labels = case.make(seed=9)
    labels[2], labels[5] = -1, CLASSES
    arrays["embeddings"][[2, 5]] = np.nan
    loss, gradients = evaluate(case, arrays, labels)
    np.testing.assert_array_equal(loss[[2, 5]], 0)
    assert_finite(gradients)
    np.testing.assert_array_equal(gradients[0]["embeddings"][[2, 5]], 0)


@pytest.mark.parametrize(
    "case", [x for x in CASES if x.in_batch and list(x.arrays) == ["embeddings"]], ids=str
)
def test_without_positives_losses_within_a_batch_are_zero(case):
    arrays, labels = case.make(seed=9)
    labels[[2, 5]] = -1  # two examples without a class are no class of their own
    loss, gradients = evaluate(case, arrays, labels)
    np.testing.assert_array_equal(loss[[2, 5]], 0)
    assert_finite(gradients)
    np.testing.assert_allclose(loss, case.oracle(arrays, labels, None, **case.hyper), **FLOAT32)
    loss, gradients = evaluate(case, arrays, np.arange(BATCH))
    for leaf in jax.tree.leaves((loss, gradients)):
        np.testing.assert_array_equal(leaf, 0)


def test_labels_of_64_bits_do_not_wrap():
    case = BY_NAME["arcface"]
    labels = np.array([2**32, -(2**32) + 1] * 4)
    np.testing.assert_array_equal(evaluate(case, case.make()[0], labels, dtype=np.float64)[0], 0)


@every_prototype_loss
def test_excluded_classes_occur_nowhere(case):
    arrays, _ = case.make(seed=10)
    present = np.array([True, True, False, True, False, True, True])
    labels = np.array([0, 1, 3, 5, 3, 6, 0, 5])
    expected = case.oracle(arrays, labels, np.flatnonzero(present), **case.hyper)
    poisoned = {n: x.copy() for n, x in arrays.items()}
    for name, axis in case.class_axes().items():
        np.moveaxis(poisoned[name], axis, 0)[~present] = np.nan
    loss, gradients = evaluate(case, poisoned, labels, present=present)
    np.testing.assert_allclose(loss, expected, **FLOAT32)
    assert_finite(gradients)
    for name, axis in case.class_axes().items():
        np.testing.assert_array_equal(np.moveaxis(gradients[0][name], axis, 0)[~present], 0)
    labels[1] = 2
    loss, gradients = evaluate(case, poisoned, labels, present=present)
    assert loss[1] == 0
    assert_finite(gradients)
    np.testing.assert_array_equal(gradients[0]["embeddings"][1], 0)


@pytest.mark.parametrize("case", [x for x in PROTOTYPE_CASES if x.name != "center"], ids=str)
def test_a_single_class_is_certain(case):
    arrays, labels = case.make(seed=11)
    labels[:] = 2
    loss, _ = evaluate(case, arrays, labels, present=np.arange(CLASSES) == 2)
    if "multi" in case.name or case.name == "magface":
        # Several own prototypes compete with each other, as Eq. 3 says; MagFace adds a term.
        expected = case.oracle(arrays, labels, [2], **case.hyper)
        np.testing.assert_allclose(loss, expected, **FLOAT32)
    else:
        np.testing.assert_array_equal(loss, 0)


@every_loss
def test_bfloat16_inputs_are_summed_in_float32(case):
    arrays, labels = case.make(seed=14)
    rounded = {n: x.astype(jnp.bfloat16).astype(np.float64) for n, x in arrays.items()}
    expected = case.oracle(rounded, labels, range(CLASSES), **case.hyper)
    loss, gradients = evaluate(case, arrays, labels, dtype=jnp.bfloat16)
    assert loss.dtype == np.float32
    # The inputs are rounded before the oracle sees them, so only float32 rounding is left; the
    # squares of arccos near its ends magnify it.
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-4)
    exact = evaluate(case, rounded, labels)[1][0]
    for name, gradient in gradients[0].items():
        assert gradient.dtype == jnp.bfloat16
        # Scores' gradients and results are rounded to 8 bits each.
        scale = np.abs(exact[name]).max()
        np.testing.assert_allclose(
            gradient.astype(np.float32), exact[name], rtol=0, atol=0.02 * scale
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


@pytest.mark.parametrize("case", [x for x in CASES if x.pieces or not x.in_batch], ids=str)
def test_pieces_and_leading_axes_equal_the_whole(case):
    """A batch of two rows, where a loss knows no other examples; pieces that leave a rest."""
    arrays, labels = case.make(seed=18)
    where, present = np.arange(BATCH) % 3 != 1, np.arange(CLASSES) != 2
    expected = evaluate(case, arrays, labels, where=where, present=present)
    if not case.in_batch:
        labels, where = labels.reshape(2, 4), where.reshape(2, 4)
        for name, letters in case.arrays.items():
            if letters.startswith("B"):
                arrays[name] = arrays[name].reshape(2, 4, *arrays[name].shape[1:])
    size = {"chunk_size": 3 if case.in_batch else 4} if case.pieces else {}
    found = evaluate(case, arrays, labels, where=where, present=present, **size)

    def same(a, b):
        # To 1e-5 of the largest entry: the same float32 sums, taken in another order.
        scale = max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a.reshape(b.shape), b, rtol=0, atol=1e-5 * scale)

    jax.tree.map(same, found, expected)


# MagFace's loss has another term.
LOGITS = {name.removesuffix("_logits") for name in dir(losses) if name.endswith("_logits")}
LOGITS -= {"magface"}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in LOGITS], ids=str)
def test_cross_entropy_of_logits_is_the_loss(case):
    """Of embeddings with two leading axes."""
    arrays, labels = case.make()
    expected, _ = evaluate(case, arrays, labels)
    function = getattr(losses, f"{case.name}_logits")
    names = inspect.signature(function).parameters

    @jax.jit
    def entropy(y, z, p, *more):
        bias = {"bias": more[-1]} if "bias" in names else {}
        more = more[: len(more) - len(bias)]
        found = function(z, p, *[y] * ("labels" in names), *more, **case.hyper, **bias)
        if isinstance(found, tuple):  # the own class's place may be multiplied by 0
            found = jnp.concatenate(found, axis=-1)
        return optax.softmax_cross_entropy(found, jax.nn.one_hot(y, found.shape[-1]))

    folded = [
        x.reshape(2, 4, *x.shape[1:]) if case.arrays[name].startswith("B") else x
        for name, x in arrays.items()
    ]
    found = entropy(labels.reshape(2, 4), *(x.astype(np.float32) for x in folded))
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-5, atol=1e-5)


@every_prototype_loss
def test_errors_name_both_shapes(case):
    arrays, labels = case.make()
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}

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
    for shape in ((1, CLASSES), (CLASSES, 2)):
        refuses("class_where must have shape", class_where=np.ones(shape, bool))
    integers = arrays | {"embeddings": np.ones((BATCH, DIM), np.int32)}
    refuses("embeddings must be floating, found int32", integers)
    if case.pieces:
        refuses("chunk_size must be at least 1", chunk_size=0)
    for name in {"temperature", "scale"} & set(case.hyper) - ({"scale"} if case.fixed else set()):
        refuses(f"{name} must be positive, found -1", **{name: np.float32(-1)})
        refuses(rf"{name} must be a scalar, found shape \(2,\)", **{name: np.ones(2, np.float32)})


def test_errors_of_in_batch_losses_name_both_shapes():
    z = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"labels \(3,\) and embeddings \(4, 3\)"):
        losses.nt_xent_loss(z, jnp.zeros(3, int))
    with pytest.raises(ValueError, match=r"found \(2, 4, 3\); for several batches use vmap"):
        losses.nt_xent_loss(jnp.ones((2, 4, 3)), jnp.zeros((2, 4), int))
    with pytest.raises(ValueError, match=r"first \(4, 3\) and second \(4, 2\)"):
        losses.vicreg_loss(z, z[:, :2])


def test_this_suite_has_every_loss_and_our_page_lists_it_with_its_defaults():
    names = {name.removesuffix("_loss") for name in dir(losses) if name.endswith("_loss")}
    names -= {"variance", "covariance"}  # the terms of vicreg
    assert set(BY_NAME) == names | {"triplet_hard", "negative_prototype_normalized"}
    page = (pathlib.Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    tables = page.partition("## The losses")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)`.* \| ([^|]*)\|$", tables, re.M))
    assert set(rows) == names
    for name, text in rows.items():
        parameters = inspect.signature(getattr(losses, f"{name}_loss")).parameters.values()
        defaults = [x.default for x in parameters if type(x.default) in (int, float, tuple)]
        numbers = re.findall(r"\d[\d./]*", text.partition("starts")[0])
        listed = {float(fractions.Fraction(number)) for number in numbers}
        assert listed <= set(np.hstack([[], *defaults])), name
