"""The autoencoder system against a NumPy forward pass, and its bookkeeping."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from asdproto.data.dataset import prepare
from asdproto.data.dcase import Clip
from asdproto.data.store import write_store
from asdproto.models.autoencoder import AutoEncoder
from asdproto.systems import reconstruction
from asdproto.systems.autoencoder import PRESETS, AutoEncoderSystem
from asdproto.systems.reconstruction import fit_machines, score_clips
from asdproto.systems.system import RunOptions
from asdproto.training.devices import use_devices

MELS, CONTEXT = 8, 5
CONFIG = AutoEncoderSystem(epochs=3, batch=64, held_out=0.0, standardize=True)


def clips(count, seed, longest=40, odd=False):
    """Log-mel in dB of two alternating spectra with a beat; odd clips have a band too many."""
    rng = np.random.default_rng(seed)
    bands = 4 * np.sin(np.arange(MELS)[None] * np.array([[0.7], [1.9]]))
    time = np.arange(longest)[:, None]
    found = np.empty((count, longest, MELS))
    for index in range(count):
        beat = 3 * np.sin(time / 3 + rng.uniform(0, 6)) * np.linspace(1, 0.2, MELS)
        found[index] = -30 + bands[index % 2] + beat + rng.normal(0, 0.5, (longest, MELS))
        if odd:
            found[index, :, 5] += 6 * np.sin(np.arange(longest) * 2.1)
    frames = rng.integers(longest - 10, longest + 1, count).astype(np.int32)
    for index, length in enumerate(frames):
        found[index, length:] = np.nan  # padding must never be read into a result
    return found.astype(np.float32), frames


TRAIN, TRAIN_FRAMES = clips(12, 0)
TEST, TEST_FRAMES = clips(6, 1, longest=36)


@dataclasses.dataclass
class Found:
    network: reconstruction.Network
    train_scores: np.ndarray
    test_scores: np.ndarray


def run(config=CONFIG, seed=0, train=TRAIN, test=TEST, test_frames=TEST_FRAMES):
    network = fit_machines({"": (train, TRAIN_FRAMES)}, config=config, seed=seed)[""]
    scores = [
        score_clips(network, config, *data) for data in ((train, TRAIN_FRAMES), (test, test_frames))
    ]
    return Found(network, *scores)


@pytest.fixture(scope="module")
def result():
    return run()


# --- an independent forward pass


def forward(variables, x, batch_statistics=False):
    """Reconstruction in float64, and the mean and variance that each layer normalized by."""
    params, running = variables["params"], variables["batch_stats"]
    used = []
    for layer in range(1, 10):
        dense, norm = params[f"dense{layer}"], params[f"norm{layer}"]
        x = x @ np.float64(dense["kernel"]) + np.float64(dense["bias"])
        mean, var = running[f"norm{layer}"]["mean"], running[f"norm{layer}"]["var"]
        if batch_statistics:
            mean, var = x.mean(axis=0), x.var(axis=0)
        used.append((mean, var))
        x = (x - mean) / np.sqrt(np.float64(var) + 1e-3) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0)
    last = params["dense10"]
    return x @ np.float64(last["kernel"]) + np.float64(last["bias"]), used


def stacks_of(clip, frames):
    return np.stack([clip[t : t + CONTEXT].ravel() for t in range(frames - CONTEXT + 1)])


def moments(train, frames):
    rows = np.concatenate([c[:n] for c, n in zip(train, frames, strict=True)]).astype(np.float64)
    return rows.mean(axis=0), rows.std(axis=0)


def oracle_scores(variables, features, frames, mean, deviation):
    scores = []
    for clip, length in zip(features, frames, strict=True):
        x = stacks_of((np.float64(clip) - mean) / deviation, length)
        wrong = (forward(variables, x)[0] - x) * np.tile(deviation, CONTEXT)
        scores.append(np.mean(wrong**2))
    return np.array(scores)


@pytest.mark.parametrize("standardize", [True, False])
def test_scores_are_the_mean_squared_errors_of_a_numpy_forward_pass(standardize):
    config = dataclasses.replace(CONFIG, standardize=standardize)
    found = run(config)
    mean, deviation = moments(TRAIN, TRAIN_FRAMES) if standardize else (0.0, np.ones(MELS))
    # float32 against float64 through ten layers.
    for scores, data in (
        (found.train_scores, (TRAIN, TRAIN_FRAMES)),
        (found.test_scores, (TEST, TEST_FRAMES)),
    ):
        assert scores.dtype == np.float64
        np.testing.assert_allclose(
            scores, oracle_scores(found.network.variables, *data, mean, deviation), rtol=2e-4
        )


def test_the_network_is_the_baselines():
    init = functools.partial(AutoEncoder().init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 640)))
    shapes = {name: leaf["kernel"].shape for name, leaf in variables["params"].items()
              if name.startswith("dense")}  # fmt: skip
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    assert shapes == {f"dense{i}": (widths[i - 1], widths[i]) for i in range(1, 11)}


def test_one_step_is_adam_on_the_gradient_of_the_batch():
    # As many stacks as the batch: the only step sees all of them, in an order that cannot matter.
    total = int(np.sum(TRAIN_FRAMES - CONTEXT + 1))
    config = dataclasses.replace(CONFIG, epochs=1, batch=total)
    model = AutoEncoder()
    root = jax.random.fold_in(jax.random.key(3), 0)  # crc32 of the empty name is 0
    start = model.init(jax.random.fold_in(root, 0), np.zeros((1, MELS * CONTEXT)), train=False)
    start = jax.tree.map(np.asarray, start)
    found = run(config, seed=3)

    mean, deviation = moments(TRAIN, TRAIN_FRAMES)
    x = np.concatenate(
        [
            stacks_of((np.float64(c) - mean) / deviation, n)
            for c, n in zip(TRAIN, TRAIN_FRAMES, strict=True)
        ]
    )
    out, used = forward(start, x, batch_statistics=True)
    np.testing.assert_allclose(found.network.losses, [np.mean((out - x) ** 2)], rtol=1e-4)
    for layer, (batch_mean, batch_var) in enumerate(used, start=1):
        running = found.network.variables["batch_stats"][f"norm{layer}"]
        np.testing.assert_allclose(running["mean"], 0.01 * batch_mean, atol=1e-5)
        np.testing.assert_allclose(running["var"], 0.99 + 0.01 * batch_var, atol=1e-5)

    def loss(layer, row, column, change):
        moved = jax.tree.map(np.float64, start)
        moved["params"][layer]["kernel"][row, column] += change
        return np.mean((forward(moved, x, batch_statistics=True)[0] - x) ** 2)

    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(12):
        layer = f"dense{rng.choice([1, 5, 6, 10])}"
        kernel = start["params"][layer]["kernel"]
        row, column = rng.integers(kernel.shape[0]), rng.integers(kernel.shape[1])
        slope = (loss(layer, row, column, 1e-5) - loss(layer, row, column, -1e-5)) / 2e-5
        step = found.network.variables["params"][layer]["kernel"][row, column] - kernel[row, column]
        if abs(slope) > 1e-4:  # Adam's first step is the learning rate against the sign
            checked += 1
            np.testing.assert_allclose(step, -1e-3 * np.sign(slope), rtol=0.01)
    assert checked >= 6


# --- learning


def test_it_learns_and_finds_the_odd_clips():
    odd, odd_frames = clips(6, 2, longest=36, odd=True)
    test, frames = np.concatenate([TEST, odd]), np.concatenate([TEST_FRAMES, odd_frames])
    config = dataclasses.replace(CONFIG, epochs=40)
    found = run(config, test=test, test_frames=frames)
    assert found.network.losses[-1] < 0.3 * found.network.losses[0]
    assert found.test_scores[6:].min() > found.test_scores[:6].max()


def test_the_same_seed_gives_the_same_bits_and_another_does_not(result):
    again = run()
    np.testing.assert_array_equal(again.test_scores, result.test_scores)
    np.testing.assert_array_equal(again.network.losses, result.network.losses)
    assert np.all(run(seed=1).test_scores != result.test_scores)


def test_standardized_features_may_be_shifted(result):
    # A gain in dB moves every band alike; the network sees the same but for rounding.
    moved = run(train=TRAIN + np.float32(10), test=TEST + np.float32(10))
    np.testing.assert_allclose(moved.test_scores, result.test_scores, rtol=1e-2)


def test_half_precision_features_are_taken(result):
    found = run(train=TRAIN.astype(np.float16), test=TEST.astype(np.float16))
    np.testing.assert_allclose(found.test_scores, result.test_scores, rtol=2e-2)


def test_held_out_clips_do_not_train():
    config = dataclasses.replace(CONFIG, held_out=0.25)
    found = run(config)
    other = TRAIN.copy()
    other[9:] = 0.0
    changed = run(config, train=other)
    np.testing.assert_array_equal(found.network.losses, changed.network.losses)
    assert np.all(found.network.held_out_losses != changed.network.held_out_losses)
    assert len(found.train_scores) == 12

    mean, deviation = moments(TRAIN[:9], TRAIN_FRAMES[:9])
    x = np.concatenate(
        [
            stacks_of((np.float64(c) - mean) / deviation, n)
            for c, n in zip(TRAIN[9:], TRAIN_FRAMES[9:], strict=True)
        ]
    )
    expected = np.mean((forward(found.network.variables, x)[0] - x) ** 2)
    np.testing.assert_allclose(found.network.held_out_losses[-1], expected, rtol=1e-4)
    assert len(run().network.held_out_losses) == 0


# --- many machine types


def test_machine_types_side_by_side_equal_machine_types_alone():
    other, other_frames = clips(12, 5)
    fewer, fewer_frames = clips(7, 6)
    machines = {
        "fan": (TRAIN, TRAIN_FRAMES),
        "valve": (fewer, fewer_frames),
        "slider": (other, TRAIN_FRAMES),
    }
    del other_frames  # stacks must be as many as the fan's for the two to run as one program
    other[np.arange(40) >= TRAIN_FRAMES[:, None]] = 0
    other[np.isnan(other)] = -30
    together = fit_machines(machines, config=CONFIG, seed=0)
    assert list(together) == ["fan", "valve", "slider"]
    for name, data in machines.items():
        alone = fit_machines({name: data}, config=CONFIG, seed=0)[name]
        # A batched product sums in another order than several products, and training lets such
        # differences grow: 1e-7 in the first epoch, here 6e-4 in the third.
        np.testing.assert_allclose(together[name].losses[0], alone.losses[0], rtol=1e-5)
        np.testing.assert_allclose(together[name].losses, alone.losses, rtol=5e-3)
        scores = [score_clips(one, CONFIG, TEST, TEST_FRAMES) for one in (together[name], alone)]
        np.testing.assert_allclose(*scores, rtol=1e-2)


def test_a_clip_scores_alike_in_any_company(result, monkeypatch):
    network = result.network
    for clip, frames in enumerate(TEST_FRAMES):
        alone = score_clips(network, CONFIG, TEST[clip : clip + 1, :frames], frames[None])
        assert alone[0] == result.test_scores[clip]


def test_an_epoch_is_compiled_once():
    config = dataclasses.replace(CONFIG, epochs=4, batch=50)
    before = reconstruction._run_epoch._cache_size()
    run(config)
    assert reconstruction._run_epoch._cache_size() == before + 1


# --- errors


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((TRAIN, TRAIN_FRAMES[:3]), r"fan: features .*\(12, 40, 8\).*\(3,\)"),
        ((TRAIN[0], TRAIN_FRAMES), "expected .clips, frames, mels."),
        ((TEST, np.array([36, 36, 36, 4, 36, 36])), "fan: clip 3 has 4 frames"),
        ((TEST, np.array([36, 36, 36, 30, 36, 37])), "fan: clip 5 has 37 frames"),
        ((TRAIN[:0], TRAIN_FRAMES[:0]), "no training clip is left of 0"),
    ],
)
def test_arrays_that_do_not_fit_are_named(data, words):
    with pytest.raises(ValueError, match=words):
        fit_machines({"fan": data}, config=CONFIG, seed=0)


def test_other_mel_bands_than_in_training_are_named(result):
    with pytest.raises(ValueError, match="found 4 mel bands; expected 8"):
        score_clips(result.network, CONFIG, TEST[..., :4], TEST_FRAMES)


def test_nan_features_stop_the_run_at_once():
    broken = TRAIN.copy()
    broken[2, 3] = np.nan
    with pytest.raises(FloatingPointError, match=r"epoch 1 .* nan and inf"):
        run(dataclasses.replace(CONFIG, standardize=False), train=broken)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch", 0),
        ("context", 0),
        ("held_out", 1.0),
        ("learning_rate", 0.0),
        ("folds", 1),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(PRESETS["quick"], **{name: value})


# --- as a system


def test_an_interrupted_training_continues_with_the_same_bits(tmp_path, monkeypatch, result):
    options = RunOptions(tmp_path, use_devices(1), save_seconds=0.0)

    def interrupt(self, done, figures):
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reconstruction.Meter, "epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit_machines({"": (TRAIN, TRAIN_FRAMES)}, config=CONFIG, seed=0, options=options)
    epochs = []
    monkeypatch.setattr(reconstruction.Meter, "epoch", lambda self, done, _: epochs.append(done))
    data = {"": (TRAIN, TRAIN_FRAMES)}
    found = fit_machines(data, config=CONFIG, seed=0, options=options)[""]
    assert epochs == [2, 3]  # the second was interrupted before it was saved
    np.testing.assert_array_equal(found.losses, result.network.losses)
    jax.tree.map(np.testing.assert_array_equal, found.variables, dict(result.network.variables))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve normal clips of two machine types, and an odd one."""
    odd, odd_frames = clips(1, 2, longest=36, odd=True)
    features = [*(c[:n] for c, n in zip(TRAIN, TRAIN_FRAMES, strict=True)), odd[0, : odd_frames[0]]]
    listed = [Clip(f"{i}.wav", "fan", "00", "", "train", "normal", "") for i in range(12)]
    listed[6:] = [dataclasses.replace(clip, machine_type="pump") for clip in listed[6:]]
    listed.append(Clip("odd.wav", "fan", "00", "", "test", "anomaly", ""))
    folder = tmp_path_factory.mktemp("store") / "features"
    return prepare(write_store(folder, features, listed, settings={"n_mels": MELS}), 5)


def test_held_out_scores_come_from_networks_that_did_not_hear_the_clip(data, tmp_path):
    options = RunOptions(tmp_path, use_devices(1))
    system = dataclasses.replace(PRESETS["quick"], batch=64, epochs=20)
    heard = system.train(data, options, [0])["autoencoder"][0]
    folded = dataclasses.replace(system, folds=3).train(data, RunOptions(None, use_devices(1)), [0])
    new = folded["autoencoder"][0]
    assert np.mean(new.held_out) > np.mean(heard.held_out)
    # The network that scores is the same, and its own errors are what it had without folds.
    sections = [(clip.machine_type, clip.section) for clip in data.train_clips]
    np.testing.assert_array_equal(new.model.compare(data.train, sections).scores, heard.held_out)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["autoencoder fan"] * 20 + ["autoencoder pump"] * 20


def test_a_member_comes_back_from_its_arrays(data):
    system = dataclasses.replace(PRESETS["quick"], batch=64)
    member = system.train(data, RunOptions(None, use_devices(1)), [0])["autoencoder"][0].model
    again = system.restore(member.to_arrays())
    scores = member.compare(data.test, [("fan", "00")]).scores
    np.testing.assert_array_equal(again.compare(data.test, [("fan", "00")]).scores, scores)
