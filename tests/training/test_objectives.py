"""Every loss of the library trains: it parts classes, alone and over devices, and says what it
cannot do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto import losses
from asdproto.prototypes import l2_normalize
from asdproto.training.devices import RunOptions, use_devices
from asdproto.training.objectives import OBJECTIVES, make_objective, npe_objective
from asdproto.training.stage import (
    EpisodePrototypes,
    Episodes,
    EpochPrototypes,
    Finetuning,
    Pretraining,
    RandomBatches,
    Stage,
)
from asdproto.training.state import Batch, TrainState
from tests.losses.devices import check_devices_equal_one
from tests.training import tiny

DATA = tiny.make_data()


@dataclasses.dataclass(frozen=True)
class LossStage(Episodes, EpochPrototypes, EpisodePrototypes, Stage):
    """Episodes, and what any of the losses reads."""


@dataclasses.dataclass(frozen=True)
class RandomFinetuning(RandomBatches, EpisodePrototypes, Stage):
    """Random batches against their own prototypes."""


STAGE = LossStage(ways=4, shots=4, steps_per_epoch=4, epochs=6, learning_rates=((0.05, 6),))


def _task(name, **changes):
    stage = dataclasses.replace(STAGE, **changes)
    task = tiny.make_task(DATA, "finetune")
    return dataclasses.replace(task, stage=stage, objective=make_objective(name, stage))


@jax.jit
def _embed(variables, crops):
    return tiny.Encoder().apply(variables, crops, train=False)


def _gap(state):
    """Mean cosine to the own class's mean, less that to the others'."""
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    crops = DATA.train.load()[:, : tiny.CROP].astype(np.float32)
    crops = (crops - DATA.mean) / DATA.std
    embeddings = np.asarray(_embed(variables, crops))
    means = np.stack([embeddings[DATA.labels == c].mean(axis=0) for c in range(tiny.CLASSES)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = embeddings @ means.T
    own = DATA.labels[:, None] == np.arange(tiny.CLASSES)
    return cosines[own].mean() - cosines[~own].mean()


@pytest.mark.filterwarnings("ignore::asdproto.training.loop.CollapseWarning")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_parts_the_classes(name):
    task = _task(name)
    before = task.init(jax.random.key(0), tiny.MELS)
    # All but the step is compiled once for all losses.
    options = RunOptions(None, use_devices(1), loop="dispatch")
    after = tiny.train(task, DATA, options, before, jax.random.key(5))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    assert _gap(after) > _gap(before) + 0.1
    # What the loss itself learns or carries has moved.
    for part in ("prototypes", "centers"):
        if part in after.params["loss"]:
            start, end = before.params["loss"][part], after.params["loss"][part]
            assert np.abs(np.asarray(start) - np.asarray(end)).max() > 1e-3
    if before.loss_state:
        assert not tiny.same(before.loss_state, after.loss_state)


# One of each way to look over devices.
KINDS = (
    "sub_cluster_adacos",
    "logit_adjusted",
    "proxy_anchor",
    "supervised_contrastive",
    "vicreg",
    "n_pair",
    "angular_prototypical",
    "mpe_npe",
)


@pytest.mark.parametrize("name", KINDS)
def test_three_devices_equal_one(name):
    """16 examples, six a device, two of them padding."""
    task = _task(name)
    objective, hyper = task.objective, task.stage.hyper()
    params, carried = {}, {}
    if objective.init:
        params, carried = objective.init(jax.random.key(0), tiny.CLASSES, 8)
    params = {"loss": params, "weights": jnp.linspace(0.8, 1.2, 8)}
    z, prototypes = (
        l2_normalize(jax.random.normal(jax.random.key(seed), shape))
        for seed, shape in ((1, (18, 8)), (2, (tiny.CLASSES, task.prototypes_per_class, 8)))
    )
    state = TrainState(0, {}, {}, (), carried, prototypes, 0.0)

    def loss(params, rows, *, where, axis_name):
        z, clips, labels = rows
        embeddings = l2_normalize(z * params["weights"])
        more = {"hyper": hyper, "num_classes": tiny.CLASSES, "axis_name": axis_name}
        batch = Batch(clips, None, labels, where)
        return objective.loss(
            params["loss"], state, embeddings, batch, key=jax.random.key(3), **more
        )

    rows = z, jnp.arange(18), jnp.array([0, 2, 3, 4, 0]).repeat(4)[:18]
    check_devices_equal_one(loss, params, rows, jnp.arange(18) < 16, devices=3)


@pytest.mark.parametrize(
    ("name", "function", "options"),
    [
        ("softmax", losses.proxy_softmax_loss, {"temperature": 0.2}),
        ("proxy_nca", losses.proxy_nca_loss, {"temperature": 0.4}),
        ("arcface", losses.arcface_loss, {"scale": 5.0}),
    ],
)
def test_the_temperature_is_a_scale_or_twice_it_where_a_loss_wants_that(name, function, options):
    task = _task(name, temperature=0.2)
    params, carried = task.objective.init(jax.random.key(0), 4, 8)
    z, labels = l2_normalize(jax.random.normal(jax.random.key(1), (16, 8))), np.arange(16) % 4
    state = TrainState(0, {}, {}, (), carried, None, 0.0)
    batch, hyper = Batch(np.arange(16), None, labels), task.stage.hyper()
    found, _ = task.objective.loss(params, state, z, batch, hyper=hyper)
    expected = function(z, l2_normalize(params["prototypes"]), labels, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_expanded_losses_differ_from_their_parts():
    """At equal embeddings, more prototypes and more negatives make more of a loss."""
    z = l2_normalize(jax.random.normal(jax.random.key(0), (16, 8)))
    labels = np.repeat(np.arange(4), 4)
    prototypes = l2_normalize(jax.random.normal(jax.random.key(1), (tiny.CLASSES, 2, 8)))

    def total(name):
        task = _task(name)
        per_class = task.prototypes_per_class
        state = TrainState(0, {}, {}, (), {}, prototypes[:, :per_class], 0.0)
        keywords = {"hyper": task.stage.hyper(), "num_classes": 4, "axis_name": None}
        batch = Batch(np.arange(16), None, labels)
        values, _ = task.objective.loss({}, state, z, batch, key=jax.random.key(2), **keywords)
        return float(values.sum())

    assert total("prototypical") < total("multi_prototype") < total("mpe_npe")


def test_refusals_say_what_to_set():
    with pytest.raises(ValueError, match=r"no loss 'arc_face'.*arcface"):
        make_objective("arc_face", Pretraining())
    with pytest.raises(ValueError, match=r"reads ways, shots, .* inheriting Episodes"):
        make_objective("vicreg", Pretraining())
    with pytest.raises(ValueError, match=r"shots=3.*even"):
        make_objective("vicreg", Finetuning(shots=3))
    for name in ("negative_prototype", "negative_prototype_unit", "mpe_npe"):
        with pytest.raises(ValueError, match="mix_range=None"):
            make_objective(name, dataclasses.replace(STAGE, mix_range=None))
    # 10 examples on 2 devices are 5 each: pairs would be torn apart.
    with pytest.raises(ValueError, match="pairs, found 5"):
        make_objective("vicreg", STAGE).loss({}, None, np.ones((5, 8)), None, axis_name=None)


def test_random_batches_leave_out_lone_anchors_and_absent_classes():
    """Class 2 has one example in the batch, classes 3 and 4 have none."""
    stage = RandomFinetuning(leave_one_out=True, temperature=0.3, mix_range=None)
    z = np.asarray(l2_normalize(jax.random.normal(jax.random.key(0), (5, 6))), np.float64)
    labels = np.array([0, 1, 0, 2, 1])
    batch = Batch(np.arange(5), None, labels)
    state = tiny.make_task(DATA).init(jax.random.key(0), tiny.MELS)
    keywords = {"key": jax.random.key(1), "hyper": stage.hyper(), "axis_name": None}
    found, _ = npe_objective(stage).loss(
        {}, state, z.astype(np.float32), batch, num_classes=5, **keywords
    )
    assert found[3] == 0
    for i in (0, 1, 2, 4):
        means = [
            np.mean([z[j] for j in range(5) if labels[j] == label and j != i], axis=0)
            for label in range(3)
        ]
        logits = [mean @ z[i] / np.linalg.norm(mean) / 0.3 for mean in means]
        expected = np.log(np.sum(np.exp(logits))) - logits[labels[i]]
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)
