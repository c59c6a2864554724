import dataclasses
import json

import pytest

from asdproto.config import ConfigError, from_dict, override, to_dict
from asdproto.systems.prototype import PrototypeSystem


def test_overrides_reach_every_level_and_kind():
    system = override(
        PrototypeSystem(),
        [
            "pretrain.epochs=7",
            "pretrain.temperature=1",
            "finetune.mix_range=(0.5, 0.75)",
            "finetune.stop_gradient=true",
            "encoder.dtype=bfloat16",
            "pretrain.learning_rates=[(0.2, 3), (0.02, 4)]",
            "pretrain.epochs=8",
        ],
    )
    assert system.pretrain.epochs == 8
    assert system.pretrain.temperature == 1.0
    assert isinstance(system.pretrain.temperature, float)
    assert system.finetune.mix_range == (0.5, 0.75)
    assert system.finetune.stop_gradient is True
    assert system.encoder.dtype == "bfloat16"
    assert system.pretrain.learning_rates == ((0.2, 3), (0.02, 4))
    assert override(system, ["finetune.mix_range=None"]).finetune.mix_range is None
    assert system.score == PrototypeSystem().score


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("pretrain.epoch=3", r"pretrain\.epoch is no field; did you mean pretrain\.epochs\?"),
        ("pretrian.epochs=3", "did you mean pretrain"),
        ("pretrain.epochs", "is no assignment"),
        ("pretrain.epochs=many", r"pretrain\.epochs='many': expected int, found str"),
        ("pretrain.epochs=2.5", "expected int, found float"),
        ("pretrain.epochs=True", "expected int, found bool"),
        ("pretrain=3", "pretrain holds several fields"),
        ("pretrain.epochs.more=3", r"pretrain\.epochs is a value"),
        ("encoder.dtype=bfloat", "did you mean 'bfloat16'"),
        ("finetune.mix_range=(0.5,)", "expected"),
        ("finetune.mix_range=(0.9, 0.1)", r"mix_range.*low <= high"),
    ],
)
def test_a_wrong_override_says_what_was_wanted(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(PrototypeSystem(), [assignment])


def test_a_configuration_survives_json():
    system = override(PrototypeSystem(), ["finetune.mix_range=None", "encoder.width=8"])
    again = from_dict(PrototypeSystem, json.loads(json.dumps(to_dict(system))))
    assert again == system
    with pytest.raises(ConfigError, match=r"encoder\.with is no field"):
        from_dict(PrototypeSystem, {"encoder": {"with": 3}})


def test_the_default_is_the_paper():
    """Section 4.2, number by number."""
    system = PrototypeSystem()
    features, stage1, stage2 = system.features, system.pretrain, system.finetune
    assert (features.n_mels, features.n_fft, features.hop_length, features.sample_rate) == (
        128,
        1024,
        512,
        16000,
    )
    assert features.scale == "inverted"
    assert (system.encoder.width, system.encoder.crop) == (64, 64)
    assert system.encoder.attention == "time-frequency"
    for stage in (stage1, stage2):
        assert (stage.momentum, stage.weight_decay, stage.temperature) == (0.9, 5e-5, 0.07)
    assert (stage1.sampler, stage1.batch_size, stage1.epochs) == ("random", 32, 120)
    assert stage1.learning_rates == ((0.1, 50), (0.01, 40), (0.001, 30))
    assert (stage1.sub_prototypes, stage1.mpe_ratio) == (1, 0.25)
    assert (stage2.sampler, stage2.ways, stage2.shots, stage2.epochs) == ("episodes", 10, 10, 50)
    assert stage2.learning_rates == ((0.01, 30), (0.001, 20))
    assert stage2.mix_range == (0.25, 0.5)
    assert system.score.kind == "mahalanobis"
    assert dataclasses.is_dataclass(system)
