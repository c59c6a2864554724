"""A training step over devices beside the same on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asdproto import losses


def check_devices_equal_one(loss, params, rows, where, *, devices):
    """Compares mean loss, gradients averaged over devices, and what the loss returns beside it.

    ``loss(params, rows, where=, axis_name=)`` returns losses of the rows, and what all devices
    have alike.
    """

    def step(params, rows, where, axis_name=None):
        def mean(params):
            values, after = loss(params, rows, where=where, axis_name=axis_name)
            values = jnp.where(where, values, 0)
            return losses.masked_mean(values, where, axis_name=axis_name), after

        result, gradients = jax.value_and_grad(mean, has_aux=True)(params)
        return result, gradients if axis_name is None else lax.pmean(gradients, axis_name)

    expected = jax.jit(step)(params, rows, where)
    spread = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), (rows, where))
    run = jax.pmap(
        functools.partial(step, axis_name="d"),
        axis_name="d",
        in_axes=(None, 0, 0),
        devices=jax.devices()[:devices],
    )
    # Sums over devices in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, [b] * devices, atol=1e-5, rtol=1e-4),
        run(params, *spread),
        jax.device_get(expected),
    )
