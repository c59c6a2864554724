import flax.linen as nn
import jax
import numpy as np
import pytest

from asdproto.data.dataset import ClipArrays
from asdproto.systems import embedding
from asdproto.systems.embedding import shared_by, window_means
from asdproto.training.devices import use_devices
from tests.training import tiny


class Mean(nn.Module):
    """The mean spectrum of a crop, times a number."""

    embedding_dim: int = tiny.MELS

    @nn.compact
    def __call__(self, crops, *, train):
        return crops.mean(axis=1) * self.param("factor", nn.initializers.constant(2.0), ())


@pytest.mark.parametrize("batch", [4, 256])
def test_a_clip_is_the_mean_over_windows_that_cover_it(batch):
    rng = np.random.default_rng(0)
    frames = np.array([tiny.CROP, tiny.CROP + 1, 3 * tiny.CROP - 3, 5])
    features = rng.standard_normal((4, 3 * tiny.CROP, tiny.MELS)).astype(np.float32)
    clips = ClipArrays(features, np.arange(4), frames, tiny.CROP)
    mean, scale = rng.standard_normal(tiny.MELS), rng.uniform(0.5, 2, tiny.MELS)
    variables = {"params": {"factor": np.float32(2.0)}}
    options = {"mean": mean, "scale": scale, "hop": 8, "batch": batch}
    found = window_means(Mean(), variables, clips, **options)
    short = np.resize(features[3, :5], (tiny.CROP, tiny.MELS))
    windows = [[0], [0, 1], [0, 7, 14, 22, 29]]  # even steps of at most a hop, rounded
    expected = [
        np.mean([features[clip, start : start + tiny.CROP].mean(axis=0) for start in starts], 0)
        for clip, starts in enumerate(windows)
    ]
    expected = 2 * (np.array([*expected, short.mean(axis=0)]) - mean) * scale
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_devices_that_share_windows_give_the_bits_of_one(monkeypatch):
    data, model = tiny.make_data(), tiny.Encoder()
    crops = data.train.load()[:, : tiny.CROP].astype(np.float32)
    variables = model.init(jax.random.key(0), crops, train=True)
    options = {"mean": data.mean, "scale": 1 / data.std, "hop": 4, "batch": 5}
    one = window_means(model, variables, data.train, **options)
    with shared_by(use_devices(3)):  # of which one works on a CPU
        monkeypatch.setattr(embedding, "_sharing", use_devices(3))
        three = window_means(model, variables, data.train, **options)
    assert np.abs(one).min() > 0
    np.testing.assert_array_equal(three, one)
