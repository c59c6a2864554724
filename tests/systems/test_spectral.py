"""Spectra without training: pooling against loops, systems of one part and of several."""

import dataclasses

import numpy as np
import pytest

from asdproto.audio import resample
from asdproto.config import ConfigError, from_dict, to_dict
from asdproto.data.dataset import ClipArrays, Dataset, section_keys
from asdproto.data.dcase import Clip
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.scoring.backends import BackendConfig, fit_scorer
from asdproto.scoring.fusion import combine
from asdproto.systems import preset
from asdproto.systems.detector import Detector
from asdproto.systems.run import features_of, train_run
from asdproto.systems.spectral import SpectralSystem, Spectrum
from asdproto.training.devices import RunOptions, use_devices

MELS = 5
OPTIONS = RunOptions(None, use_devices(1))


def dataset(clips=14, domains=("source", "source", "target"), seed=0):
    """Clips of one attribute class and unequal lengths; what follows a clip's end is nan."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(3, 9, clips)
    features = rng.normal(-40, 5, size=(clips, 8, MELS)).astype(np.float16)
    for clip, length in zip(features, frames, strict=True):
        clip[length:] = np.nan
    described = [
        Clip(f"{index}.wav", "fan", "00", domains[index % len(domains)], "train", "normal", "")
        for index in range(clips)
    ]
    arrays = ClipArrays(features, np.arange(clips), frames, crop=1)
    labels = np.zeros(clips, np.int32)
    moments = np.zeros(MELS), np.ones(MELS)
    return Dataset(arrays, arrays, described, described, labels, [("fan", "00")], *moments)


def slow_ranked(frames, r):
    spectrum = []
    for band in range(MELS):
        levels = sorted((float(x) for x in frames[:, band]), reverse=True)
        weights = [r**i for i in range(len(levels))]
        spectrum.append(sum(w * x for w, x in zip(weights, levels, strict=True)) / sum(weights))
    return spectrum


@pytest.mark.parametrize(
    ("part", "r"),
    [(Spectrum("mean"), 1.0), (Spectrum("ranked", r=0.0), 0.0), (Spectrum("ranked", r=0.7), 0.7)],
)
def test_clips_are_pooled_over_their_own_frames(part, r):
    clips = dataset().train.take(np.array([3, 0]))
    found = part.of(clips, FeatureSettings())
    for spectrum, row, frames in zip(found, clips.rows, clips.frames, strict=True):
        expected = slow_ranked(clips.features[row, :frames], r)
        np.testing.assert_allclose(spectrum, expected, rtol=1e-10)


SEVERAL = SpectralSystem(
    parts=(
        Spectrum(scale_bands=True),
        Spectrum("ranked", r=0.0, score=BackendConfig("mahalanobis-knn")),
        preset("gmm", "small").parts[0],
    )
)


def test_parts_score_as_one_alike_alone_and_after_saving(tmp_path):
    data, new = dataset(), dataset(clips=5, seed=1)
    members = SEVERAL.train(data, OPTIONS, [3])[SEVERAL.kind]
    detector = Detector.trained(SEVERAL.kind, SEVERAL, data, members)
    train, keys = section_keys(data.train_clips), section_keys(new.train_clips)
    rows = detector.rows(new.train_clips, detector.compare([new.train], keys))
    scores = [one.model.compare(new.train, keys).scores for one in members]
    held_out = [one.held_out for one in members]
    expected = combine(scores, held_out, keys, train, parts=[0, 1, 2])
    np.testing.assert_array_equal([row.score for row in rows], expected)
    expected = combine(held_out, held_out, train, train, parts=[0, 1, 2])
    np.testing.assert_array_equal(detector.decision_scores_, expected)
    restored = Detector.load(detector.save(tmp_path / "run"))
    assert restored.rows(new.train_clips, restored.compare([new.train], keys)) == rows
    for row in range(5):
        alone = detector.compare([new.train.take(np.array([row]))], keys[:1])
        assert detector.rows(new.train_clips[row : row + 1], alone) == rows[row : row + 1]
    assert from_dict(SpectralSystem, to_dict(SEVERAL)) == SEVERAL


def test_held_out_clips_had_no_part_in_their_scores():
    """A clip that changes changes its own score and those of the other parts, not of its part."""
    data, other = dataset(domains=("source",)), dataset(domains=("source",))
    other.train.features[5] *= np.linspace(1.0, 1.3, MELS)
    trained = (SEVERAL.train(one, OPTIONS, [0])[SEVERAL.kind] for one in (data, other))
    for before, after in zip(*trained, strict=True):
        # Five parts of clips of one class: 0, 5 and 10 are held out together.
        same = before.held_out == after.held_out
        assert same.tolist() == [row in (0, 10) for row in range(14)]


def test_a_mixture_repeats_clips_of_the_target_domain():
    system, data = preset("gmm", "small"), dataset()
    (member,) = system.train(data, OPTIONS, [0])["gmm"]
    target = np.array([clip.domain == "target" for clip in data.train_clips], int)
    expected = fit_scorer(
        Spectrum("ranked").of(data.train, FeatureSettings()),
        target,
        section_keys(data.train_clips),
        BackendConfig("mixture"),
    )
    for key, mixture in expected.sections.items():
        np.testing.assert_array_equal(member.model.scorer.sections[key].means, mixture.means)


def test_what_cannot_be_is_refused():
    with pytest.raises(DataError, match=r"section \('fan', '00'\): found 1 training clip"):
        SpectralSystem().check_clips(dataset(clips=1).train_clips)
    whitened = BackendConfig("mahalanobis-knn")
    for made, fields, message in (
        (SpectralSystem, {"parts": ()}, r"parts=\(\): expected"),
        (SpectralSystem, {"parts": (Spectrum("quiet"),)}, "summary=False with pooling quiet"),
        (Spectrum, {"score": BackendConfig("cosine")}, r"score\.kind='cosine': expected 'knn'"),
        (Spectrum, {"pooling": "change", "score": whitened}, r"goes with score\.kind='knn'"),
        (Spectrum, {"r": 1.5}, r"r=1\.5: expected"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(**fields)


@pytest.mark.slow
def test_figures_on_real_recordings(real_data, tmp_path):
    """Figures of an implementation of its own, rounded to as many digits as the tolerance has."""
    folder = real_data / "uavmix" / "dev_data"
    store = features_of(folder, tmp_path / "features", FeatureSettings(), None)
    for remove_level, overall in ((False, 0.854), (True, 0.846)):
        system = SpectralSystem(parts=(Spectrum(remove_level=remove_level),))
        options = RunOptions(tmp_path / f"{remove_level}", use_devices(1))
        figures = train_run(system, store, options)["systems"][system.kind]
        assert figures["overall"] == pytest.approx(overall, abs=0.0006)


# --- the default


RATE, SECONDS = 16000, 10


def machine(rng, knock=0.0):
    """A hum with harmonics in noise whose level wanders; a knock twice a second."""
    time = np.arange(RATE * SECONDS) / RATE
    noise = rng.normal(0, 0.02, len(time)) * (
        1 + 0.2 * np.sin(2 * np.pi * rng.uniform(1, 2) * time)
    )
    samples = noise + sum(0.05 / k * np.sin(2 * np.pi * 180 * k * time) for k in range(1, 5))
    burst = np.sin(2 * np.pi * 1000 * time[:320]) * np.exp(-np.arange(320) / 100)
    for start in range(2000, len(time) - 320, RATE // 2):
        samples[start : start + 320] += knock * np.sqrt(np.mean(samples**2)) * burst
    return samples.astype(np.float32)


@pytest.fixture(scope="module")
def default():
    rng = np.random.default_rng(0)
    normal = [machine(rng) for _ in range(24)]
    return Detector(system="spectral", sample_rate=RATE, contamination=0.05).fit(normal)


def test_the_default_hears_a_knock_and_no_gain_or_other_rate(default):
    rng = np.random.default_rng(1)
    normal, knocking = ([machine(rng, k) for _ in range(4)] for k in (0.0, 3.0))
    usual = default.decision_function(normal)
    assert default.decision_function(knocking).min() > max(usual.max(), default.threshold_)
    for gain in (0.25, 4.0):  # 12 dB
        louder = default.decision_function([np.float32(gain) * one for one in normal])
        np.testing.assert_allclose(louder, usual, rtol=0.02)  # features are kept as float16
    for rate in (8000, 48000):
        other = [resample(one, RATE, rate) for one in normal]
        scores = default.decision_function(other, sample_rate=rate)
        assert scores.max() < 1.3 * usual.max()
        knocks = [resample(one, RATE, rate) for one in knocking]
        assert default.decision_function(knocks, sample_rate=rate).min() > scores.max()


def test_what_a_recording_lacks_is_left_out_on_both_sides():
    """A distance in some dimensions is that of training clips which have no others, either."""
    part = Spectrum("steady", remove_level=True)
    system = SpectralSystem(
        "spectral", FeatureSettings(summary=True, n_fft=64, hop_length=32, n_mels=8), (part,)
    )
    columns = system.features.columns
    rng = np.random.default_rng(2)
    clips = ClipArrays(rng.normal(size=(14, 1, columns)), np.arange(14), np.ones(14, int), 1)
    data = dataclasses.replace(dataset(), train=clips)
    steady = next(one.columns for one in system.features.parts() if one.name == "steady")
    lacking = np.arange(steady.start + 20, steady.stop)
    new = clips.take(np.array([3]))
    new = dataclasses.replace(new, features=rng.normal(size=clips.features.shape))
    new.features[..., lacking] = np.nan
    keys = [("fan", "00")]
    (member,) = system.train(data, OPTIONS, [0])["spectral"]
    found = member.model.compare(new, keys).scores
    cut = dataclasses.replace(clips, features=clips.features.copy())
    cut.features[..., lacking] = np.nan
    (other,) = system.train(dataclasses.replace(data, train=cut), OPTIONS, [0])["spectral"]
    expected = other.model.compare(new, keys).scores
    np.testing.assert_allclose(found, expected * np.sqrt(33 / 20), rtol=1e-12)


@pytest.mark.slow
def test_the_default_on_real_recordings(real_data, tmp_path):
    system = preset("spectral", "small")
    folder = real_data / "uavmix2" / "dev_data"
    store = features_of(folder, tmp_path / "features", system.features, None)
    options = RunOptions(tmp_path / "run", use_devices(1))
    assert train_run(system, store, options)["systems"]["spectral"]["overall"] > 0.9
