"""The paper's system: presets and settings."""

import dataclasses

import pytest

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


def test_stages_have_an_order():
    with pytest.raises(ValueError, match=r"stages=\('finetune', 'pretrain'\): expected"):
        PrototypeSystem(stages=("finetune", "pretrain"))
