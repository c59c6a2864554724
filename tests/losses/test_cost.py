"""Memory and products of compiled programs; none is run."""

import functools

import jax
import jax.numpy as jnp
import pytest

from asdproto import losses
from asdproto.prototypes import class_sums

MIB = 2**20


def temporary_memory(loss, batch, classes, dim, *, mix=False):
    """Bytes beside arguments and results of a compiled value and gradient."""

    def mean(z, p, y, *rest):
        return loss(z, p, y, *rest).mean()

    shapes = [
        jax.ShapeDtypeStruct((batch, dim), jnp.float32),
        jax.ShapeDtypeStruct((classes, dim), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    ]
    if mix:
        shapes.append(jax.ShapeDtypeStruct((batch, classes), jnp.float32))
    lowered = jax.jit(jax.value_and_grad(mean, argnums=(0, 1))).lower(*shapes)
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 3})
    return compiled.memory_analysis().temp_size_in_bytes


def test_mixed_negatives_need_no_more_than_scores():
    """Of 2 MiB; a mixed vector for every pair would be 512 MiB."""
    closed = temporary_memory(losses.negative_prototype_loss, 512, 1024, 256, mix=True)
    assert 2 * MIB < closed < 16 * MIB


@pytest.mark.parametrize("name", ["prototypical", "negative_prototype"])
def test_a_hundred_thousand_classes_fit(name):
    """Coefficients of mixing are an argument, of 1.5 GiB here."""
    loss = functools.partial(getattr(losses, f"{name}_loss"), chunk_size=2048)
    mix = name == "negative_prototype"
    assert temporary_memory(loss, 4096, 100_000, 256, mix=mix) < 1024 * MIB


@pytest.mark.parametrize(("classes", "pads"), [(90, False), (97, True)])
def test_pieces_are_filled_up_only_where_no_divisor_is_near(classes, pads):
    z, p, y = jnp.ones((4, 8)), jnp.ones((classes, 8)), jnp.zeros(4, jnp.int32)
    program = jax.make_jaxpr(lambda p: losses.prototypical_loss(z, p, y, chunk_size=32))(p)
    assert (" pad[" in str(program)) == pads


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_of_float32_are_taken_in_full(dtype):
    """On a GPU and a TPU a product of float32 is of fewer digits, unless it is asked for all."""
    z, p, y = jnp.ones((4, 8), dtype), jnp.ones((3, 8), dtype), jnp.zeros(4, jnp.int32)
    compared = str(jax.make_jaxpr(losses.prototypical_loss)(z, p, y))
    assert ("HIGHEST" in compared) == (dtype == jnp.float32)
    # Sums of classes are float32 whatever the embeddings are.
    assert "HIGHEST" in str(jax.make_jaxpr(lambda z: class_sums(z, y, 3))(z))


@pytest.mark.parametrize("loss", [losses.supervised_contrastive_loss, losses.nt_xent_loss])
def test_contrastive_losses_by_blocks_of_anchors(loss):
    """All scores are 64 MiB."""

    def total(z, p, y):
        return loss(z + 0 * p[0], y, chunk_size=256)

    assert temporary_memory(total, 4096, 1, 64) < 32 * MIB
