import numpy as np
import pytest

from asdproto.config import from_dict, to_dict
from asdproto.data.collection import read_collection
from asdproto.data.dataset import ClipArrays, Dataset, section_keys
from asdproto.data.dcase import Clip
from asdproto.data.extract import build_store
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.results.run_folder import read_scores
from asdproto.systems import gmm
from asdproto.systems import spectral_knn as knn
from asdproto.systems.members import RunOptions
from asdproto.systems.run import train_run
from asdproto.systems.trained import load_run
from asdproto.training.devices import use_devices

MELS = 5


def spectra(seed=0, clips=14, loudness=0.0):
    """Bands of unequal level and spread, in two sections."""
    rng = np.random.default_rng(seed)
    values = np.linspace(-60, -20, MELS) + np.geomspace(0.3, 6, MELS) * rng.normal(
        size=(clips, MELS)
    )
    keys = [("fan", f"0{index % 2}") for index in range(clips)]
    return values + loudness * rng.normal(size=(clips, 1)), keys


def slow_scores(train, keys, test, test_keys, *, remove_level, scale_bands, neighbors):
    scores = []
    for row, key in zip(test, test_keys, strict=True):
        own = [list(x) for x, other in zip(train, keys, strict=True) if other == key]
        row = list(row)
        if remove_level:
            own = [[v - sum(x) / MELS for v in x] for x in own]
            row = [v - sum(row) / MELS for v in row]
        stds = [1.0] * MELS
        if scale_bands:
            for band in range(MELS):
                mean = sum(x[band] for x in own) / len(own)
                stds[band] = (sum((x[band] - mean) ** 2 for x in own) / len(own)) ** 0.5
        distances = sorted(
            sum(((a - b) / s) ** 2 for a, b, s in zip(row, x, stds, strict=True)) ** 0.5
            for x in own
        )
        scores.append(sum(distances[:neighbors]) / len(distances[:neighbors]))
    return scores


@pytest.mark.parametrize("neighbors", [1, 3])
@pytest.mark.parametrize("remove_level", [False, True])
@pytest.mark.parametrize("scale_bands", [False, True])
def test_scores_equal_a_loop(remove_level, scale_bands, neighbors):
    options = {
        "remove_level": remove_level,
        "scale_bands": scale_bands,
        "neighbors": neighbors,
    }
    (train, keys), (test, test_keys) = spectra(loudness=3.0), spectra(1, clips=6, loudness=3.0)
    model = knn.fit_spectra(train, np.zeros(len(train), int), keys, **options)
    found = model.score(test, test_keys)
    expected = slow_scores(train, keys, test, test_keys, **options)
    # The order of a few sums.
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    alone = [model.score(test[[i]], [test_keys[i]])[0] for i in range(len(test))]
    np.testing.assert_array_equal(found, alone)


def test_a_gain_leaves_no_trace_without_level():
    train, keys = spectra()
    quiet = knn.fit_spectra(train, np.zeros(len(train), int), keys, remove_level=True)
    np.testing.assert_allclose(quiet.score(train - 30.0, keys), np.zeros(len(train)), atol=1e-12)
    plain = knn.fit_spectra(train, np.zeros(len(train), int), keys)
    assert plain.score(train - 30.0, keys).min() > 30.0


def test_a_band_that_never_moves_is_not_divided_by_zero():
    train, keys = spectra()
    train[:, 2] = -100.0
    model = knn.fit_spectra(train, np.zeros(len(train), int), keys, scale_bands=True)
    moved = train.copy()
    moved[:, 2] += 7.0
    np.testing.assert_allclose(model.score(moved, keys), np.full(len(train), 7.0), rtol=1e-12)


def test_training_clips_leave_themselves_out():
    train, keys = spectra()
    model = knn.fit_spectra(train, np.zeros(len(train), int), keys, scale_bands=True)
    assert model.score(train, keys).max() == 0.0
    assert model.score(train, keys, training=True).min() > 0.0


def test_clips_are_averaged_over_their_own_frames():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 9, MELS)).astype(np.float16)
    clips = ClipArrays(features, np.array([2, 0]), np.array([4, 9]), crop=6)
    expected = [features[2, :4].astype(float).mean(0), features[0].astype(float).mean(0)]
    np.testing.assert_allclose(knn.mean_spectra(clips), expected, rtol=1e-12)


def test_errors_name_the_section():
    train, keys = spectra(clips=3)
    with pytest.raises(
        DataError, match=r"section \('fan', '01'\): found 1 training clip; expected"
    ):
        knn.fit_spectra(train, np.zeros(3, int), keys)
    model = knn.fit_spectra(*(values[::2] for values in (train, np.zeros(3, int), keys)))
    with pytest.raises(ValueError, match=r"section \('fan', '01'\) was not seen in training"):
        model.score(train, keys)
    with pytest.raises(ValueError, match="neighbors=0: expected"):
        knn.SpectralKnnSystem(neighbors=0)


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


SYSTEMS = [
    knn.SpectralKnnSystem(whiten=True, density_neighbors=3),
    knn.SpectralKnnSystem(remove_level=True, scale_bands=True, neighbors=2),
    gmm.GmmSystem(r=0.9, target_ratio=0.5),
]


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.kind)
def test_members_of_fourteen_clips_survive_saving(system, tmp_path):
    data, options = dataset(), RunOptions(tmp_path, use_devices(1))
    (one,), (again,) = (system.train(data, options, [3])[system.kind] for _ in range(2))
    np.savez(tmp_path / "member.npz", **one.member.to_arrays())
    with np.load(tmp_path / "member.npz", allow_pickle=False) as arrays:
        restored = from_dict(type(system), to_dict(system)).restore(dict(arrays), data.classes)
    new = dataset(clips=5, seed=1)
    keys = section_keys(new.train_clips)
    expected = one.member.compare(new.train, keys).scores
    assert np.isfinite(expected).all()
    for member in (restored, again.member):
        np.testing.assert_array_equal(member.compare(new.train, keys).scores, expected)
    for row in range(5):
        alone = ClipArrays(new.train.features, np.array([row]), new.train.frames[[row]], crop=1)
        assert one.member.compare(alone, keys[:1]).scores == expected[row]


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.kind)
def test_held_out_clips_had_no_part_in_their_scores(system, tmp_path):
    """A clip that changes changes its own score and those of the other parts, not of its part."""
    options = RunOptions(tmp_path, use_devices(1))
    data, other = dataset(domains=("source",)), dataset(domains=("source",))
    other.train.features[5] *= np.linspace(1.0, 1.3, MELS)
    before, after = (system.train(d, options, [0])[system.kind][0].held_out for d in (data, other))
    # Five parts of clips of one class: 0, 5 and 10 are held out together.
    same = before == after
    assert same.tolist() == [row in (0, 10) for row in range(14)]


REFERENCE = {
    ("inverted", False, False): (0.854, 0.0006),
    ("inverted", False, True): (0.723, 0.0006),
    ("inverted", True, True): (0.921, 0.0006),
    ("mel", False, False): (0.68, 0.006),
    ("mel", False, True): (0.67, 0.006),
    ("mel", True, True): (0.72, 0.006),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::asdproto.scoring.thresholds.ThresholdWarning")
@pytest.mark.parametrize("scale", ["inverted", "mel"])
def test_figures_on_real_recordings(scale, real_data, tmp_path):
    """Figures of an implementation of its own, rounded to as many digits as the tolerance has."""
    collection = read_collection(real_data / "uavmix" / "dev_data")
    settings = FeatureSettings(scale=scale)
    store = build_store(collection, tmp_path / "features", settings, progress=False)
    for (kind, remove_level, scale_bands), (overall, tolerance) in REFERENCE.items():
        if kind != scale:
            continue
        system = knn.SpectralKnnSystem(
            features=settings, remove_level=remove_level, scale_bands=scale_bands
        )
        options = RunOptions(tmp_path / f"{remove_level}{scale_bands}", use_devices(1))
        figures = train_run(system, store, options)["systems"][system.kind]
        assert figures["overall"] == pytest.approx(overall, abs=tolerance)
    detector = load_run(options.workdir)
    test = [index for index, clip in enumerate(store.clips) if clip.split == "test"][::40]
    paths = [collection.root / store.clips[index].path for index in test]
    published = {
        row.name: row.score for row in read_scores(options.workdir / "scores" / "spectral-knn")
    }
    for path, found in zip(paths, detector.score_files(paths), strict=True):
        assert found["score"] == published[path.name]
