import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto import prototypes as proto
from asdproto.losses import multi_prototype_loss, negative_prototype_loss_by_definition
from asdproto.training import step as steps
from asdproto.training.epoch import run_epoch
from asdproto.training.stage import StageConfig
from asdproto.training.state import Packing, make_table
from tests.training import tiny

DATA = tiny.make_data()


@functools.lru_cache
def _setup(stage="pretrain", **changes):
    task = tiny.make_task(DATA, stage, **changes)
    table, _ = make_table(
        DATA.labels, DATA.clips.usable_frames, DATA.mean, DATA.deviation, DATA.num_classes
    )
    state = task.init(jax.random.key(0), tiny.MELS)
    return task, table, jnp.asarray(DATA.clips.load()), state


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def _embed(task, variables, crops, *, train):
    return task.model.apply(variables, crops, train=train, mutable=["batch_stats"])[0]


# Compiled as one program each: operation by operation they take minutes to compile.
_draw = jax.jit(steps.draw_epoch, static_argnums=0)
_take = jax.jit(steps.take_batch, static_argnums=(0, 5))
_step = jax.jit(steps.train_step, static_argnums=0)
_chunk_rows = jax.jit(steps.chunk_rows, static_argnums=(0, 4))
_add_chunk = jax.jit(steps.add_chunk, static_argnums=0)


def test_update_is_the_papers_frameworks():
    """Weight decay joins the gradient, momentum accumulates, the rate comes last."""
    task, *_ = _setup()
    optimizer = task.optimizer()
    rng = np.random.default_rng(0)
    param, velocity = rng.standard_normal(6), np.zeros(6)
    ours = {"w": jnp.asarray(param, jnp.float32)}
    state = optimizer.init(ours)
    for rate in (0.1, 0.1, 0.01):
        gradient = rng.standard_normal(6)
        decayed = gradient + 5e-5 * param
        velocity = 0.9 * velocity + decayed
        param = param - rate * velocity
        direction, state = optimizer.update({"w": jnp.asarray(gradient, jnp.float32)}, state, ours)
        ours = jax.tree.map(lambda p, d, r=rate: p - r * d, ours, direction)
    np.testing.assert_allclose(ours["w"], param, rtol=1e-6)


def test_schedules_are_the_papers():
    pretrain = StageConfig()
    rates = [float(pretrain.learning_rate(epoch)) for epoch in (0, 49, 50, 89, 90, 119)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    assert pretrain.steps(21000) == 657
    finetune = dataclasses.replace(
        pretrain, epochs=50, sampler="episodes", learning_rates=((0.01, 30), (0.001, 20))
    )
    np.testing.assert_allclose(finetune.learning_rate(29), 0.01, rtol=1e-6)
    np.testing.assert_allclose(finetune.learning_rate(30), 0.001, rtol=1e-6)
    assert finetune.steps(21000) == 210
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
        ("sampler", "balanced"),
        ("ways", 1),
    ],
)
def test_impossible_stages_are_errors_that_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"{field}="):
        StageConfig(**{field: value})


def test_more_ways_than_classes_is_an_error():
    with pytest.raises(ValueError, match="ways=6"):
        tiny.make_task(DATA, "finetune", ways=6)


def test_prototype_pass_equals_class_means_of_all_embeddings():
    task, table, features, state = _setup(sub_prototypes=2, mpe_ratio=0.5)
    hyper = task.stage.hyper()
    draw = _draw(task, state.step, table, jax.random.key(1), hyper)
    sums = steps.empty_sums(task)
    for _ in range(task.chunks):
        clips, starts, batch = _chunk_rows(task, table, draw, sums.chunk, None)
        crops = steps.take_crops(features, clips, starts, task.crop)
        sums = _add_chunk(task, state, table, batch._replace(crops=crops), sums)
    found = steps.finish_prototypes(task, state, sums, None).prototypes

    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    crops = np.stack(
        [np.asarray(features)[i, s : s + task.crop] for i, s in enumerate(draw.pass_starts[:22])]
    )
    z = np.asarray(
        _embed(task, variables, steps.standardize(jnp.asarray(crops), table), train=False),
        np.float64,
    )
    assert found.shape == (tiny.CLASSES, 3, z.shape[1])
    for label in range(tiny.CLASSES):
        rows = np.flatnonzero(DATA.labels == label)
        for which in range(3):
            members = rows[np.asarray(draw.members)[which, rows] > 0]
            assert len(members) == (len(rows) if which == 0 else -(-len(rows) // 2))
            mean = z[members].mean(axis=0)
            np.testing.assert_allclose(found[label, which], mean / np.linalg.norm(mean), atol=1e-5)


def test_pretraining_loss_is_equation_3_of_this_batch():
    task, table, features, state = _setup()
    hyper = task.stage.hyper()
    draw = _draw(task, state.step, table, jax.random.key(1), hyper)
    prototypes = proto.l2_normalize(jax.random.normal(jax.random.key(2), state.prototypes.shape))
    state = state._replace(prototypes=prototypes)
    batch = _take(task, features, table, draw, state.step, None)
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    z = _embed(task, variables, steps.standardize(batch.crops, table), train=True)
    expected = multi_prototype_loss(z, prototypes, batch.labels, temperature=0.07).mean()
    after, loss = _step(task, state, table, batch, draw.key, hyper)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert int(after.step) == 1
    assert not tiny.same(after.params, state.params)
    assert tiny.same(after.prototypes, prototypes)  # fixed during an epoch


def test_finetuning_loss_is_equation_6_of_this_episode():
    task, table, features, state = _setup("finetune")
    hyper = task.stage.hyper()
    draw = _draw(task, state.step, table, jax.random.key(1), hyper)
    batch = _take(task, features, table, draw, state.step, None)
    labels = np.asarray(batch.labels).reshape(3, 3)
    assert (labels == labels[:, :1]).all()  # shots of a class are adjacent
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    z = _embed(task, variables, steps.standardize(batch.crops, table), train=True)
    prototypes = proto.l2_normalize(z.reshape(3, 3, -1).mean(axis=1))
    key = jax.random.fold_in(draw.key, 0)
    mix = proto.sample_mix(key, (9, 3), 0.25, 0.5)
    ways = jnp.repeat(jnp.arange(3), 3)
    expected = negative_prototype_loss_by_definition(
        z, prototypes, ways, mix, temperature=0.07
    ).mean()
    _, loss = _step(task, state, table, batch, draw.key, hyper)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def _gradient_size(**changes):
    task, table, features, state = _setup("finetune", **changes)
    draw = _draw(task, state.step, table, jax.random.key(1), task.stage.hyper())
    batch = _take(task, features, table, draw, state.step, None)
    after, loss = _step(task, state, table, batch, draw.key, task.stage.hyper())
    moved = jax.tree.map(lambda a, b: a - b, after.params, state.params)
    return float(loss), np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)])


def test_flags_of_in_batch_prototypes_do_what_they_say():
    loss, flows = _gradient_size()
    stopped_loss, stopped = _gradient_size(stop_gradient=True)
    assert loss == pytest.approx(stopped_loss, rel=1e-5)  # same value, another gradient
    assert np.abs(flows - stopped).max() > 1e-6
    apart, _ = _gradient_size(leave_one_out=True)
    assert apart > loss  # an anchor in its own prototype flatters itself
    plain, _ = _gradient_size(mix_range=None)
    assert plain < loss  # fewer negatives


def test_packing_is_undone_and_holds_small_parameters_in_one_vector():
    _, _, _, state = _setup()
    large = {"kernel": jnp.ones((9, 8, 32)), "bias": jnp.arange(32.0)}
    state = state._replace(params={**state.params, "more": large})
    packing = Packing.of(state.params)
    packed = packing.pack(state.params)
    assert [leaf.ndim for leaf in packed] == [1, 3]
    jax.tree.map(np.testing.assert_array_equal, packing.unpack(packed), state.params)
    state = state._replace(optimizer=tiny.make_task(DATA).optimizer().init(state.params))
    whole = packing.pack_state(state)
    assert len(jax.tree.leaves(whole.optimizer)) < len(jax.tree.leaves(state.optimizer))
    jax.tree.map(np.testing.assert_array_equal, packing.unpack_state(whole), state)


def test_packing_casts_large_kernels_of_the_encoder_alone():
    params = {
        "encoder": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(2048), "gate": jnp.ones((2, 2))},
        "loss": {"weights": jnp.ones((64, 32))},
    }
    packing = Packing.of(params)
    weights = packing.unpack(packing.weights(packing.pack(params), jnp.bfloat16))
    assert weights["encoder"]["kernel"].dtype == jnp.bfloat16
    others = weights["encoder"]["bias"], weights["encoder"]["gate"], weights["loss"]["weights"]
    assert all(leaf.dtype == jnp.float32 for leaf in others)


def test_what_is_not_float32_is_not_packed():
    tree = {"count": jnp.int32(3), "mean": jnp.ones(4)}
    packing = Packing.of(tree)
    assert [leaf.dtype for leaf in packing.pack(tree)] == [jnp.float32, jnp.int32]
    jax.tree.map(np.testing.assert_array_equal, packing.unpack(packing.pack(tree)), tree)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_training_lowers_the_loss(stage):
    task, table, features, state = _setup(stage, epochs=6)
    epoch = jax.jit(lambda s: run_epoch(task, s, features, table, jax.random.key(3), hyper))
    hyper = task.stage.hyper()
    means = []
    for _ in range(6):
        state, losses = epoch(state)
        means.append(float(losses.mean()))
    assert np.mean(means[-2:]) < 0.95 * means[0]
