"""What every rival promises: runs, scores, files, networks of machine types."""

import dataclasses
import functools
import json
import types

import jax
import numpy as np
import pytest

from asdproto.data.dataset import prepare, section_keys
from asdproto.errors import DataError
from asdproto.scoring.metrics import evaluate, group_scores
from asdproto.systems.detector import Detector
from asdproto.systems.embedding import window_starts
from asdproto.systems.run import train_run
from asdproto.systems.system import prepare_for
from asdproto.training.devices import RunOptions, use_devices
from experiments.rivals import adacos, dgmix, disentangled, mobilenet, rival, stgram
from experiments.rivals.rival import ALL
from tests.experiments.rivals import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore::asdproto.scoring.thresholds.ThresholdWarning"),
    pytest.mark.filterwarnings("ignore::asdproto.training.loop.CollapseWarning"),
]

SMALL = {
    adacos.AdaCosSystem: {"stages": (1,)},
    disentangled.DisentangledSystem: {"stages": (1,)},
    mobilenet.MobileNetSystem: {"stages": ((2, 16, 1, 2),), "head": 16},
    dgmix.DGMixSystem: {"stages": ((2, 16, 1, 2),), "head": 16},
    stgram.STgramSystem: {"stages": ((1, 16, 1, 2),), "head": 16, "n_mels": tiny.FEATURES.n_mels},
}


@pytest.fixture(scope="module")
def small_networks():
    """Compiling networks of many blocks is most of what a run of two epochs does."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, changes in SMALL.items():

            def encoder(self, build=kind.encoder, changes=changes):
                return build(self).clone(**changes)

            patch.setattr(kind, "encoder", encoder)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.make_store(tmp_path_factory.mktemp("store") / "features")


@pytest.fixture(scope="module")
def waveforms(tmp_path_factory):
    return tiny.make_store(tmp_path_factory.mktemp("store") / "features", tiny.WAVEFORMS)


def _options(workdir):
    return RunOptions(workdir=workdir, devices=use_devices(1))


@pytest.fixture(scope="module")
def run_of(store, waveforms, small_networks, tmp_path_factory):
    """``name -> (system, data, run folder, results)`` of a run with seed 3, trained once."""

    @functools.cache
    def train(name):
        system, workdir = tiny.system(name), tmp_path_factory.mktemp(name)
        features = waveforms if name == "stgram" else store
        results = train_run(system, features, _options(workdir), seeds=[3])
        return system, prepare(features, system.crop), workdir, results

    return train


def _of_fan(arrays, clips):
    """The clips of one machine type, and their sections."""
    rows = [row for row, clip in enumerate(clips) if clip.machine_type == "fan"]
    return arrays.take(rows), section_keys([clips[row] for row in rows])


@pytest.mark.parametrize("name", tiny.KINDS)
def test_a_run_trains_scores_and_loads(name, run_of):
    system, data, workdir, results = run_of(name)
    assert set(results["systems"][name]["machines"]) == {"fan", "valve"}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    networks = 2 if system.per_machine else 1
    assert len({line["stage"] for line in lines}) == networks * (2 if name == "dgmix" else 1)

    member, keys = Detector.load(workdir).members_[0], section_keys(data.test_clips)
    assert member.model.system == system
    assert np.isfinite(member.held_out).all()
    found = member.model.compare(data.test, keys)
    figures = evaluate(group_scores(data.test_clips, found.scores))
    assert figures["overall"] == pytest.approx(results["systems"][name]["overall"], rel=1e-12)
    assert len(np.unique(found.scores)) > len(found.scores) // 2
    # A clip scores to the same bits in any company.
    few = [len(keys) - 1, 2]
    again = member.model.compare(data.test.take(few), [keys[row] for row in few])
    np.testing.assert_array_equal(again.scores, found.scores[few])


def test_a_run_goes_on_from_the_stages_of_all_its_networks(run_of):
    system, data, workdir, _ = run_of("dgmix")
    metrics = (workdir / "metrics.jsonl").read_text()
    ((again,),) = system.train(data, _options(workdir), [3]).values()
    assert (workdir / "metrics.jsonl").read_text() == metrics  # nothing was trained again
    member, keys = Detector.load(workdir).members_[0], section_keys(data.test_clips)
    found = member.model.compare(data.test, keys).scores
    np.testing.assert_array_equal(again.model.compare(data.test, keys).scores, found)


def test_a_machine_types_network_does_not_know_of_the_others(run_of, store):
    system, data, workdir, _ = run_of("mobilenet")
    both = Detector.load(workdir).members_[0]
    assert list(both.model.networks) == ["fan", "valve"]
    assert list(tiny.system("adacos").rows_of_networks(["fan", "valve"])) == [ALL]
    valve = prepare(store, system.crop, ["valve"])
    ((one,),) = system.train(valve, _options(None), [3]).values()
    valves = [clip.machine_type == "valve" for clip in data.train_clips]
    np.testing.assert_array_equal(one.held_out, both.held_out[valves])


def test_what_cannot_be_trained_is_refused(store, waveforms):
    data = prepare(store, 16)
    clips = [c for c in data.train_clips if (c.machine_type, c.section) < ("fan", "01")]
    with pytest.raises(DataError, match="training clips of fan: found one class to learn"):
        tiny.system("mobilenet").check_clips(clips)
    system = dataclasses.replace(tiny.system("dgmix"), features=tiny.WAVEFORMS)
    with pytest.raises(DataError, match="log-mel features, which is all that"):
        prepare_for(system, waveforms)


def test_samples_share_one_scale_and_bands_have_their_own(waveforms):
    data, mels = prepare(waveforms, 16), tiny.FEATURES.n_mels
    found = stgram.level_samples(data, mels)
    np.testing.assert_array_equal(found.mean[mels:], 0)
    assert len(np.unique(found.std[mels:])) == 1
    # Noise of deviation 0.1.
    np.testing.assert_allclose(found.std[mels], 0.1, rtol=0.05)
    np.testing.assert_array_equal(found.mean[:mels], data.mean[:mels])


def test_the_score_is_the_mean_evidence_of_windows_against_the_own_section(run_of):
    system, data, workdir, _ = run_of("mobilenet")
    clips, keys = _of_fan(data.test, data.test_clips)
    network = Detector.load(workdir).members_[0].model.networks["fan"]
    bias = np.array([0.3, -0.5], np.float32)
    network = network._replace(backend={**network.backend, "bias": bias})
    starts = window_starts(tiny.FRAMES, system.crop, system.hop)
    assert len(starts) > 1
    features = (clips.load().astype(np.float32) - network.mean) * network.scale
    windows = np.stack([features[:, start : start + system.crop] for start in starts], axis=1)
    apply = jax.jit(lambda x: system.encoder().apply(network.variables, x, train=False))
    embeddings = apply(windows.reshape(-1, *windows.shape[2:]))
    logits = np.asarray(embeddings, np.float64) @ network.backend["kernel"].T + bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    own = [network.backend["classes"].tolist().index(list(key)) for key in keys]
    for odds in (True, False):
        values = (np.log(1 - p) if odds else 0) - np.log(p)
        means = values.reshape(len(keys), len(starts), 2).mean(axis=1)
        found = rival.evidence(system, network, clips, keys, odds=odds)
        np.testing.assert_allclose(found, means[np.arange(len(keys)), own], atol=1e-4)


def _unit(*shape, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_disentangled_score_is_the_weighted_sum_of_the_blocks_distances(run_of):
    system, data, workdir, _ = run_of("disentangled")
    system = dataclasses.replace(system, attribute_weight=0.6)
    network = Detector.load(workdir).members_[0].model.networks["fan"]
    train, known = _of_fan(data.train, data.train_clips)
    clips, keys = _of_fan(data.test, data.test_clips)
    found = system.score(network, clips, keys).scores

    def distance(z, other, block):
        z, other = z[block], other[block]
        return np.linalg.norm(z / np.linalg.norm(z) - other / np.linalg.norm(other))

    normal, new = (np.float64(disentangled.embed(system, network, x)) for x in (train, clips))
    # Section, n and spd.
    weights = [(slice(0, 4), 1.0), (slice(4, 6), 0.3), (slice(6, 8), 0.3)]
    for row, (z, section) in enumerate(zip(new, keys, strict=True)):
        own = [e for e, key in zip(normal, known, strict=True) if key == section]
        expected = sum(w * min(distance(z, e, block) for e in own) for block, w in weights)
        np.testing.assert_allclose(found[row], expected, rtol=1e-10)


def test_adacos_compares_with_centers_of_the_source_and_all_target_clips():
    train = [clip for clip in tiny.clips() if clip.split == "train"]
    embeddings, keys = _unit(len(train), 5), section_keys(train)
    targets = np.array([clip.domain == "target" for clip in train])
    data = types.SimpleNamespace(train_clips=train)
    _, held_out = adacos.fit_references(embeddings, data, 2)
    for key in set(keys):
        rows = np.array([k == key for k in keys])
        references = adacos.section_references(embeddings[rows], targets[rows], 2)
        assert len(references) == 2 + targets[rows].sum()
        np.testing.assert_array_equal(references[2:], embeddings[rows & targets])
        for row in np.flatnonzero(rows):
            others = references
            if targets[row]:  # not with itself
                others = [r for r in references if not np.array_equal(r, embeddings[row])]
            nearest = min(1 - r @ embeddings[row] for r in others)
            np.testing.assert_allclose(held_out[row], nearest, atol=1e-6)
    # No more clusters than there are different clips.
    assert len(adacos.section_references(embeddings[[0] * 4], np.zeros(4, bool), 16)) == 1
