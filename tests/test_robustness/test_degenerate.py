"""Data that leave little to learn: trained and scored all the same, and said; never nan unsaid."""

import dataclasses
import itertools
import json
import math
import warnings

import numpy as np
import pytest

from asdproto.data.dcase import Clip
from asdproto.features import FeatureSettings
from asdproto.results.run_folder import SCORES, read_figures, read_scores
from asdproto.results.tables import print_table
from asdproto.scoring.metrics import harmonic_mean
from asdproto.systems.prototype import ScoreConfig
from asdproto.systems.run import train_run, train_yardsticks
from asdproto.systems.system import EqualEmbeddingsWarning
from asdproto.training.devices import RunOptions, use_devices
from asdproto.training.loop import CollapseWarning
from tests.stores import write_store
from tests.training import tiny

FEATURES = FeatureSettings(n_mels=tiny.MELS, n_fft=64, hop_length=32)
FRAMES = 20


def system(kind="mahalanobis", **stage):
    """A system that trains in no time: in episodes, or by ``stage`` in random batches."""
    pretrain = dataclasses.replace(tiny.PRETRAIN, **stage)
    return tiny.System(
        features=FEATURES,
        pretrain=pretrain,
        finetune=dataclasses.replace(tiny.FINETUNE, shots=2, epochs=1),
        score=ScoreConfig(kind=kind),
        stages=("pretrain",) if stage else ("finetune",),
    )


def train_clips(section="00", domains=("source", "target"), classes=2, of=3):
    names = itertools.product(domains, range(classes), range(of))
    return [
        Clip(f"fan/train/{section}_{d}_{c}_{i}.wav", "fan", section, d, "train", "normal", f"v_{c}")
        for d, c, i in names
    ]


def scored_clips(section="00", domains=("source", "target"), states=("normal", "anomaly")):
    return [
        Clip(f"fan/test/{section}_{d}_{s}_{i}.wav", "fan", section, d, "test", s, "")
        for d in domains
        for s in states
        for i in range(2)
    ]


def features_of(clips):
    """Noise about a spectrum that belongs to the section and the class."""
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((len(clips), FRAMES, tiny.MELS)).astype(np.float32)
    for array, clip in zip(arrays, clips, strict=True):
        level = sum(map(ord, clip.section + clip.attributes)) % tiny.MELS
        array[:, level] += 6
        array[:, 3] += 5 * (clip.state == "anomaly")
    return arrays


def run(folder, clips, features=None, made=None):
    """Figures by system, what was warned of, and every score."""
    features = features_of(clips) if features is None else features
    made = made or system()
    store = write_store(folder / "s", features, clips, settings=FEATURES, dtype="float32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = RunOptions(folder / "run", use_devices(1))
        results = train_run(made, store, options, seeds=[0])
        results["systems"] |= train_yardsticks(made, store, options)
    scores = {
        path.name: [row.score for row in read_scores(path)] if (path / SCORES).exists() else []
        for path in (folder / "run" / "scores").iterdir()
    }
    assert {*made.names, "spectral-knn"} <= scores.keys()
    assert all(np.isfinite(found).all() for found in scores.values())
    return results["systems"], caught, scores


def said(caught, category=UserWarning):
    return "\n".join(str(one.message) for one in caught if issubclass(one.category, category))


def test_sections_of_one_clip_one_class_and_one_domain(tmp_path):
    """All in one collection: scored, and what is undefined is named and in no mean."""
    clips = [
        *train_clips(),
        *train_clips("01", classes=1, of=1),
        *train_clips("02", domains=("source",), classes=1),
        *(clip for section in ("00", "01") for clip in scored_clips(section)),
        *scored_clips("02", domains=("source",)),
    ]
    features = features_of(clips)
    features[:3] = features[0, 0]  # one class is constant, and one band
    features[:, :, 5] = -80
    figures, caught, _ = run(tmp_path, clips, features)
    assert not said(caught, EqualEmbeddingsWarning)
    assert "undefined figures are left out of the means" in said(caught)
    assert "fan section 02" in said(caught)
    for one in figures.values():
        assert 0 <= one["overall"] <= 1
        sections = one["machines"]["fan"]["sections"]
        defined = [sections[section]["target_auc"] for section in ("00", "01")]
        assert one["target_auc"] == pytest.approx(harmonic_mean(defined), abs=1e-9)
        assert math.isnan(sections["02"]["target_auc"])
        assert any("section 02" in text for text in one["undefined"])


def test_no_anomalies_and_no_test_clips(tmp_path, capsys):
    figures, _, scores = run(tmp_path / "untested", train_clips())
    assert (figures, scores["finetune"]) == ({}, [])
    clips = [*train_clips(), *scored_clips(states=("normal",))]
    figures, caught, scores = run(tmp_path, clips)
    assert "undefined figures are left out of the means" in said(caught)
    assert len(scores["finetune"]) == 4
    assert math.isnan(figures["finetune"]["overall"])
    # Written as null and shown as a dash, not as a number.
    path = tmp_path / "run" / "scores" / "finetune" / "results.json"
    assert json.loads(path.read_text())["overall"] is None
    assert math.isnan(read_figures(path)["overall"])
    print_table({"systems": figures})
    assert "nan" not in capsys.readouterr().out


def test_embeddings_that_are_all_the_same(tmp_path):
    """Refused where a covariance is needed; warned of where not."""
    clips = [*train_clips(), *scored_clips()]
    features = np.full((len(clips), FRAMES, tiny.MELS), -80, np.float32)
    with pytest.raises(ValueError, match="its 12 training embeddings are all the same"):
        run(tmp_path / "no", clips, features)
    _, caught, _ = run(tmp_path, clips, features, system(kind="knn"))
    words = said(caught, EqualEmbeddingsWarning)
    assert "finetune, seed 0: all 12 training clips have one embedding" in words
    assert "Look for features that are constant" in words


def test_a_loss_at_zero(tmp_path):
    """Two classes that nobody could mistake."""
    clips = [*train_clips(domains=("source",), of=6), *scored_clips(domains=("source",))]
    made = system(temperature=0.005, epochs=12, learning_rates=((0.1, 12),), sub_prototypes=0)
    _, caught, _ = run(tmp_path, clips, made=made)
    assert "pretrain: the loss reached" in said(caught, CollapseWarning)
    assert "nothing is left to learn from" in said(caught, CollapseWarning)
