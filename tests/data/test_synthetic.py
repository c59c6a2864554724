"""The synthetic set: its names, its bytes, its physics, and every way to stop it."""

import dataclasses
import inspect
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import soundfile

from asdproto.data.attributes import disagreement, read_attributes
from asdproto.data.dcase import parse_name, scan
from asdproto.data.synthetic import FAULTS, MACHINES, SECTIONS, SIZES, rooms, synthesize, writer
from asdproto.data.synthetic.facts import attribute_strings
from asdproto.data.synthetic.physics import RATE, to_sound
from asdproto.data.synthetic.plan import dry_machine, make_context, plan_group, render
from asdproto.errors import DataError
from asdproto.files import locked

# Defects pass this often in a turn of the shaft.
OUTER_RACE_RATE, INNER_RACE_RATE = 3.58, 5.42
TINY = {"clips": 2, "target_clips": 1, "test_clips": 1, "seconds": 1.0, "progress": False}


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != writer.MANIFEST
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """All machine types, all sections, one second a clip."""
    out = tmp_path_factory.mktemp("synthetic") / "set"
    assert synthesize(out, workers=1, **TINY) == out / "dev_data"
    return out


# --- names


def test_attributes_are_those_of_the_real_set(real_data):
    real = {}
    for line in (real_data / "dcase2022/dev_test_filenames.txt").read_text().split():
        name = parse_name(line)
        key = (name.machine_type, name.section, name.domain)
        real.setdefault(key, set()).add(name.attributes)
    made = {
        (machine, section, domain): attribute_strings(machine, section, domain)
        for machine in MACHINES
        for section in SECTIONS
        for domain in ("source", "target")
    }
    assert {key: sorted(strings) for key, strings in made.items()} == {
        key: sorted(strings) for key, strings in real.items()
    }


def test_source_and_target_share_no_attributes():
    for machine in MACHINES:
        for section in SECTIONS:
            source, target = (
                set(attribute_strings(machine, section, domain)) for domain in ("source", "target")
            )
            assert source
            assert target
            assert not source & target


def test_the_set_is_in_the_layout_of_the_real_one(small):
    clips = scan(small / "dev_data")
    assert len(clips) == len(MACHINES) * len(SECTIONS) * (2 + 1 + 4)
    for machine in MACHINES:
        own = [clip for clip in clips if clip.machine_type == machine and clip.section == "01"]
        counted = sorted((clip.split, clip.domain, clip.state) for clip in own)
        assert counted == [
            ("test", "source", "anomaly"),
            ("test", "source", "normal"),
            ("test", "target", "anomaly"),
            ("test", "target", "normal"),
            ("train", "source", "normal"),
            ("train", "source", "normal"),
            ("train", "target", "normal"),
        ]
        for clip in own:
            assert clip.attributes in attribute_strings(machine, "01", clip.domain)


def test_files_are_what_the_field_reads(small):
    for clip in scan(small / "dev_data")[::10]:
        info = soundfile.info(small / "dev_data" / clip.path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert info.frames == 16000


def test_attribute_files_agree_with_the_names_and_list_what_varies(small):
    for machine in MACHINES:
        clips = {clip.name: clip for clip in scan(small / "dev_data" / machine)}
        rows = [
            row
            for file in sorted((small / "dev_data" / machine).glob("attributes_*.csv"))
            for row in read_attributes(file)
        ]
        assert sorted(row.file.rpartition("/")[2] for row in rows) == sorted(clips)
        for row in rows:
            clip = clips[row.file.rpartition("/")[2]]
            assert row.file == f"{machine}/{clip.path}"
            assert row.pairs
            assert disagreement(row, clip.attributes)[0] == ""
    toys = (small / "dev_data/ToyCar/attributes_01.csv").read_text()
    assert "speed,40V,noise,1" in toys
    assert ",mic," not in toys  # one microphone in this section
    ragged = (small / "dev_data/valve/attributes_02.csv").read_text().splitlines()
    assert ragged[0] == "file_name,d1p,d1v,d2p,d2v"
    assert {len(line.split(",")) for line in ragged[1:]} == {3, 5}


def test_faults_are_listed_for_the_anomalies_alone(small):
    lines = (small / "faults.csv").read_text().splitlines()
    assert lines[0] == "file,fault,severity_db"
    listed = {}
    for line in lines[1:]:
        file, fault, severity = line.split(",")
        listed[file] = fault
        assert -10 <= float(severity) <= 0
    anomalies = {
        f"dev_data/{clip.path}": clip.machine_type
        for clip in scan(small / "dev_data")
        if clip.state == "anomaly"
    }
    assert listed.keys() == anomalies.keys()
    assert all(fault in FAULTS[anomalies[file]] for file, fault in listed.items())


def test_attributes_go_round_evenly():
    orders = plan_group("bearing", "00", "target", "train", "normal", 16, seed=0)
    attributes = [order.clip.attributes for order in orders]
    assert all(attributes.count(one) == 2 for one in set(attributes))
    assert len(set(attributes[:8])) == 8


# --- bytes


def test_bytes_depend_on_the_seed_and_the_name_alone(small, tmp_path):
    settings = {**TINY, "clips": 3, "target_clips": 2, "test_clips": 2}
    pooled = tmp_path / "pooled"
    synthesize(pooled, machines=["valve", "fan"], workers=2, **settings)
    found, expected = contents(pooled / "dev_data"), contents(small / "dev_data")
    same = [path for path in found if path.endswith(".wav") and path in expected]
    assert len(same) == 2 * 3 * 7
    for path in same:
        assert found[path] == expected[path], path
    other = tmp_path / "other"
    synthesize(other, machines=["fan"], seed=1, workers=1, **TINY)
    for path, content in contents(other / "dev_data/fan/train").items():
        assert content != expected[f"fan/train/{path}"]


@pytest.mark.parametrize("machine", MACHINES)
def test_no_two_clips_of_a_class_are_alike(machine):
    strings = attribute_strings(machine, "00", "source")
    orders = plan_group(machine, "00", "source", "train", "normal", len(strings) + 1, seed=0)
    assert orders[0].clip.attributes == orders[-1].clip.attributes
    first, second = (np.float64(render(order, 1.0)) for order in (orders[0], orders[-1]))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5
    # The same machine in the same place, though: a few dB apart, not tens.
    assert abs(20 * np.log10(first.std() / second.std())) < 6


def test_severity_raises_the_faults_alone(small, tmp_path):
    out = tmp_path / "out"
    synthesize(out, workers=1, machines=["valve"], severity=15.0, **TINY)
    there, here = contents(small), contents(out)
    for path, content in here.items():
        if path.endswith(".wav"):
            assert (content != there[path]) == ("_anomaly_" in path), path

    def listed(files):
        rows = [row.split(",") for row in files["faults.csv"].decode().splitlines()]
        return {file: (fault, float(severity)) for file, fault, severity in rows[1:]}

    mild, severe = listed(there), listed(here)
    for file, (fault, severity) in severe.items():
        assert (fault, severity) == (mild[file][0], pytest.approx(mild[file][1] + 15))


def test_sizes():
    # Training and test clips of a section; bench has those of the real set.
    counts = {
        name: (size.clips + size.target_clips, 4 * size.test_clips, size.seconds)
        for name, size in SIZES.items()
    }
    assert counts == {"small": (60, 100, 6.0), "bench": (1000, 200, 10.0)}
    defaults = inspect.signature(synthesize).parameters
    assert {name: defaults[name].default for name in SIZES["small"]._fields} == SIZES[
        "small"
    ]._asdict()


# --- stopping and going on


def test_an_interrupted_set_goes_on_where_it_stopped(tmp_path, monkeypatch):
    settings = {**TINY, "clips": 20, "machines": ["bearing"], "sections": ["02"]}
    whole, out = tmp_path / "whole", tmp_path / "out"
    synthesize(whole, workers=1, **settings)
    real, made = writer.render, []

    def interrupted(order, seconds):
        if len(made) == 18:
            raise KeyboardInterrupt
        made.append(order.clip.path)
        return real(order, seconds)

    monkeypatch.setattr(writer, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesize(out, workers=1, **settings)
    done = contents(out / "dev_data")
    assert 0 < len([path for path in done if path.endswith(".wav")]) < len(made) + 1
    for path, content in done.items():
        if path.endswith(".wav"):
            assert content == (whole / "dev_data" / path).read_bytes()

    again = []
    monkeypatch.setattr(writer, "render", lambda o, s: again.append(o.clip.path) or real(o, s))
    synthesize(out, workers=1, **settings)
    assert contents(out) == contents(whole)
    assert len(again) == 25 - sum(path.endswith(".wav") for path in done)

    again.clear()
    synthesize(out, workers=1, **settings)
    assert not again
    lost = out / "dev_data" / done.popitem()[0]
    lost.write_bytes(lost.read_bytes()[:1000])  # not our doing, but cheap to mend
    synthesize(out, workers=1, **settings)
    assert contents(out) == contents(whole)
    assert len(again) == 1


def test_a_killed_set_holds_whole_files_only_and_goes_on(tmp_path):
    out = tmp_path / "out"
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from asdproto.data.synthetic import synthesize\n"
        "def go():\n"
        "    synthesize(sys.argv[1], machines=['fan'], sections=['00'], clips=400,\n"
        "               test_clips=0, target_clips=0, seconds=4, workers=2, progress=False)\n"
        "if __name__ == '__main__':\n"
        "    go()\n"
    )
    running = subprocess.Popen([sys.executable, str(script), str(out)])
    train = out / "dev_data/fan/train"
    deadline = time.monotonic() + 120
    while not any(train.glob("section*.wav")) and time.monotonic() < deadline:
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    files = list(train.glob("section*.wav"))
    assert 0 < len(files) < 400
    assert {file.stat().st_size for file in files} == {44 + 2 * 4 * RATE}
    # The workers go with their parent; nothing is written any more.
    time.sleep(1)
    before = {path.name for path in train.iterdir()}
    time.sleep(1)
    assert {path.name for path in train.iterdir()} == before


def test_left_over_parts_are_cleared(small, tmp_path):
    out = tmp_path / "out"
    synthesize(out, machines=["fan"], workers=1, **TINY)
    part = out / "dev_data/fan/train/.section_00.wav.0123abcd"
    part.write_bytes(b"half")
    next((out / "dev_data/fan/test").glob("*.wav")).unlink()
    synthesize(out, machines=["fan"], workers=1, **TINY)
    assert not part.exists()
    names = sorted(path.name for path in out.iterdir())
    assert names == ["dev_data", "faults.csv", writer.MANIFEST]
    name = "dev_data/fan/attributes_01.csv"
    assert (out / name).read_bytes() == (small / name).read_bytes()


# --- refusals


def test_another_set_is_not_mixed_in(small):
    with pytest.raises(DataError, match=r"clips 2, seed 0; expected clips 7, seed 5"):
        synthesize(small, workers=1, **{**TINY, "clips": 7, "seed": 5})
    with pytest.raises(DataError, match=r"machines ToyCar.*expected machines fan\."):
        synthesize(small, machines=["fan"], workers=1, **TINY)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"other things in it \(thesis.tex\)"):
        synthesize(tmp_path, **TINY)
    with pytest.raises(DataError, match="a file"):
        synthesize(tmp_path / "thesis.tex", **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "[]", '{"settings": 3, "finished": true}'])
def test_an_unreadable_record_is_named(tmp_path, content):
    (tmp_path / writer.MANIFEST).write_text(content)
    with pytest.raises(DataError, match=r"synthetic\.json: found no readable record"):
        synthesize(tmp_path, **TINY)


def test_two_at_once_are_kept_apart(tmp_path):
    with (
        locked(tmp_path, writer._LOCK),
        pytest.raises(DataError, match="another process working in it"),
    ):
        synthesize(tmp_path, machines=["fan"], workers=1, **TINY)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machines": ["fna"]}, "unknown machine type 'fna'; expected some of ToyCar, .* mean fan"),
        ({"machines": ["toycar"]}, r"did you mean ToyCar\?"),
        ({"machines": "fan"}, "a list of names, found the single name 'fan'"),
        ({"machines": []}, "no machine type asked for"),
        ({"sections": ["03"]}, "unknown section '03'; expected some of 00, 01, 02"),
        ({"sections": ["0"]}, r"unknown section '0'"),
        ({"clips": -1}, "clips must be at least 0, found -1"),
        ({"clips": 0, "target_clips": 0, "test_clips": 0}, "nothing to make"),
        ({"seconds": 0.5}, "seconds must lie between 1 and 600, found 0.5"),
        ({"seconds": float("nan")}, "seconds must lie"),
        ({"severity": float("nan")}, "severity must lie between -100 and 100 dB, found nan"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_made(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        synthesize(tmp_path / "out", **{**TINY, **change})
    assert not (tmp_path / "out").exists()


# --- physics


def order_of(machine, section, domain, attributes, fault="", severity=0.0, index=0):
    """A clip of given attributes, with a fault or without, all else the same.

    The severity is that of the sound, whatever the level of the machine type's faults.
    """
    group = plan_group(machine, section, domain, "test", "normal", 40, seed=3)
    chosen = [order for order in group if order.clip.attributes == attributes][index]
    return dataclasses.replace(
        chosen, fault=fault, severity=severity - rooms.SETTINGS[machine].fault
    )


def sound(*arguments, seconds=4.0, **more):
    return render(order_of(*arguments, **more), seconds).astype(np.float64) / 32768


def dry(*arguments, seconds=4.0, **more):
    """The machine without room and noise."""
    context = make_context(order_of(*arguments, **more), seconds)
    return to_sound(dry_machine(context), context.grid).astype(np.float64)


def envelope_spectrum(x, low, high):
    """Spectrum of the envelope within a band, without its mean: frequencies and amplitudes."""
    sos = scipy.signal.butter(4, [low, high], "bandpass", fs=RATE, output="sos")
    envelope = np.abs(scipy.signal.hilbert(scipy.signal.sosfiltfilt(sos, x)))
    spectrum = np.abs(np.fft.rfft((envelope - envelope.mean()) * np.hanning(len(x))))
    return np.fft.rfftfreq(len(x), 1 / RATE), spectrum


def peak_near(hz, spectrum, center, width=0.03):
    """Largest amplitude within a share of a frequency, relative to the surroundings' median."""
    near = np.abs(hz / center - 1) < width
    around = (hz > 0.5 * center) & (hz < 1.5 * center)
    return spectrum[near].max() / np.median(spectrum[around])


def band_level(x, low, high):
    hz, power = scipy.signal.welch(x, RATE, nperseg=4096)
    return 10 * np.log10(np.mean(power[(hz >= low) & (hz < high)]))


@pytest.mark.parametrize(
    ("fault", "rate"), [("outer_race", OUTER_RACE_RATE), ("inner_race", INNER_RACE_RATE)]
)
def test_a_race_defect_strikes_at_its_rate(fault, rate):
    clip = ("bearing", "00", "source", "vel_22")
    normal = sound(*clip)
    faulty = sound(*clip, fault=fault, severity=12.0)
    strong = peak_near(*envelope_spectrum(faulty, 2200, 6500), rate * 22)
    assert strong > 8
    assert strong > 2.5 * peak_near(*envelope_spectrum(normal, 2200, 6500), rate * 22)
    # What the fault adds, all else being the same, rings in the housing's band.
    added = dry(*clip, fault=fault, severity=12.0) - dry(*clip)
    assert band_level(added, 2200, 6500) > band_level(added, 100, 1000) + 6


def test_an_inner_race_defect_is_modulated_by_the_shaft_and_an_outer_one_is_not():
    clip = ("bearing", "00", "source", "vel_14")
    sidebands = {}
    for fault, rate in (("outer_race", OUTER_RACE_RATE), ("inner_race", INNER_RACE_RATE)):
        added = dry(*clip, fault=fault, severity=0.0) - dry(*clip)
        hz, spectrum = envelope_spectrum(added, 2200, 6500)
        main = spectrum[np.abs(hz - rate * 14) < 1].max()
        sidebands[fault] = spectrum[np.abs(hz - (rate - 1) * 14) < 1].max() / main
    assert sidebands["inner_race"] > 0.3 > sidebands["outer_race"]


def test_a_chipped_tooth_strikes_once_a_turn_of_the_pinion():
    clip = ("gearbox", "00", "source", "volt_2.0")
    added = dry(*clip, fault="chipped_tooth", severity=0.0) - dry(*clip)
    hz, spectrum = envelope_spectrum(added, 700, 6000)
    low = (hz > 4) & (hz < 40)
    first = hz[low][np.argmax(spectrum[low])]
    multiples = [spectrum[np.abs(hz - k * first) < 0.6].max() for k in (1, 2, 3)]
    between = [spectrum[np.abs(hz - (k + 0.5) * first) < 0.6].max() for k in (1, 2, 3)]
    assert 8 < first < 25  # turns of the pinion at 2 V
    assert min(multiples) > 3 * max(between)


@pytest.mark.parametrize(
    ("clip", "fault", "rising", "still"),
    [
        (("fan", "01", "source", "f-n_A"), "unbalance", (15, 60), (2000, 4000)),
        (("fan", "01", "source", "f-n_A"), "clogging", (250, 900), (5000, 7000)),
        (("fan", "01", "source", "f-n_A"), "rubbing", (1800, 6500), (100, 400)),
        (("gearbox", "01", "source", "wt_50"), "lack_of_grease", (3000, 6500), (100, 800)),
        (("slider", "00", "source", "vel_700"), "lack_of_grease", (2500, 7000), (100, 500)),
        (("valve", "00", "source", "pat_00"), "leak", (2500, 5500), (100, 600)),
    ],
)
def test_a_fault_raises_its_own_band(clip, fault, rising, still):
    normal = dry(*clip)
    faulty = dry(*clip, fault=fault, severity=10.0)
    rise = band_level(faulty, *rising) - band_level(normal, *rising)
    other = band_level(faulty, *still) - band_level(normal, *still)
    assert rise > 0.7
    assert rise > 3 * abs(other)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (("fan", "01", "source", "f-n_A"), 0.02),
        (("gearbox", "00", "source", "volt_2.0"), 0.016),
        (("ToyCar", "01", "source", "car_A1_spd_40V_mic_1_noise_1"), 0.04),
        (("ToyTrain", "01", "source", "car_A1_spd_10_mic_1_noise_1"), 0.04),
    ],
)
def test_over_voltage_moves_the_tones_up(clip, expected):
    def lines(fault):
        """Lines of the spectrum over the logarithm of frequency, and its step."""
        x = dry(*clip, fault=fault, severity=6.0, seconds=6.0)
        hz, power = scipy.signal.welch(x, RATE, nperseg=16384)
        fine = np.geomspace(250, 2500, 4000)
        height = np.sqrt(np.interp(fine, hz, power))
        height /= scipy.ndimage.uniform_filter1d(height, 201)
        return height - height.mean(), np.log(fine[1] / fine[0])

    normal, step = lines("")
    faulty, _ = lines("over_voltage")
    shifts = np.arange(-80, 81)
    alike = [np.dot(normal[100:-100], np.roll(faulty, -s)[100:-100]) for s in shifts]
    assert shifts[int(np.argmax(alike))] * step == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_fault_changes_a_clip_and_leaves_the_rest_of_it_alone(machine):
    order = plan_group(machine, "00", "source", "test", "normal", 1, seed=0)[0]
    normal = render(order, 2.0).astype(np.float64)
    assert 1e-3 < normal.std() / 32768 < 0.2
    assert np.abs(normal).max() < 32000
    for fault in FAULTS[machine]:
        severe = render(dataclasses.replace(order, fault=fault, severity=0.0), 2.0) - normal
        # So slight that nothing is left of it: what else the clip holds is the same.
        faint = render(dataclasses.replace(order, fault=fault, severity=-200.0), 2.0) - normal
        assert np.sqrt(np.mean(severe**2)) > 3, fault
        assert np.abs(faint).max() <= 1, fault


@pytest.mark.parametrize("speed", [6, 22])
def test_the_speed_of_a_bearing_is_that_of_its_name(speed):
    x = dry("bearing", "00", "source", f"vel_{speed}")
    hz, power = scipy.signal.welch(x, RATE, nperseg=16384)
    slots = 14 * speed * np.arange(1, 6)  # lines of the motor
    between = slots - 7 * speed + 0.5 * speed
    heights = [power[np.abs(hz / one - 1) < 0.015].max() for one in slots]
    others = [power[np.abs(hz / one - 1) < 0.015].max() for one in between]
    assert np.median(heights) > 3 * np.median(others)


def test_a_valve_keeps_its_pattern():
    cycles = {"pat_00": 1.1, "pat_01": 0.5}
    for attributes, cycle in cycles.items():
        x = sound("valve", "00", "source", attributes, seconds=8.0)
        sos = scipy.signal.butter(4, 3000, "highpass", fs=RATE, output="sos")
        envelope = np.abs(scipy.signal.sosfilt(sos, x)).reshape(-1, 160).max(axis=1)
        envelope -= envelope.mean()
        alike = scipy.signal.correlate(envelope, envelope)[len(envelope) - 1 :]
        lags = np.arange(30, 150)  # 0.3 to 1.5 s
        best = lags[np.argmax(alike[lags])] / 100
        assert min(abs(best - cycle), abs(best - 2 * cycle)) < 0.03


def test_a_slider_strokes_faster_at_a_higher_speed():
    counts = []
    for attributes in ("vel_300", "vel_1100"):
        x = dry("slider", "00", "source", attributes, seconds=10.0)
        level = np.sqrt(np.mean(x.reshape(-1, 1600) ** 2, axis=1))
        moving = level > 0.5 * np.median(level)
        counts.append(np.sum(np.diff(moving.astype(int)) == 1))
    # 0.45 m at 0.3 m/s and a rest; the short way leaves little time at 1.1 m/s.
    assert 4 <= counts[0] <= 6
    assert 7 <= counts[1] <= 11


def test_individuals_differ_and_a_severe_fault_takes_that_away():
    def levels(order):
        """Response of the body in dB, at frequencies evenly over octaves."""
        context = make_context(order, 1.0)
        chosen = np.searchsorted(context.grid.hz, np.geomspace(100, 7000, 200))
        return 20 * np.log10(rooms.body(context)[chosen])

    order = order_of("fan", "01", "source", "f-n_A")
    others = [order_of("fan", "00", "source", "m-n_W"), order_of("fan", "02", "source", "n-lv_L1")]
    for other in others:
        assert 1 < np.std(levels(order) - levels(other)) < 2 * rooms.INDIVIDUAL
    spread = [
        np.std(levels(dataclasses.replace(order, fault="clogging", severity=severity)))
        for severity in (-200.0, -10.0, 0.0, 20.0)
    ]
    assert spread[0] == pytest.approx(np.std(levels(order)), rel=1e-5)
    assert spread[0] > spread[1] > spread[2] > spread[3]
    assert spread[3] == pytest.approx(0, abs=1e-6)


def test_domains_differ_in_noise_and_room():
    # A pause before the toy car starts holds noise alone.
    levels = {}
    for domain, attributes in (
        ("source", "car_A1_spd_34V_mic_1_noise_1"),
        ("target", "car_A1_spd_34V_mic_2_noise_2"),
    ):
        x = sound("ToyCar", "02", domain, attributes, seconds=10.0)[: RATE // 2]
        bands = [(60, 120), (120, 300), (300, 900), (900, 2500), (2500, 6000)]
        levels[domain] = np.array([band_level(x, *band) for band in bands])
    shape = {domain: level - level.mean() for domain, level in levels.items()}
    assert np.abs(shape["source"] - shape["target"]).max() > 3
