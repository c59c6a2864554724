"""Losses over several devices: examples spread over a mapped axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from asdproto import losses
from asdproto.prototypes import l2_normalize
from tests.losses.devices import check_devices_equal_one

DEVICES = 4
Z = l2_normalize(jax.random.normal(jax.random.key(0), (12, 6)))
SECOND = l2_normalize(Z + 0.3 * jax.random.normal(jax.random.key(1), (12, 6)))
P = l2_normalize(jax.random.normal(jax.random.key(2), (8, 6)))
Y = jax.random.randint(jax.random.key(3), (12,), 0, 4)
WHERE = jnp.arange(12) % 5 != 3


def adacos(z, second, y, **options):
    loss, state = losses.adacos_loss(z, P, y, losses.AdaCosState(jnp.float32(9)), **options)
    return loss, state.scale


def vicreg(z, second, y, **options):
    return sum(losses.vicreg_loss(z, second, **options)), ()


def barlow_twins(z, second, y, **options):
    return jnp.broadcast_to(losses.barlow_twins_loss(z, second, **options), y.shape), ()


def nt_xent(z, second, y, **options):
    return losses.nt_xent_loss(z, y, chunk_size=2, **options), ()


@pytest.mark.parametrize("loss", [adacos, vicreg, barlow_twins, nt_xent], ids=lambda f: f.__name__)
def test_examples_spread_over_devices_equal_one_device(loss):
    def weighted(weights, rows, **options):
        z, second, y = rows
        return loss(z * weights, second * weights, y, **options)

    weights = jnp.linspace(0.8, 1.2, 6)
    check_devices_equal_one(weighted, weights, (Z, SECOND, Y), WHERE, devices=DEVICES)


@jax.jit
def value_and_gradients(z, p, y, mix):
    def total(z, p):
        values = losses.negative_prototype_loss(z, p, y, mix, temperature=0.5)
        return values.sum(), values

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(z, p)


@pytest.mark.parametrize(
    ("axis_type", "spread"), [(AxisType.Explicit, "examples"), (AxisType.Auto, "classes")]
)
def test_arrays_spread_over_a_mesh_equal_one_device(axis_type, spread):
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(axis_type,))
    examples, classes = ("d", None) if spread == "examples" else (None, "d")

    def place(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    mix = jax.random.uniform(jax.random.key(5), (12, 8))
    expected = value_and_gradients(Z, P, Y, mix)
    with jax.set_mesh(mesh):
        arguments = place(Z, examples), place(P, classes), place(Y, examples)
        found = value_and_gradients(*arguments, place(mix, examples, classes))
    assert found[1][1].sharding.is_equivalent_to(arguments[1].sharding, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )
