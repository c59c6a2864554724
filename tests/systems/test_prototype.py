"""The paper's system: embeddings of clips, presets."""

import dataclasses

import jax
import numpy as np
import pytest

from asdproto.config import ConfigError
from asdproto.data.dataset import ClipArrays
from asdproto.scoring.backends import BackendConfig
from asdproto.systems.embedding import embed_clips, window_starts
from asdproto.systems.prototype import EncoderConfig, PrototypeSystem, ScoreConfig
from experiments import two_stage
from tests.training import tiny


def _embed(features, frames, **kwargs):
    model = tiny.Encoder()
    variables = model.init(jax.random.key(0), np.zeros((1, 8, tiny.MELS), np.float32), train=False)
    rows = np.arange(len(features))
    clips = ClipArrays(features, rows, np.asarray(frames), 8)
    ones = np.ones(tiny.MELS)
    embeddings = embed_clips(model, variables, clips, mean=0 * ones, scale=ones, hop=4, **kwargs)
    return model, variables, embeddings


def test_an_embedding_is_the_mean_over_windows_and_does_not_depend_on_company():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((5, 30, tiny.MELS)).astype(np.float32)
    frames = [30, 8, 17, 5, 12]
    model, variables, found = _embed(features, frames, batch=8)
    for clip, count in enumerate(frames):
        length = max(count, 8)
        frames_of = np.take(features[clip, :count], np.arange(length) % count, axis=0)
        crops = np.stack([frames_of[s : s + 8] for s in window_starts(length, 8, 4)])
        mean = np.asarray(model.apply(variables, crops, train=False), np.float64).mean(axis=0)
        np.testing.assert_allclose(found[clip], mean / np.linalg.norm(mean), atol=1e-6)
    alone = _embed(features[2:3], frames[2:3], batch=8)[2]
    np.testing.assert_array_equal(alone[0], found[2])
    whole = _embed(features, frames, full_clip=True)[2]
    one = model.apply(variables, features[:1], train=False)
    np.testing.assert_allclose(whole[0], one[0], atol=1e-6)


def test_presets_differ_where_they_say():
    paper, small = two_stage.get_config("paper"), two_stage.get_config("small")
    assert paper == PrototypeSystem()
    assert (small.encoder.width, small.pretrain.epochs, small.finetune.epochs) == (16, 10, 5)
    assert dataclasses.replace(small.pretrain, epochs=120) == paper.pretrain


def test_a_back_end_has_the_fields_of_scoring():
    score = ScoreConfig(kind="knn", neighbors=3, hop=8)
    assert score.backend == BackendConfig("knn", neighbors=3)
    with pytest.raises(ConfigError, match="hop=0: expected"):
        ScoreConfig(hop=0)


def test_an_encoder_must_say_the_length_of_its_embeddings():
    import flax.linen as nn

    with pytest.raises(ConfigError, match="module=Dense: expected an attribute embedding_dim"):
        EncoderConfig(module=nn.Dense(6))
