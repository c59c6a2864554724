"""The paper's system: presets and settings."""

import dataclasses

import pytest

from asdproto.systems.prototype import PrototypeSystem
from experiments import two_stage


def test_presets_differ_where_they_say():
    paper, small = two_stage.get_config("paper"), two_stage.get_config("small")
    assert paper == PrototypeSystem()
    assert (small.encoder.width, small.pretrain.epochs, small.finetune.epochs) == (16, 10, 5)
    assert dataclasses.replace(small.pretrain, epochs=120) == paper.pretrain


def test_stages_have_an_order():
    with pytest.raises(ValueError, match=r"stages=\('finetune', 'pretrain'\): expected"):
        PrototypeSystem(stages=("finetune", "pretrain"))
