"""Every loss traces, with its gradients, in every mode of JAX that people run; none is run here.

That it traces, and what it gives, where nothing is promoted is in test_contract.py.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.losses.cases import CASES

DEVICES, BATCH, CLASSES = 2, 8, 8
SHARDED = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Explicit,))


def value_and_gradients(case, *, chunk_size=None):
    """Loss and gradients with every mask, as a function of arrays."""
    options = {} if chunk_size is None else {"chunk_size": chunk_size}

    def run(arrays, labels, hyper, where, present):
        def total(arrays, hyper):
            masks = {} if case.in_batch else {"class_where": present}
            return case.loss(arrays, labels, where=where, **masks, **options, **hyper).sum()

        return jax.value_and_grad(total, argnums=(0, 1))(arrays, hyper)

    return run


def shapes(case, place=lambda letter: None, batch=BATCH):
    """Arguments of that function; ``place`` says what an axis is spread over."""
    arrays, labels = case.make(batch=BATCH, classes=CLASSES)

    def one(letters, shape, dtype=jnp.float32):
        spec = PartitionSpec(*map(place, letters))
        sharding = NamedSharding(SHARDED, spec) if any(spec) else None
        shape = tuple(batch if n == "B" else size for n, size in zip(letters, shape, strict=True))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return (
        {n: one(case.arrays[n], x.shape) for n, x in arrays.items()},
        one("B", labels.shape, jnp.int32),
        {n: jax.ShapeDtypeStruct((), jnp.float32) for n in case.hyper},
        one("B", labels.shape, bool),
        one("C", (CLASSES,), bool),
    )


def trace(case, arguments, chunk_size=None):
    jax.jit(value_and_gradients(case, chunk_size=chunk_size)).trace(*arguments)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_traces_with_examples_or_classes_over_an_explicit_mesh(case):
    with jax.set_mesh(SHARDED):
        arguments = shapes(case, lambda letter: "d" if letter == "B" else None)
        if case.pieces:
            trace(case, arguments, 4)
        if case.in_batch or not case.pieces:
            trace(case, arguments)
        if not case.in_batch:
            trace(case, shapes(case, lambda letter: "d" if letter == "C" else None))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exports_with_a_symbolic_batch_size(case):
    (batch,) = jax.export.symbolic_shape("batch")
    # Chunks are made by the same lines for all of them.
    size = 4 if case.name == "multi_negative_prototype" else None
    run = jax.jit(value_and_gradients(case, chunk_size=size))
    jax.export.export(run)(*shapes(case, batch=batch))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_traces_under_vmap_forward_mode_and_without_examples(case):
    """A sweep is one vmap, over hyper-parameters too; derivatives are of any order."""
    arguments = shapes(case)
    run = value_and_gradients(case)
    several = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), arguments)
    jax.eval_shape(jax.vmap(run), *several)

    def product(arrays, *more):
        return jax.jvp(lambda arrays: run(arrays, *more), (arrays,), (arrays,))

    jax.eval_shape(product, *arguments)
    values, labels, *_ = shapes(case, batch=0)
    loss = jax.eval_shape(lambda *x: case.loss(*x, **case.hyper), values, labels)
    assert loss.shape == (0,)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_traces_under_shard_map(case):
    """Each device has a part of the batch, and all prototypes."""
    arguments = shapes(case, lambda letter: "d" if letter == "B" else None)
    spec = {
        n: PartitionSpec("d") if x[0] == "B" else PartitionSpec() for n, x in case.arrays.items()
    }
    rows, whole = PartitionSpec("d"), PartitionSpec()

    def run(arrays, labels, hyper, where, present):
        masks = {} if case.in_batch else {"class_where": present}
        return case.loss(arrays, labels, where=where, **masks, **hyper)

    mapped = jax.shard_map(
        run, mesh=SHARDED, in_specs=(spec, rows, whole, rows, whole), out_specs=rows
    )
    with jax.set_mesh(SHARDED):
        jax.jit(mapped).trace(*arguments)
