"""The autoencoder system against a NumPy forward pass; folds, saving, company."""

import dataclasses

import jax
import numpy as np
import pytest

from asdproto.config import ConfigError
from asdproto.data.dataset import prepare
from asdproto.data.dcase import Clip
from asdproto.models.autoencoder import AutoEncoder
from asdproto.systems.autoencoder import PRESETS, AutoEncoderSystem, Stacks, fit_networks
from asdproto.training.devices import RunOptions, use_devices
from tests.stores import write_store

MELS, CONTEXT = 8, 5
SYSTEM = AutoEncoderSystem(stage=Stacks(epochs=3, batch_size=64), held_out=0.0, standardize=True)
OPTIONS = RunOptions(None, use_devices(1))
KEYS = [("fan", "00"), ("pump", "00"), ("fan", "00")]


def clip_of(rng, number, frames=35, odd=False):
    """Log-mel in dB of one of two spectra with a beat; odd ones have a tone."""
    time = np.arange(frames)[:, None]
    bands = 4 * np.sin(np.arange(MELS) * (0.7, 1.9)[number % 2])
    beat = 3 * np.sin(time / 3 + rng.uniform(0, 6)) * np.linspace(1, 0.2, MELS)
    clip = -30 + bands + beat + rng.normal(0, 0.5, (frames, MELS))
    clip[:, 5] += odd * 6 * np.sin(np.arange(frames) * 2.1)
    return clip.astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve normal clips of two machine types, and an odd and two other ones of other lengths."""
    rng = np.random.default_rng(0)
    features = [clip_of(rng, number) for number in range(12)]
    features += [clip_of(rng, n, frames, n == 12) for n, frames in ((12, 40), (13, 4), (14, 31))]
    clips = [
        Clip(f"{i}.wav", "pump" if 6 <= i < 12 else "fan", "00", "", "train", "normal", "")
        for i in range(12)
    ]
    clips += [Clip(f"{i}.wav", *KEYS[i - 12], "", "test", "", "") for i in range(12, 15)]
    folder = tmp_path_factory.mktemp("store") / "features"
    store = write_store(folder, features, clips, settings={"n_mels": MELS}, dtype="float32")
    return prepare(store, CONTEXT)


@pytest.fixture(scope="module")
def member(data):
    return SYSTEM.train(data, OPTIONS, [0])["autoencoder"][0]


def forward(variables, x):
    """Reconstruction in float64."""
    params, running = variables["params"], variables["batch_stats"]
    for layer in range(1, 10):
        dense, norm = params[f"dense{layer}"], params[f"norm{layer}"]
        x = x @ np.float64(dense["kernel"]) + np.float64(dense["bias"])
        mean, var = running[f"norm{layer}"]["mean"], running[f"norm{layer}"]["var"]
        x = (x - mean) / np.sqrt(np.float64(var) + 1e-3) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0)
    return x @ np.float64(params["dense10"]["kernel"]) + np.float64(params["dense10"]["bias"])


@pytest.mark.parametrize(("standardize", "kept"), [(True, 4), (False, 6)])
def test_scores_are_the_mean_squared_errors_of_a_numpy_forward_pass(data, standardize, kept):
    """Of a network that was trained on the first clips of its machine type."""
    system = dataclasses.replace(SYSTEM, standardize=standardize, held_out=1 - kept / 6)
    (member,) = system.train(data, OPTIONS, [0])["autoencoder"]
    scores = member.model.compare(data.test, KEYS).scores
    loaded = data.train.load().astype(np.float64)
    for row, (machine, _) in enumerate(KEYS):
        own = [i for i, clip in enumerate(data.train_clips) if clip.machine_type == machine]
        frames = np.concatenate([loaded[i, : data.train.frames[i]] for i in own[:kept]])
        mean, std = frames.mean(axis=0), frames.std(axis=0)
        if not standardize:
            mean, std = np.zeros(MELS), np.ones(MELS)
        count = data.test.usable_frames[row]  # a short clip is repeated
        clip = (data.test.load()[row, :count] - mean) / std
        x = np.stack([clip[t : t + CONTEXT].ravel() for t in range(len(clip) - CONTEXT + 1)])
        rebuilt = forward(member.model.networks[machine].variables, x)
        wrong = (rebuilt - x) * np.tile(std, CONTEXT)
        # float32 against float64 through ten layers.
        assert scores[row] == pytest.approx(np.mean(wrong**2), rel=5e-4)


def test_training_lowers_the_errors_and_odd_clips_have_larger_ones(data, member):
    longer = dataclasses.replace(SYSTEM, stage=Stacks(epochs=60, batch_size=64))
    (long,) = longer.train(data, OPTIONS, [0])["autoencoder"]
    assert long.held_out.mean() < 0.5 * member.held_out.mean()
    odd, _, other = long.model.compare(data.test, KEYS).scores
    assert odd > 2 * other


def test_the_network_is_the_baselines():
    init = jax.eval_shape(
        lambda key: AutoEncoder().init(key, np.zeros((1, 5, 128)), train=False), jax.random.key(0)
    )
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    for layer in range(1, 11):
        shape = init["params"][f"dense{layer}"]["kernel"].shape
        assert shape == (widths[layer - 1], widths[layer])


def test_a_network_depends_on_its_seed_and_name_not_on_its_company(data, member):
    one = SYSTEM._part(data, np.arange(6))
    alone, other = (fit_networks(SYSTEM, {"fan": one}, OPTIONS, seed)["fan"] for seed in (0, 1))
    networks = (alone, member.model.networks["fan"], other)
    kernels = [x.variables["params"]["dense1"]["kernel"] for x in networks]
    # Side by side sums are in another order.
    np.testing.assert_allclose(kernels[0], kernels[1], atol=1e-3)
    assert np.abs(kernels[0] - kernels[2]).max() > 0.1


def test_a_member_comes_back_from_its_arrays_and_scores_clips_alike_alone(data, member):
    again = SYSTEM.restore(member.model.to_arrays())
    scores = member.model.compare(data.test, KEYS).scores
    np.testing.assert_array_equal(again.compare(data.test, KEYS).scores, scores)
    for row in range(3):
        alone = member.model.compare(data.test.take(np.array([row])), KEYS[row : row + 1])
        assert alone.scores == scores[row]


def test_held_out_scores_come_from_networks_that_did_not_hear_the_clip(data, member):
    (folded,) = dataclasses.replace(SYSTEM, folds=3).train(data, OPTIONS, [0])["autoencoder"]
    keys = [(clip.machine_type, "00") for clip in data.train_clips]
    # Without folds they are the network's own, and the network that scores is the same with them.
    heard = member.model.compare(data.train, keys).scores
    np.testing.assert_array_equal(member.held_out, heard)
    np.testing.assert_allclose(folded.model.compare(data.train, keys).scores, heard, rtol=1e-2)
    assert folded.model.networks.keys() == member.model.networks.keys()
    # Every third clip of a machine type is left out of one network, which then scores it.
    part = SYSTEM._part(data, np.array([0, 2, 3, 5]))
    network = fit_networks(SYSTEM, {"fan/1": part}, OPTIONS, 0)["fan/1"]
    out = np.array([1, 4])
    alone = network.errors(data.train.take(out))
    np.testing.assert_allclose(folded.held_out[out], alone, rtol=2e-3)  # sums in another order
    assert np.abs(alone / heard[out] - 1).max() > 0.01


def test_presets_differ_where_they_say():
    assert PRESETS["paper"] == AutoEncoderSystem()
    assert PRESETS["paper"].stage.batch == 512
    with pytest.raises(ConfigError, match="folds=1: expected 0 or at least 2"):
        AutoEncoderSystem(folds=1)
