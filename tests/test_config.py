import dataclasses
import json
import typing

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from asdproto.config import (
    ConfigError,
    at_least,
    from_dict,
    override,
    positive,
    to_dict,
)
from asdproto.features import FeatureSettings
from asdproto.systems import KINDS, PRESETS, preset, system_class
from asdproto.systems.prototype import PrototypeSystem
from asdproto.training.stage import Finetuning, Pretraining


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
    # Fields that depend on each other are assigned at once.
    texts = ["features.n_fft=4096", "features.hop_length=2048"]
    for order in (texts, texts[::-1]):
        features = override(PrototypeSystem(), order).features
        assert (features.n_fft, features.hop_length) == (4096, 2048)


def test_a_wrong_override_says_what_was_wanted():
    for assignment, message in (
        ("pretrain.epoch=3", r"unknown field pretrain\.epoch; did you mean pretrain\.epochs\?"),
        ("pretrain.epochs", "is no assignment"),
        ("pretrain.epochs=many", r"pretrain\.epochs='many': expected int, found str"),
        ("pretrain=3", r"assign pretrain\.FIELD=value"),
        ("pretrain.epochs.more=3", r"pretrain\.epochs is a value"),
        ("encoder.dtype=bfloat", "did you mean bfloat16"),
        ("finetune.mix_range=(0.9, 0.1)", r"^finetune\.mix_range=.*low <= high"),
        ("finetune.mix_range=(0, 2)", r"expected numbers in \[0, 1\]"),
        ("pretrain.temperature=" + 400 * "9", "expected a number in"),
        ("pretrain.temperature=" + 100_000 * "-" + "1", "expected float, found str"),
        ("pretrain..epochs=3", "unknown field pretrain.''. Available: epochs"),
        ("x\n" * 9999 + "=3", r"unknown field 'x\\nx\\n"),
        ("features.n_fft=255", "^features.n_fft must be even"),
        ("stages=()", r"^stages=\(\): expected one or both"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            override(PrototypeSystem(), [assignment])
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 400


def fields_of(config, where=""):
    """Dotted name, owner and name of every field, nested ones too."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{where}{field.name}.")
        else:
            yield f"{where}{field.name}", value, typing.get_type_hints(type(config))[field.name]


EVERY_FIELD = [(kind, *field) for kind in KINDS for field in fields_of(preset(kind, "small"))]
# No number of a configuration is any of these.
NO_NUMBER = ("-1", "-1e-9", "10**12", "1000000000000", "1e999", "-1e999", "1e999-1e999", "xx")
NO_ZERO = ("width", "crop", "hop", "batch", "batch_size", "ways", "shots", "n_mels", "n_fft",
           "hop_length", "sample_rate", "temperature", "neighbors", "quantile", "alpha", "head",
           "stem", "dim", "sub_clusters", "components", "context", "power", "floor", "fmax",
           "margin_scale", "mpe_ratio", "learning_rate", "prototype_crops")  # fmt: skip


# One of each class of systems.
@pytest.mark.parametrize("kind", {system_class(kind): kind for kind in KINDS}.values())
def test_the_range_of_every_field_is_checked(kind):
    system = preset(kind, "small")
    tried = 0
    for name, value, hint in fields_of(system):
        wrong = ["[[]]", "{}", "xx", "b'x'"]
        if isinstance(value, bool):
            wrong += ["1", "0", "None", "yes"]
        elif isinstance(value, int | float) or hint in (float | None, tuple[float, float] | None):
            wrong += [*NO_NUMBER, "True"]
            wrong += ["None"] if isinstance(value, int | float) and hint in (int, float) else []
            wrong += ["0"] if name.rpartition(".")[2] in NO_ZERO else []
            wrong += ["1.5"] if hint is int else []
        elif isinstance(value, tuple):
            wrong += ["()", "(-1,)", "((-1, 1),)", "(1e999,)", "((1e999, 1),)", "None", "3"]
        else:
            assert typing.get_origin(hint) is typing.Literal, name
            wrong += ["None", "3", f"'{value}x'"]
        for text in wrong:
            with pytest.raises(ConfigError) as caught:
                override(system, [f"{name}={text}"])
            assert str(caught.value).startswith(name.rpartition(".")[0]), text
            assert name.rpartition(".")[2] in str(caught.value)
            tried += 1
    assert tried > 60


def test_presets_and_the_edges_of_ranges_are_taken():
    for kind in KINDS:
        for name in PRESETS:
            system = preset(kind, name)
            assert from_dict(type(system), json.loads(json.dumps(to_dict(system)))) == system
    for field, value in {"momentum": 0, "mpe_ratio": 1, "warmup": 0}.items():
        assert getattr(Pretraining(**{field: value}), field) == value
    assert Finetuning(mix_range=(1, 1)).mix_range == (1, 1)
    assert FeatureSettings(fmax=8000.0).top == 8000.0


def test_what_a_program_passes_is_checked_like_a_text():
    for field, value in {"scale": "Mel", "n_mels": True, "n_fft": 512.0, "power": np.nan}.items():
        with pytest.raises(ConfigError, match=f"^{field}="):
            FeatureSettings(**{field: value})
    with pytest.raises(ConfigError, match=r"^features\.n_mels=0: expected a number in \[1, 4096\]"):
        from_dict(PrototypeSystem, {"features": {"n_mels": 0}})
    with pytest.raises(ConfigError, match=r"unknown field encoder\.with"):
        from_dict(PrototypeSystem, {"encoder": {"with": 3}})


def test_ends_of_intervals():
    found = [number in positive(1) for number in (0, 5e-324, 1, 1.0000000000000002, np.nan)]
    assert found == [False, True, True, False, False]
    assert [number in at_least(0, below=1) for number in (0, 0.9, 1)] == [True, True, False]


def test_unknown_names_and_the_nearest():
    with pytest.raises(ConfigError, match=r"'PROTOTPYE' is unknown; did you mean prototype\? "):
        system_class("PROTOTPYE")
    with pytest.raises(ConfigError, match=r"'smal' is unknown; did you mean small\? "):
        preset("gmm", "smal")


def test_a_path_to_no_system_is_one_clear_line():
    for path, message in (
        ("experiments.rivals.stgram:STgramSystm", "found no 'STgramSystm' .* mean STgramSystem"),
        ("experiments.rival.stgram:STgramSystem", "no module 'experiments.rival'.* a checkout"),
        ("nowhere.py:System()", "is no path; expected package.module:name"),
        ("json:dumps", "found no dataclass"),
        ("asdproto.systems.autoencoder:AutoEncoderSystem", "found its kind to be 'autoencoder'"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            system_class(path)
        assert "\n" not in str(caught.value)


TEXTS = st.text(max_size=20) | st.text("()[]-+0.59eEj'\"_x, ", max_size=20)


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    st.one_of(
        st.text(max_size=60),
        st.builds("{0}={1}".format, st.sampled_from([field[1] for field in EVERY_FIELD]), TEXTS),
        st.builds("{0}.{1}={2}".format, st.sampled_from(["pretrain", "x", ""]), TEXTS, TEXTS),
    )
)
def test_any_override_is_taken_or_refused_in_one_line(assignment):
    system = PrototypeSystem()
    changed, refusal = system, ""
    try:
        changed = override(system, [assignment])
    except ConfigError as error:
        refusal = str(error)
    if refusal:
        assert len(refusal.splitlines()) == 1
        assert len(refusal) < 500
        assert refusal.isprintable()
        return
    # What is taken survives json, and says the same again.
    assert from_dict(PrototypeSystem, json.loads(json.dumps(to_dict(changed)))) == changed
    name, _, _ = assignment.partition("=")
    value = {field: value for field, value, _ in fields_of(changed)}[name.strip()]
    assert override(system, [f"{name}={value!r}"]) == changed


def test_the_default_is_the_paper():
    """Section 4.2, number by number."""
    system = PrototypeSystem()
    features, stage1, stage2 = system.features, system.pretrain, system.finetune
    assert (features.n_mels, features.n_fft, features.hop_length) == (128, 1024, 512)
    assert (features.sample_rate, features.scale) == (16000, "inverted")
    assert (system.encoder.width, system.encoder.crop) == (64, 64)
    assert system.encoder.attention == "time-frequency"
    for stage in (stage1, stage2):
        assert (stage.momentum, stage.weight_decay, stage.temperature) == (0.9, 5e-5, 0.07)
    assert (stage1.batch_size, stage1.epochs) == (32, 120)
    assert stage1.learning_rates == ((0.1, 50), (0.01, 40), (0.001, 30))
    assert (stage1.sub_prototypes, stage1.mpe_ratio) == (1, 0.25)
    assert (stage2.ways, stage2.shots, stage2.epochs) == (10, 10, 50)
    assert stage2.learning_rates == ((0.01, 30), (0.001, 20))
    assert stage2.mix_range == (0.25, 0.5)
    assert system.score.kind == "mahalanobis"
