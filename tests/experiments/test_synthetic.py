"""The synthetic set: its layout, what depends on what, and that a fault is a change."""

import csv

import numpy as np
import pytest
import soundfile

from asdproto.config import ConfigError
from asdproto.errors import DataError
from experiments.synthetic import FAULTS, MACHINES, __main__, synthesize
from experiments.synthetic.facts import attribute_strings, values_of
from experiments.synthetic.machines import machine_sound, recording
from experiments.synthetic.sound import RATE, stream

SIZE = {"clips": 5, "target_clips": 2, "test_clips": 2, "seconds": 1.0, "workers": 1}
NAME = (0, "bearing", "00", "source", "test", "anomaly", 0)


def test_the_layout_is_that_of_the_challenge(tmp_path):
    root = synthesize(tmp_path / "set", machines=["fan", "valve"], sections=["02"], **SIZE)
    files = sorted(root.glob("*/*/*.wav"))
    assert len(files) == 2 * (5 + 2 + 4 * 2)
    names = [path.name for path in files if path.parts[-3:-1] == ("fan", "train")]
    assert names[0] == "section_02_source_train_normal_0000_n-lv_L2.wav"
    audio, rate = soundfile.read(files[0], dtype="float32")
    assert (audio.shape, rate) == ((RATE,), RATE)
    assert 1e-3 < np.std(audio) < 0.3
    rows = list(csv.reader((root / "valve" / "attributes_02.csv").open()))
    assert rows[0] == ["file_name", "d1p", "d1v", "d2p", "d2v"]
    assert len(rows) == 1 + 15
    faults = list(csv.DictReader((tmp_path / "set" / "faults.csv").open()))
    assert len(faults) == 8
    assert {row["fault"] for row in faults} <= set(FAULTS)
    assert all("anomaly" in row["file"] for row in faults)


def test_a_set_is_made_once_and_more_clips_do_not_change_the_others(tmp_path, capsys):
    few = synthesize(tmp_path / "few", machines=["bearing"], sections=["00"], **SIZE)
    before = {path.name: path.read_bytes() for path in few.glob("bearing/*/*.wav")}
    time = next(few.glob("bearing/*/*.wav")).stat().st_mtime_ns
    synthesize(tmp_path / "few", machines=["bearing"], sections=["00"], **SIZE)
    assert next(few.glob("bearing/*/*.wav")).stat().st_mtime_ns == time
    # By the command, in two processes, with more clips.
    command = ["--machines", "bearing", "--sections", "00", "--clips", "60", "--target-clips", "2"]
    command += ["--test-clips", "2", "--seconds", "1", "--workers", "2"]
    __main__.main([str(tmp_path / "more"), *command])
    assert capsys.readouterr().out == f"written: {tmp_path / 'more' / 'dev_data'}\n"
    after = {p.name: p.read_bytes() for p in (tmp_path / "more").glob("dev_data/bearing/*/*.wav")}
    assert before.items() <= after.items()
    other = synthesize(tmp_path / "other", machines=["bearing"], sections=["00"], seed=1, **SIZE)
    assert all(path.read_bytes() != before[path.name] for path in other.glob("bearing/*/*.wav"))
    with pytest.raises(DataError, match="a set of other settings"):
        synthesize(tmp_path / "few", machines=["bearing"], sections=["00"], seed=1, **SIZE)


def test_what_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"machine type 'fen'.*did you mean fan"):
        synthesize(tmp_path / "set", machines=["fen"])
    with pytest.raises(ConfigError, match="expected some, of 1 to 600 s"):
        synthesize(tmp_path / "set", seconds=0.5)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("machine", MACHINES)
def test_every_condition_and_every_fault_is_another_sound(machine):
    texts = attribute_strings(machine, "00", "source")
    conditions = [dict([text.split("_")[:2]]) for text in texts]
    sounds = [
        machine_sound(machine, "00", attributes, RATE, stream("test"), fault=fault, amount=1.0)
        for attributes, fault in [(c, "") for c in conditions]
        + [(conditions[0], f) for f in FAULTS]
    ]
    spectra = [np.abs(np.fft.rfft(sound)) for sound in sounds]
    for sound in sounds:
        assert np.isfinite(sound).all()
        np.testing.assert_allclose(np.mean(sound**2), 1, rtol=1e-3)  # a fault is not heard by level
    faulty = spectra[len(conditions) :]
    assert all(np.abs(one - spectra[0]).max() > 1 for one in faulty)


def test_values_are_in_order():
    assert values_of("gearbox", "wt")[:3] == ("0", "30", "50")
    assert values_of("ToyCar", "spd") == ("28V", "31V", "34V", "37V", "40V")
    assert values_of("fan", "m-n") == ("W", "X", "Y", "Z")


def test_a_fault_changes_a_clip_less_than_its_surroundings_do():
    attributes = {"vel": "14"}
    clips = {
        fault: recording("bearing", "00", "source", attributes, 4 * RATE, NAME, fault=fault)
        for fault in ("", *FAULTS)
    }
    other = recording("bearing", "00", "source", attributes, 4 * RATE, (*NAME[:-1], 1))

    def spectrum(audio):
        power = np.abs(np.fft.rfft(audio)[: 4 * 7600]) ** 2
        return 10 * np.log10(power.reshape(-1, 400).mean(axis=1))  # bands of 100 Hz

    between = np.abs(spectrum(other) - spectrum(clips[""])).mean()
    for fault in FAULTS:
        assert 0 < np.abs(spectrum(clips[fault]) - spectrum(clips[""])).mean() < between
