"""Adam and LARS, schedules with warm-up and cosine, and crops that an objective mixes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asdproto.training.devices import use_devices
from asdproto.training.loop import StageRun
from asdproto.training.stage import Stage
from tests.training import tiny

DATA = tiny.make_data()


def _adam(params, gradients, rates, decay):
    first, second = np.zeros_like(params), np.zeros_like(params)
    for turn, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        moved = first / (1 - 0.9**turn) / (np.sqrt(second / (1 - 0.999**turn)) + 1e-8)
        params = params - rate * (moved + decay * params)
    return params


def _lars(params, gradients, rates, decay):
    velocity = np.zeros_like(params)
    for gradient, rate in zip(gradients, rates, strict=True):
        decayed = gradient + decay * params
        trust = 0.001 * np.linalg.norm(params) / np.linalg.norm(decayed)
        velocity = 0.9 * velocity - rate * trust * decayed
        params = params + velocity
    return params


@pytest.mark.parametrize(("name", "oracle"), [("adam", _adam), ("lars", _lars)])
def test_updates_equal_their_formulas(name, oracle):
    task = tiny.make_task(DATA, optimizer=name, weight_decay=0.1)
    rng = np.random.default_rng(0)
    params, gradients, rates = rng.standard_normal(6), rng.standard_normal((3, 6)), (0.1, 0.1, 0.02)
    ours = {"w": jnp.asarray(params, jnp.float32)}
    state = task.stage.update_rule().init(ours)
    for gradient, rate in zip(gradients, rates, strict=True):
        update = task.stage.update_rule(rate).update({"w": jnp.asarray(gradient)}, state, ours)
        ours, state = optax.apply_updates(ours, update[0]), update[1]
    # Three updates in float32.
    np.testing.assert_allclose(ours["w"], oracle(params, gradients, rates, 0.1), rtol=1e-5)


def test_cosine_and_warm_up():
    stage = Stage(epochs=300, learning_rates=((1e-4, 20), (1e-4, 280)), cosine_to=1e-5)
    rates = [float(stage.learning_rate(epoch)) for epoch in (0, 19, 20, 160, 299)]
    last = 1e-5 + 9e-5 * (1 + np.cos(np.pi * 279 / 280)) / 2
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 1e-4, 5.5e-5, last], rtol=1e-5)
    warm = Stage(epochs=10, learning_rates=((0.5, 10),), warmup=4)
    rates = [float(warm.learning_rate(epoch)) for epoch in range(6)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4, 0.5, 0.5], rtol=1e-6)
    # A shorter run keeps the proportions.
    short = dataclasses.replace(stage, epochs=30)
    np.testing.assert_allclose(float(short.learning_rate(16)), 5.5e-5, rtol=1e-5)


@pytest.mark.parametrize(("field", "value"), [("warmup", -1), ("cosine_to", -0.1)])
def test_schedules_that_cannot_be_are_errors(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        Stage(**{field: value})
    with pytest.raises(ValueError, match="optimizer='sgdm': expected one of 'sgd', 'adam'"):
        Stage(optimizer="sgdm")


@pytest.mark.parametrize("optimizer", ["adam", "lars"])
def test_a_loop_on_the_device_equals_one_on_the_host(optimizer):
    """What the loop carries side by side must not mix parameters that LARS looks at one by one."""
    found = []
    for loop in ("dispatch", "scan"):
        task = tiny.make_task(DATA, optimizer=optimizer, epochs=1, learning_rates=((0.5, 1),))
        state = task.init(jax.random.key(0), tiny.MELS)
        run = StageRun("pretrain", loop=loop)
        found.append(tiny.train(task, DATA, use_devices(1), state, jax.random.key(1), run))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), found[0].params, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    pairs = zip(jax.tree.leaves(found[0].params), jax.tree.leaves(found[1].params), strict=True)
    for one, other in pairs:
        # Three steps; Adam divides gradients by their own size, rounding errors too.
        np.testing.assert_allclose(one, other, atol=5e-3 if optimizer == "adam" else 1e-5)
