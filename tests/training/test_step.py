import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asdproto.models.resnet import ResNet
from asdproto.training import step as steps
from asdproto.training.devices import use_devices
from asdproto.training.epoch import run_epoch
from asdproto.training.stage import Finetuning, Pretraining
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


def test_update_is_the_papers_frameworks():
    """Weight decay joins the gradient, momentum accumulates, the rate comes last."""
    task, *_ = _setup()
    rng = np.random.default_rng(0)
    param, velocity = rng.standard_normal(6), np.zeros(6)
    ours = {"w": jnp.asarray(param, jnp.float32)}
    state = task.stage.update_rule().init(ours)
    for rate in (0.1, 0.1, 0.01):
        gradient = rng.standard_normal(6)
        decayed = gradient + 5e-5 * param
        velocity = 0.9 * velocity + decayed
        param = param - rate * velocity
        gradients = {"w": jnp.asarray(gradient, jnp.float32)}
        updates, state = task.stage.update_rule(rate).update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours["w"], param, rtol=1e-6)


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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mpe_ratio", 0.0),
        ("temperature", -1.0),
        ("mix_range", (0.5, 0.25)),
        ("learning_rates", ()),
        ("prototype_crops", 0),
        ("ways", 1),
    ],
)
def test_impossible_stages_are_errors_that_name_the_field(field, value):
    stage = Finetuning if hasattr(Finetuning, field) else Pretraining
    with pytest.raises(ValueError, match=f"{field}="):
        stage(**{field: value})


def test_more_ways_than_classes_is_an_error():
    with pytest.raises(ValueError, match="ways=6"):
        tiny.make_task(DATA, "finetune", ways=6)


def test_prototype_pass_equals_class_means_of_all_embeddings():
    task, index, state = _setup(sub_prototypes=2, mpe_ratio=0.5)
    plan = _plan(task, state.step, index, jax.random.key(1), task.stage.hyper())
    sums = steps.empty_sums(task)
    for _ in range(task.chunks):
        batch = _take(task, index, plan.chunks, sums.chunk, None)
        sums = _add_chunk(task, state, batch, plan.membership, sums)
    prototypes = steps.finish_prototypes(state, sums, None).prototypes

    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    starts = np.ravel(plan.chunks.starts)[:22]
    crops = np.stack(
        [np.asarray(index.features)[i, s : s + task.crop] for i, s in enumerate(starts)]
    )
    crops = (crops.astype(np.float32) - DATA.mean) / DATA.std
    z = np.asarray(
        _embed(task, variables, jnp.asarray(crops, jnp.float32), train=False), np.float64
    )
    assert prototypes.shape == (tiny.CLASSES, 3, z.shape[1])
    for label in range(tiny.CLASSES):
        rows = np.flatnonzero(DATA.labels == label)
        for which in range(3):
            members = rows[np.asarray(plan.membership)[which, rows] > 0]
            assert len(members) == (len(rows) if which == 0 else -(-len(rows) // 2))
            mean = z[members].mean(axis=0)
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


def test_prototypes_average_as_many_crops_of_every_clip_as_asked():
    task, index, state = _setup(prototype_crops=3)
    plan = _plan(task, state.step, index, jax.random.key(1), task.stage.hyper())
    clips, starts = np.ravel(plan.chunks.clips), np.ravel(plan.chunks.starts)
    np.testing.assert_array_equal(np.bincount(clips[clips >= 0]), np.full(22, 3))
    assert (np.asarray(index.frames)[clips[clips >= 0]] >= starts[clips >= 0] + task.crop).all()
    crops_differ = [len(set(starts[clips == clip])) > 1 for clip in range(22)]
    assert sum(crops_differ) > 10  # the others are about as short as a crop
    sums = steps.empty_sums(task)
    for _ in range(task.chunks):
        batch = _take(task, index, plan.chunks, sums.chunk, None)
        sums = _add_chunk(task, state, batch, plan.membership, sums)
    np.testing.assert_array_equal(sums.counts[0], 3 * np.bincount(DATA.labels))


def _loss_and_update(traced=(), **changes):
    """The first fine-tuning step of a changed configuration, or of changed traced numbers."""
    task, index, state = _setup("finetune", **changes)
    hyper = task.stage.hyper()._replace(**{k: jnp.float32(v) for k, v in dict(traced).items()})
    plan = _plan(task, state.step, index, jax.random.key(1), hyper)
    batch = _take(task, index, plan.steps, state.step, None)
    after, loss = _step(task, state, batch, plan.key, hyper)
    moved = jax.tree.map(lambda a, b: a - b, after.params, state.params)
    return float(loss), np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)])


def test_flags_of_in_batch_prototypes_do_what_they_say():
    loss, flows = _loss_and_update()
    stopped_loss, stopped = _loss_and_update(stop_gradient=True)
    assert loss == pytest.approx(stopped_loss, rel=1e-5)  # same value, another gradient
    assert np.abs(flows - stopped).max() > 1e-6
    apart, _ = _loss_and_update(leave_one_out=True)
    assert apart > loss  # an anchor in its own prototype flatters itself
    plain, _ = _loss_and_update(mix_range=None)
    assert plain < loss  # fewer negatives


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_training_lowers_the_loss(stage):
    task, index, state = _setup(stage, epochs=6)
    epoch = jax.jit(lambda s: run_epoch(task, s, index, jax.random.key(3), hyper))
    hyper = task.stage.hyper()
    means = []
    for _ in range(6):
        state = epoch(state)
        means.append(float(state.loss_sum) / task.steps_per_epoch)
    assert np.mean(means[-2:]) < 0.95 * means[0]


def test_a_step_goes_by_the_traced_numbers_and_not_by_the_configuration():
    loss, moved = _loss_and_update()
    for field, traced in (
        ({"mix_range": (0.75, 1.0)}, {"mix_low": 0.75, "mix_high": 1.0}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
    ):
        found, expected = _loss_and_update(traced)[0], _loss_and_update(**field)[0]
        assert found == pytest.approx(expected, rel=1e-6)
        assert abs(found - loss) > 1e-3
    _, half = _loss_and_update({"learning_rate_scale": 0.5})
    np.testing.assert_allclose(half, moved / 2, rtol=1e-3, atol=1e-6)
    assert np.abs(moved).max() > 1e-4


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
    rng = np.random.default_rng(0)
    kernel, bias, head = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((64, 32), (32,), (64, 32))
    )
    params = {"encoder": {"bias": bias, "kernel": kernel}, "loss": {"head": head}}
    task = dataclasses.replace(tiny.make_task(DATA), model=ResNet(dtype=jnp.bfloat16))
    kernels = steps.cast_kernels(task, params)
    rounded = {"bias": None, "kernel": kernel.astype(jnp.bfloat16)}
    assert kernels["loss"] == {"head": None}
    assert kernels["encoder"]["bias"] is None
    assert tiny.same(kernels["encoder"], rounded)
    # What is of this dtype already is carried once.
    assert not jax.tree.leaves(steps.cast_kernels(tiny.make_task(DATA), params))
