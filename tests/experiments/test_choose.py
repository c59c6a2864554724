import dataclasses
import json

import numpy as np
import pytest
import soundfile

from asdproto.config import ConfigError
from asdproto.data.dcase import Clip
from asdproto.data.table import write_table
from experiments import choose
from experiments.perturb import COPIES, PERTURBATIONS, STRENGTHS, evaluate, fold_of, perturb

RATE = 16000


def noise(seed, seconds=1.0):
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    hum = 0.1 * np.sin(2 * np.pi * 440 * time)
    return (hum + 0.05 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Eight normal clips of two domains to train on, and an anomaly that nobody may look at."""
    root = tmp_path_factory.mktemp("choose") / "pumps"
    root.mkdir()
    clips = []
    for index in range(8):
        domain = "source" if index < 6 else "target"
        soundfile.write(root / f"{index}.wav", noise(index), RATE)
        clips.append(Clip(f"{index}.wav", "pump", "00", domain, "train", "normal", ""))
    clips.append(Clip("not_there.wav", "pump", "00", "source", "test", "anomaly", ""))
    write_table(root / "clips.csv", clips)
    return root


@pytest.mark.parametrize("name", [n for n in PERTURBATIONS if n != "stretch"])
def test_a_copy_is_changed_and_the_same_every_time(name):
    audio = noise(0)
    copy = perturb(name, audio, RATE, "a.wav")
    assert copy.shape == audio.shape
    assert copy.dtype == np.float32
    assert np.abs(copy).max() <= 1
    np.testing.assert_array_equal(copy, perturb(name, audio, RATE, "a.wav"))
    assert not np.allclose(copy, audio, atol=1e-3)
    assert not np.array_equal(copy, perturb(name, audio, RATE, "b.wav"))


@pytest.mark.parametrize("name", [n for n in PERTURBATIONS if n not in ("stretch", "shift")])
def test_a_plain_copy_is_further_away_than_a_faint_one(name):
    audio = noise(0)
    faint, plain = (
        np.abs(np.fft.rfft(perturb(name, audio, RATE, "a.wav", strength=s)) - np.fft.rfft(audio))
        for s in STRENGTHS.values()
    )
    assert np.square(plain).sum() > 2 * np.square(faint).sum()


def test_level_changes_nothing_else():
    audio = noise(0)
    ratio = perturb("level", audio, RATE, "a.wav") / audio
    # float32 against float64 arithmetic
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert 3 <= abs(20 * np.log10(ratio[0])) <= 6


def test_a_shift_moves_the_tone_and_keeps_the_top_of_the_spectrum():
    audio = noise(0)
    before, after = (
        np.abs(np.fft.rfft(x)) for x in (audio, perturb("shift", audio, RATE, "a.wav"))
    )
    assert before.argmax() == 440
    assert 4 <= abs(after.argmax() - 440) <= 18
    plain = np.abs(np.fft.rfft(perturb("shift", audio, RATE, "a.wav", strength=2.5)))
    assert abs(plain.argmax() - 440) == pytest.approx(2.5 * abs(after.argmax() - 440), abs=2)
    # float32 samples
    np.testing.assert_allclose(after[7300:], before[7300:], rtol=1e-2, atol=1e-2)


def test_folds_are_even_in_every_section_and_domain():
    clips = [
        Clip(f"{m}{s}{i}.wav", m, s, "source" if i < 8 else "target", "train", "normal", "")
        for m in ("fan", "pump")
        for s in ("00", "01")
        for i in range(12)
    ]
    fold = fold_of(clips, 4, None)
    for machine in ("fan", "pump"):
        for section in ("00", "01"):
            for domain, each in (("source", 2), ("target", 1)):
                rows = [
                    fold[i]
                    for i, c in enumerate(clips)
                    if (c.machine_type, c.section, c.domain) == (machine, section, domain)
                ]
                assert np.bincount(rows, minlength=4).tolist() == [each] * 4
    mixed = [dataclasses.replace(c, attributes=f"speed_{int(c.path[-5]) // 2}") for c in clips]
    together = fold_of(mixed, 4, None, by="conditions")
    for clip, number in zip(mixed, together, strict=True):
        of_condition = {
            n
            for c, n in zip(mixed, together, strict=True)
            if (c.machine_type, c.section, c.domain, c.attributes)
            == (clip.machine_type, clip.section, clip.domain, clip.attributes)
        }
        assert of_condition == {number}
    assert set(together) == {0, 1, 2, 3}
    # Of one condition nothing can be kept out.
    assert set(fold_of(clips, 4, None, by="conditions")) == {-1}
    only = fold_of(clips, 4, ["pump"])
    assert {c.machine_type for c, f in zip(clips, only, strict=True) if f < 0} == {"fan"}


def test_a_copy_that_is_only_louder_is_no_fault():
    normal = Clip("a.wav", "pump", "00", "source", "test", "normal", "")
    kinds = np.repeat(np.arange(-1, len(COPIES)), 10)
    clips = [normal if kind < 0 else dataclasses.replace(normal, state="anomaly") for kind in kinds]
    louder = np.array([kind >= 0 and COPIES[kind][1] == "level" for kind in kinds])
    figures = evaluate(louder.astype(float), clips, kinds)
    assert figures["level"] == 1.0
    assert figures["mean"] == figures["source"] == figures["band"] == 0.5


def test_settings_are_compared_without_the_test_clips(collection, tmp_path):
    settings = ["knn", "knn, level off", "knn and gmm"]
    command = ["--data", str(collection), "--workdir", str(tmp_path), "--folds", "2"]
    result = choose.main([*command, "--seeds", "0", "--settings", *settings])
    table = result["tables"]["all"]
    assert list(table) == settings
    assert table["knn"]["difference"] == 0
    assert len(table["knn"]["cells"]) == 2
    # What takes the level off cannot hear a change of level, and hears a band as before.
    assert table["knn, level off"]["means"]["level"] < table["knn"]["means"]["level"]
    assert table["knn"]["means"]["band"] > 0.5
    written = json.loads((tmp_path / "choose.json").read_text())
    assert written["tables"] == result["tables"]
    assert "| knn, level off |" in (tmp_path / "choose.md").read_text()
    # Finished cells are read back, not made again.
    cells = sorted((tmp_path / "cells").iterdir())
    before = [cell.stat().st_mtime_ns for cell in cells]
    choose.main([*command, "--seeds", "0", "--settings", *settings])
    assert [cell.stat().st_mtime_ns for cell in cells] == before


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="'nope' is unknown"):
        choose.parse_settings(["nope"])
    setting = choose.parse_settings(["slow:pretrain.epochs=3;score.kind=knn"])["slow"]
    assert setting.overrides == ("pretrain.epochs=3", "score.kind=knn")
    assert setting.trained_as == ("pretrain.epochs=3",)
