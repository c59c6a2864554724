"""The paper's system: presets, and what its settings refuse."""

import dataclasses

import pytest

from asdproto.config import ConfigError
from asdproto.data.dcase import Clip
from asdproto.errors import DataError
from asdproto.scoring.backends import BackendConfig
from asdproto.systems.prototype import PrototypeSystem, ScoreConfig
from experiments import two_stage


def test_presets_differ_where_they_say():
    paper, small = two_stage.get_config("paper"), two_stage.get_config("small")
    assert paper == PrototypeSystem()
    assert (small.encoder.width, small.pretrain.epochs, small.finetune.epochs) == (16, 10, 5)
    assert dataclasses.replace(small.pretrain, epochs=120) == paper.pretrain


def test_a_back_end_has_the_fields_of_scoring():
    score = ScoreConfig(kind="knn", neighbors=3, hop=8)
    assert score.backend == BackendConfig("knn", neighbors=3)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="hop=0: expected"):
        ScoreConfig(hop=0)
    with pytest.raises(ValueError, match=r"stages=\('finetune', 'pretrain'\): expected"):
        PrototypeSystem(stages=("finetune", "pretrain"))
    clips = [Clip(f"{i}.wav", "fan", "00", "", "train", "normal", "") for i in range(3)]
    with pytest.raises(DataError, match="1 attribute class among 3 clips"):
        PrototypeSystem().check_clips(clips)
