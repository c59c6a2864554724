"""The real step equals a textbook's in loss, update and statistics, for both stages, every flag."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto import prototypes as proto
from asdproto.models.resnet import ResNet
from asdproto.training.devices import AXIS, use_devices
from asdproto.training.state import clip_index
from asdproto.training.step import plan_epoch, take_batch, train_step
from tests.training import reference, tiny

DATA = tiny.make_data()
KEY = jax.random.key(7)
# Float32 sums in another order: 1e-6 of unit embeddings, divided by a temperature of 0.2.
LOSS, UPDATE = {"rtol": 2e-5}, {"atol": 2e-6, "rtol": 2e-4}
# Of two steps the first is the last of its epoch, and the rate changes after it.
FIRST, RATES = 1, ((0.5, 1), (0.05, 2))


def make_pair(stage, network, devices=1, **changes):
    """A task, and the reference of its network."""
    changes = {"temperature": 0.2, "learning_rates": RATES, "steps_per_epoch": 2, **changes}
    task = tiny.make_task(DATA, stage, **changes)
    axis_name = AXIS if devices > 1 else None
    model, plain = tiny.Encoder(axis_name=axis_name), reference.TinyEncoder()
    if network == "resnet":
        shape = {"width": 4, "stages": (1, 1)}
        model, plain = ResNet(**shape, axis_name=axis_name), reference.ResNet(**shape)
    fields = {"model": model, "num_devices": devices}
    return type(task)(**{**vars(task), **fields}), plain


def batch_of(plan, turn, size):
    """Standardized crops and labels of a batch without padding, in NumPy."""
    features, clips = DATA.train.load().astype(np.float32), np.asarray(plan.clips)[turn, :size]
    starts = np.asarray(plan.starts)[turn, :size]
    crops = np.stack(
        [features[clip, s : s + tiny.CROP] for clip, s in zip(clips, starts, strict=True)]
    )
    return ((crops - DATA.mean) / DATA.std).astype(np.float32), DATA.labels[clips]


def close(found, expected, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def check(stage, network="tiny", devices=1, **changes):
    """Takes two steps, the real one and the reference's, and compares everything that they give."""
    task, plain = make_pair(stage, network, devices, **changes)
    config, hyper = task.stage, task.stage.hyper()
    state = task.init(jax.random.key(0), tiny.MELS)._replace(step=jnp.int32(FIRST))
    if state.prototypes is not None:
        noise = jax.random.normal(jax.random.key(1), state.prototypes.shape)
        state = state._replace(prototypes=proto.l2_normalize(noise))
    index = jax.device_put(clip_index(DATA, resident=True))
    plan = jax.jit(plan_epoch, static_argnums=0)(task, state.step, index, KEY, hyper)

    def take_step(state, turn, *, axis_name):
        batch = take_batch(task, index, plan.steps, turn, axis_name)
        return train_step(task, state, batch, plan.key, hyper, axis_name)

    take_step = use_devices(devices).compile(take_step, in_axes=(None, None))

    params, stats = state.params["encoder"], state.batch_stats
    velocity = jax.tree.map(jnp.zeros_like, params)
    pretrain = stage == "pretrain"
    loss_fn = (
        reference.expanded_loss if pretrain else functools.partial(reference.negative_loss, config)
    )
    step = jax.jit(functools.partial(reference.step, plain, loss_fn))
    for turn, rate in enumerate((0.5, 0.05)):
        state, loss = take_step(state, jnp.int32(turn))
        crops, labels = batch_of(plan.steps, turn, config.batch)
        targets: tuple = (labels, state.prototypes, 0.2)
        if not pretrain:
            step_key, bounds = (
                jax.random.fold_in(plan.key, FIRST + turn),
                config.mix_range or (0, 0),
            )
            targets = (proto.sample_mix(step_key, (task.global_batch_size, config.ways), *bounds),)
        expected, params, stats, velocity = step(params, stats, velocity, rate, crops, *targets)
        np.testing.assert_allclose(loss, expected, **LOSS)
        close(state.params["encoder"], params, UPDATE)
        close(state.batch_stats, stats, UPDATE)
        close(state.optimizer[1].trace["encoder"], velocity, UPDATE)
        assert int(state.step) == FIRST + turn + 1
    return task


@pytest.mark.parametrize("network", ["tiny", "resnet"])
def test_pretraining_step(network):
    """Of a plain encoder, and of the paper's."""
    check("pretrain", network, sub_prototypes=2)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"mix_range": None},
        {"leave_one_out": True, "stop_gradient": True, "normalize_mixed": True},
    ],
    ids=lambda flags: "-".join(flags) or "plain",
)
def test_finetuning_step(flags):
    check("finetune", **flags)


@pytest.mark.parametrize(
    ("stage", "flags"),
    [("pretrain", {"batch_size": 9}), ("finetune", {"leave_one_out": True})],
)
def test_padding_leaves_no_trace(stage, flags):
    """Nine examples over four devices: the last device holds padding alone."""
    task = check(stage, devices=4, **flags)
    assert task.global_batch_size == 12
