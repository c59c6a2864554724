"""One computation in many shapes: loops, devices, host features, sweeps, resumed runs."""

import collections
import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto.training import loop as loops
from asdproto.training.checkpoint import CheckpointError, Checkpoints
from asdproto.training.devices import Devices, RunOptions, use_devices
from asdproto.training.host import fits_on
from asdproto.training.loop import DivergedError, Programs, train
from asdproto.training.state import clip_index
from tests.training import tiny

DATA = tiny.make_data()
KEY = jax.random.key(11)
STAGES = ("pretrain", "finetune")


def _train(stage, workdir=None, devices=None, changes=None, **options):
    devices = devices or use_devices(1)
    task = tiny.make_task(DATA, stage, devices, **(changes or {}))
    state = task.init(jax.random.key(0), tiny.MELS)
    return tiny.train(task, DATA, RunOptions(workdir, devices, **options), state, KEY)


def _losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture
def keep_all(monkeypatch):
    """Every checkpoint stays, not the two latest."""
    monkeypatch.setattr(loops, "Checkpoints", functools.partial(Checkpoints, keep=1000))


def _steps(workdir):
    return [int(path.name) for path in (workdir / "checkpoints/tiny").glob("[0-9]*")]


def _close(left, right, tolerance):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


@pytest.fixture(scope="module", params=STAGES)
def reference(request, tmp_path_factory):
    """A run on one device, step by step: what every other shape must reproduce."""
    stage, workdir = request.param, tmp_path_factory.mktemp("reference")
    state = _train(stage, workdir, loop="dispatch")
    return stage, state, _losses(workdir)


# Float32 sums in another order differ by 1e-7 of their size; 9 to 12 steps of training, with batch
# normalization over 9 examples, make 1e-4 of parameters and 1e-3 of losses out of it.
def _check(reference, state, workdir):
    _, expected, losses = reference
    np.testing.assert_allclose(_losses(workdir), losses, rtol=1e-3)
    _close(state.params, expected.params, 1e-3)
    assert int(state.step) == int(expected.step)


@pytest.mark.parametrize(("loop", "count", "resident"), [("scan", 1, True), ("dispatch", 4, False)])
def test_loops_devices_and_crops_of_the_host_make_no_difference(
    reference, loop, count, resident, tmp_path
):
    """Nine anchors over four devices: the last holds padding."""
    state = _train(reference[0], tmp_path, use_devices(count), loop=loop, resident=resident)
    _check(reference, state, tmp_path)


def test_crops_of_the_host_give_the_same_bits(reference):
    """The very same programs on the very same crops; also: the same seed, the same bits."""
    state = _train(reference[0], loop="dispatch", resident=False)
    assert tiny.same(state.params, reference[1].params)


def test_a_run_stopped_anywhere_resumes_bit_for_bit(reference, tmp_path, monkeypatch):
    """Stopped in the middle of an epoch. A sweep of several runs takes the same way."""
    stage, expected, losses = reference
    how = {"save_seconds": 0, "loop": "dispatch"}

    class Killed(Exception):
        pass

    look, stop_at = loops._Keeper.look, 5

    def look_then_die(keeper, state, step, *args, **kwargs):
        look(keeper, state, step, *args, **kwargs)
        keeper.checkpoints.wait()
        if step == stop_at:
            raise Killed

    monkeypatch.setattr(loops._Keeper, "look", look_then_die)
    with pytest.raises(Killed):
        _train(stage, tmp_path, **how)
    monkeypatch.setattr(loops._Keeper, "look", look)
    assert max(_steps(tmp_path)) == stop_at
    assert tiny.same(_train(stage, tmp_path, **how), expected)
    np.testing.assert_array_equal(_losses(tmp_path), losses)

    # A finished run trains no more.
    monkeypatch.setattr(loops, "Programs", None)
    assert tiny.same(_train(stage, tmp_path, **how), expected)
    np.testing.assert_array_equal(_losses(tmp_path), losses)


@pytest.mark.usefixtures("keep_all")
def test_a_checkpoint_of_one_device_is_resumed_on_four(reference, tmp_path):
    """From the middle of the first epoch, as one program an epoch."""
    stage = reference[0]
    step = tiny.make_task(DATA, stage).steps_per_epoch - 1
    _train(stage, tmp_path, save_seconds=0, loop="dispatch")
    for later in _steps(tmp_path):
        if later > step:
            shutil.rmtree(tmp_path / "checkpoints/tiny" / str(later))
    assert max(_steps(tmp_path)) == step
    state = _train(stage, tmp_path, use_devices(4), loop="scan")
    _check(reference, state, tmp_path)


def test_checkpoints_of_another_run_are_refused(tmp_path):
    """Of other settings, of another seed, of other clips; whatever folder they were copied to."""
    options = RunOptions(tmp_path, use_devices(1))

    def trained(data=DATA, key=KEY, seeds=(0,), **changes):
        task = tiny.make_task(data, **changes)
        state = task.init(jax.random.key(0), tiny.MELS)
        tiny.train(task, data, options, state, key, settings={"seeds": list(seeds)})

    def refused(**changes):
        with pytest.raises(CheckpointError) as caught:
            trained(**changes)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    trained()

    assert "(stage.sub_prototypes is 1 there, 3 here)" in refused(sub_prototypes=3)
    assert "(seeds is [0] there, [1] here)" in refused(seeds=[1])
    assert "(random key is [[0, 11]] there, [[0, 12]] here)" in refused(key=jax.random.key(12))
    other = dataclasses.replace(DATA, train=tiny.make_data(1).train)
    other = dataclasses.replace(
        other, train=dataclasses.replace(other.train, frames=DATA.train.frames)
    )
    text = refused(data=other)
    assert f"{tmp_path}/checkpoints/tiny: found a checkpoint of step 9 that another run" in text
    assert "training clips" in text
    with pytest.raises(CheckpointError, match="found no checkpoint"):
        Checkpoints(tmp_path / "empty").restore({})


@pytest.mark.parametrize(
    ("stage", "loop", "count"), [("pretrain", "dispatch", 4), ("finetune", "scan", 1)]
)
def test_nothing_crosses_to_the_host_inside_an_epoch_and_all_compiles_once(
    stage, loop, count, monkeypatch
):
    traced: collections.Counter = collections.Counter()

    def counting(name):
        function = getattr(loops, name)

        def counted(*args, **keywords):
            traced[name] += 1
            return function(*args, **keywords)

        monkeypatch.setattr(loops, name, counted)

    for name in ("plan_epoch", "add_chunk", "finish_prototypes", "train_step", "run_epoch"):
        counting(name)
    devices = use_devices(count)
    task = tiny.make_task(DATA, stage, devices)
    programs = Programs(task, devices)
    inputs = devices.replicate((clip_index(DATA, resident=True), KEY, task.stage.hyper()))
    state = devices.replicate(task.init(jax.random.key(0), tiny.MELS))

    def epoch(state):
        walk = programs.train_epoch(state, *inputs, loop=loop)
        return collections.deque(walk, maxlen=1).pop()[0]

    state = epoch(state)
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state = epoch(state)
    assert int(devices.to_host(state.step)) == 3 * task.steps_per_epoch
    assert set(traced.values()) == {1}
    assert len(traced) == (1 if loop == "scan" else 4)


def test_a_sweep_equals_its_single_runs(reference, tmp_path):
    """Three runs over two devices: other temperatures, schedules and draws, another seed."""
    stage = reference[0]
    task = tiny.make_task(DATA, stage)
    base = task.stage.hyper()
    options = {"mpe_ratio": 0.6} if stage == "pretrain" else {"mix_range": (0.75, 1.0)}
    rates = tuple((rate / 2, epochs) for rate, epochs in task.stage.learning_rates)
    other = _train(stage, changes={"temperature": 0.2, "learning_rates": rates, **options})
    draws = {"mpe_ratio": 0.6} if stage == "pretrain" else {"mix_low": 0.75, "mix_high": 1.0}
    changed = {"temperature": 0.2, "learning_rate_scale": 0.5, **draws}
    hypers = [base, base._replace(**{k: jnp.float32(v) for k, v in changed.items()}), base]
    keys = [KEY, KEY, jax.random.key(12)]
    states = [task.init(jax.random.key(seed), tiny.MELS) for seed in (0, 0, 1)]
    found = train(
        task, DATA, RunOptions(tmp_path, use_devices(2)), states, keys, hypers, name=stage
    )
    assert len(found) == 3
    _close(found[0].params, reference[1].params, 1e-3)
    _close(found[1].params, other.params, 1e-3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([line["losses"][0] for line in lines], reference[2], rtol=1e-3)
    assert not tiny.same(found[2].params, found[0].params)


def test_a_loss_that_is_no_number_stops_and_keeps_what_was_good(tmp_path):
    # The first epoch is sound, then parameters grow to infinity.
    changes = {"learning_rates": ((1e-4, 1), (1000.0, 2)), "weight_decay": 1000.0}
    with pytest.raises(DivergedError, match="tiny: the loss became nan in epoch"):
        _train("pretrain", tmp_path, changes=changes, save_seconds=0)
    checkpoints = Checkpoints(tmp_path / "checkpoints/tiny")
    like = tiny.make_task(DATA).init(jax.random.key(0), tiny.MELS)
    state = checkpoints.restore(jax.tree.map(lambda x: x[None], like))  # one run
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    checkpoints.close()


def test_devices_are_counted_and_memory_is_asked_for():
    assert use_devices(3).count == 3
    with pytest.raises(ValueError, match="devices=9"):
        use_devices(9)
    assert fits_on(use_devices(1), 10**15)  # a CPU does not tell

    class Small:
        def memory_stats(self):
            return {"bytes_limit": 1000}

    small = Devices((Small(),), 1, 0)
    assert fits_on(small, 600)
    assert not fits_on(small, 601)
