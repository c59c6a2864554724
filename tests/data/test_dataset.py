import dataclasses

import numpy as np
import pytest

from asdproto.data.dataset import ClipArrays, prepare, tile_to
from asdproto.data.dcase import Clip
from asdproto.errors import DataError
from tests.stores import write_store


def test_clip_arrays_tile_short_clips_and_count_frames():
    features = np.arange(2 * 6 * 2, dtype=np.float32).reshape(2, 6, 2)
    clips = ClipArrays(features, np.array([1, 0]), np.array([3, 6]), crop=5)
    assert clips.usable_frames.tolist() == [5, 6]
    loaded = clips.load()
    np.testing.assert_array_equal(loaded[0, :5], features[1, [0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(loaded[0, 5:], 0)
    crops = clips.crops(np.array([0, 1]), np.array([0, 1]))
    np.testing.assert_array_equal(crops[0], loaded[0, :5])
    np.testing.assert_array_equal(crops[1], loaded[1, 1:6])
    mean, std = clips.statistics()
    frames = np.concatenate([features[1, :3], features[0]]).astype(np.float64)
    np.testing.assert_allclose(mean, frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, frames.std(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(tile_to(features[0], 4), features[0])
    chosen = clips.take([1, 0])
    assert chosen.features is features
    np.testing.assert_array_equal([chosen.rows, chosen.frames], [[0, 1], [6, 3]])
    with pytest.raises(ValueError, match="clip 1 has no frames"):
        ClipArrays(features, np.array([0, 1]), np.array([3, 0]), crop=5)


@pytest.fixture
def store(tmp_path):
    """Four clips of 9 frames of 4 bands: bands differ in level, and the third never moves."""
    features = np.random.default_rng(0).standard_normal((4, 9, 4)) * [1, 5, 0, 0.1] + [0, 3, 7, -2]
    rows = [("fan", "00", "source", "train"), ("fan", "00", "target", "train"),
            ("fan", "01", "source", "train"), ("pump", "00", "source", "test")]  # fmt: skip
    clips = [Clip(f"{i}.wav", *row, "normal", f"a_{i}") for i, row in enumerate(rows)]
    return write_store(
        tmp_path / "s", features.astype(np.float32), clips, settings={"n_mels": 4}, dtype="float32"
    )


def test_features_are_standardized_by_band_or_all_alike(store):
    data = prepare(store, 8)
    frames = store.features[:3].reshape(-1, 4).astype(np.float64)
    mean, scale = data.moments("band")
    standardized = (frames - mean) * scale
    np.testing.assert_allclose(standardized.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standardized.std(axis=0), [1, 1, 0, 1], atol=1e-5)
    mean, scale = data.moments("global")
    assert mean.dtype == scale.dtype == np.float32
    np.testing.assert_allclose(mean, frames.mean(), rtol=1e-6)
    np.testing.assert_allclose(scale, 1 / frames.std(), rtol=1e-6)
    assert mean.shape == scale.shape == (4,)


def test_classes_follow_the_key(store):
    assert len(prepare(store, 8).classes) == 3
    data = prepare(store, 8, key=lambda clip: clip.section)
    assert (data.classes, data.labels.tolist()) == (["00", "01"], [0, 0, 1])
    # One class is fine for systems that need none.
    assert prepare(store, 8, ["fan"], key=lambda clip: "any").classes == ["any"]
    with pytest.raises(DataError, match="no training clips among 1"):
        prepare(store, 8, ["pump"])


def test_an_anomaly_among_training_clips_is_refused(store):
    first = dataclasses.replace(store.clips[0], state="anomaly")
    rows = [dataclasses.replace(store.rows[0], clip=first), *store.rows[1:]]
    with pytest.raises(DataError, match=r"0\.wav: found an anomaly in the training split"):
        prepare(dataclasses.replace(store, rows=rows), 8)
