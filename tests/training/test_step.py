"""Parts of an epoch, each on its own: schedule, update, plan, prototype pass, step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asdproto.training import step as steps
from asdproto.training.devices import use_devices
from asdproto.training.stage import Finetuning, Pretraining, Stage
from asdproto.training.state import clip_index
from tests.training import tiny

DATA = tiny.make_data()


@functools.lru_cache
def _setup(stage="pretrain", **changes):
    task = tiny.make_task(DATA, stage, **changes)
    index = jax.device_put(clip_index(DATA, resident=True))
    return task, index, task.init(jax.random.key(0), tiny.MELS)


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def _embed(task, variables, crops, *, train):
    return task.model.apply(variables, crops, train=train, mutable=["batch_stats"])[0]


# Compiled as one program each: operation by operation they take minutes to compile.
_plan = jax.jit(steps.plan_epoch, static_argnums=0)
_take = jax.jit(steps.take_batch, static_argnums=(0, 4))
_step = jax.jit(steps.train_step, static_argnums=0)
_add_chunk = jax.jit(steps.add_chunk, static_argnums=0)


def _sgd(params, gradients, rates, decay):
    """The update of the paper's framework: the rate comes last."""
    velocity = np.zeros_like(params)
    for gradient, rate in zip(gradients, rates, strict=True):
        velocity = 0.9 * velocity + gradient + decay * params
        params = params - rate * velocity
    return params


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


@pytest.mark.parametrize(("name", "oracle"), [("sgd", _sgd), ("adam", _adam), ("lars", _lars)])
def test_updates_equal_their_formulas(name, oracle):
    stage = Stage(optimizer=name, weight_decay=0.1)
    rng = np.random.default_rng(0)
    params, gradients, rates = rng.standard_normal(6), rng.standard_normal((3, 6)), (0.1, 0.1, 0.02)
    ours = {"w": jnp.asarray(params, jnp.float32)}
    state = stage.update_rule().init(ours)
    for gradient, rate in zip(gradients, rates, strict=True):
        update = stage.update_rule(rate).update({"w": jnp.asarray(gradient)}, state, ours)
        ours, state = optax.apply_updates(ours, update[0]), update[1]
    # Three updates in float32.
    np.testing.assert_allclose(ours["w"], oracle(params, gradients, rates, 0.1), rtol=1e-5)


def test_schedules_are_the_papers():
    pretrain = Pretraining()
    rates = [float(pretrain.learning_rate(epoch)) for epoch in (0, 49, 50, 89, 90, 119)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    assert pretrain.steps(21000) == 657
    finetune = Finetuning()
    np.testing.assert_allclose(finetune.learning_rate(29), 0.01, rtol=1e-6)
    np.testing.assert_allclose(finetune.learning_rate(30), 0.001, rtol=1e-6)
    assert finetune.steps(21000) == 210
    assert [finetune.steps(clips) for clips in (7, 149, 151, 291)] == [1, 1, 2, 3]
    assert finetune.batch == 100
    # A shorter schedule keeps the paper's proportions.
    short = dataclasses.replace(pretrain, epochs=12)
    np.testing.assert_allclose(
        [short.learning_rate(e) for e in (4, 5, 8, 9)], [0.1, 0.01, 0.01, 0.001], rtol=1e-6
    )


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


def test_impossible_stages_are_errors_that_name_the_field():
    """Beyond the range of each field, which tests/test_config.py looks at."""
    for message, stage, field in (
        ("learning_rates=", Pretraining, {"learning_rates": ()}),
        ("mix_range=", Finetuning, {"mix_range": (0.5, 0.25)}),
        ("ways=6", functools.partial(tiny.make_task, DATA, "finetune"), {"ways": 6}),
    ):
        with pytest.raises(ValueError, match=message):
            stage(**field)


def test_prototype_pass_equals_class_means_of_all_embeddings():
    """Of as many crops of every clip as asked."""
    task, index, state = _setup(sub_prototypes=2, mpe_ratio=0.5, prototype_crops=3)
    plan = _plan(task, state.step, index, jax.random.key(1), task.stage.hyper())
    sums = steps.empty_sums(task)
    for _ in range(task.pass_shape[0]):
        batch = _take(task, index, plan.chunks, sums.chunk, None)
        sums = _add_chunk(task, state, batch, plan.membership, sums)
    prototypes = steps.finish_prototypes(state, sums, None).prototypes

    chosen = np.ravel(plan.chunks.clips) >= 0
    clips, starts = (np.ravel(x)[chosen] for x in (plan.chunks.clips, plan.chunks.starts))
    np.testing.assert_array_equal(np.bincount(clips), np.full(22, 3))
    assert (np.asarray(index.frames)[clips] >= starts + task.crop).all()
    # Crops of a clip differ, but of those that are about as short as one.
    assert sum(len(set(starts[clips == clip])) > 1 for clip in range(22)) > 10

    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    features = np.asarray(index.features, np.float32)
    crops = np.stack([features[i, s : s + task.crop] for i, s in zip(clips, starts, strict=True)])
    crops = jnp.asarray((crops - DATA.mean) / DATA.std, jnp.float32)
    z = np.asarray(_embed(task, variables, crops, train=False), np.float64)
    assert prototypes.shape == (tiny.CLASSES, 3, z.shape[1])
    for label in range(tiny.CLASSES):
        rows = np.flatnonzero(DATA.labels == label)
        for which in range(3):
            members = rows[np.asarray(plan.membership)[which, rows] > 0]
            assert len(members) == (len(rows) if which == 0 else -(-len(rows) // 2))
            mean = z[np.isin(clips, members)].mean(axis=0)
            expected = mean / np.linalg.norm(mean)
            np.testing.assert_allclose(prototypes[label, which], expected, atol=1e-5)


def test_every_epoch_draws_everything_anew_and_keeps_it_to_its_end():
    task, index, _ = _setup(sub_prototypes=2, mpe_ratio=0.5)
    hyper, steps_per_epoch = task.stage.hyper(), task.steps_per_epoch
    first, last, following = (
        jax.tree.map(np.asarray, plan._replace(key=jax.random.key_data(plan.key)))
        for plan in (
            _plan(task, jnp.int32(step), index, jax.random.key(1), hyper)
            for step in (0, steps_per_epoch - 1, steps_per_epoch)
        )
    )
    assert tiny.same(first, last)
    drawn = [(plan.steps.clips, plan.steps.starts, plan.chunks.starts, plan.key,
              plan.membership[1], plan.membership[2]) for plan in (first, following)]  # fmt: skip
    for before, after in zip(*drawn, strict=True):
        assert (before != after).any()
    # Sub-prototypes of one epoch differ too.
    assert (first.membership[1] != first.membership[2]).any()


def test_classes_without_clips_are_refused():
    labels = np.where(DATA.labels == 2, 1, DATA.labels)
    with pytest.raises(ValueError, match="class 2 has no training clip"):
        clip_index(dataclasses.replace(DATA, labels=labels), resident=True)


def test_statistics_that_devices_take_apart_are_averaged():
    devices = use_devices(2)
    whole, apart = (tiny.make_task(DATA, devices=use_devices(count)) for count in (1, 2))
    apart = dataclasses.replace(apart, model=tiny.Encoder())  # each device by its own examples
    index, state = jax.device_put(clip_index(DATA, resident=True)), _setup()[2]
    plan = _plan(whole, state.step, index, jax.random.key(1), whole.stage.hyper())
    prototypes = jnp.ones((tiny.CLASSES, 2, 8))
    state = state._replace(prototypes=prototypes)

    def step(state, index, plan, hyper, *, axis_name):
        batch = steps.take_batch(apart, index, plan.steps, 0, axis_name)
        return steps.train_step(apart, state, batch, plan.key, hyper, axis_name)[0].batch_stats

    inputs = devices.replicate((state, index, plan, whole.stage.hyper()))
    found = devices.compile(step, in_axes=(None,) * 4)(*inputs)
    crops = _take(whole, index, plan.steps, 0, None).crops
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    halves = [
        apart.model.apply(variables, half, train=True, mutable=["batch_stats"])[1]["batch_stats"]
        for half in np.split(np.asarray(crops), 2)
    ]
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), dict(found), expected)


def test_an_epoch_of_one_step_sums_one_loss():
    task, index, state = _setup("finetune", steps_per_epoch=1)
    hyper = task.stage.hyper()
    plan = _plan(task, state.step, index, jax.random.key(1), hyper)
    for _ in range(2):
        state, loss = _step(task, state, _take(task, index, plan.steps, 0, None), plan.key, hyper)
        assert state.loss_sum == loss > 0


def test_a_loop_carries_large_kernels_of_the_encoder_in_its_dtype():
    task, index, _ = _setup("finetune")
    encoder = tiny.Encoder(hidden=128, dtype=jnp.bfloat16)  # one kernel of 2048 numbers
    task = dataclasses.replace(task, model=encoder)
    state, hyper = task.init(jax.random.key(0), tiny.MELS), task.stage.hyper()
    kernels = steps.cast_kernels(task, state.params)
    (cast,) = jax.tree.leaves(kernels)
    kernel = state.params["encoder"]["Dense_0"]["kernel"]
    assert tiny.same(cast, kernel.astype(jnp.bfloat16))
    # What is of this dtype already is carried once.
    assert not jax.tree.leaves(steps.cast_kernels(_setup()[0], state.params))

    plan = _plan(task, state.step, index, jax.random.key(1), hyper)
    found = jax.jit(steps.scan_steps, static_argnums=0)(task, state, index, plan, hyper)
    for turn in range(task.steps_per_epoch):
        batch = _take(task, index, plan.steps, turn, None)
        state, _ = _step(task, state, batch, plan.key, hyper)
    for one, other in zip(
        jax.tree.leaves(found.params), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
