"""Odd and broken recordings: validation and extraction take the same ones, and refuse the rest."""

import contextlib
import os
import shutil
import socket
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asdproto.data.extract import ExtractionError, build_store, extract_collection
from asdproto.data.store import open_store
from asdproto.data.table import load_collection
from asdproto.data.validate import validate
from asdproto.errors import DataError
from asdproto.features import FeatureSettings, decode

SETTINGS = FeatureSettings(n_mels=8, n_fft=512, hop_length=256)
NAME = "fan/train/section_00_source_train_normal_0009_v_9"
TAKEN, NOTICE, REFUSED = "taken", "notice", "refused"
CASES = {}


def noise(samples=2000, channels=1, seed=9):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (samples, channels))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Two training and two test clips, all right."""
    root = tmp_path_factory.mktemp("template") / "dev_data"
    for number, name in enumerate(
        [
            "train/section_00_source_train_normal_0000_v_1",
            "train/section_00_target_train_normal_0000_v_2",
            "test/section_00_source_test_normal_0000_v_1",
            "test/section_00_target_test_anomaly_0000_v_2",
        ]
    ):
        path = root / f"fan/{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(seed=number), 16000)
    return root


def case(name, outcome, words=""):
    """Decorator: what writes a recording, and what is to become of it."""

    def register(function):
        assert name not in CASES
        CASES[name] = (function, outcome, words)
        return function

    return register


def written(name, outcome, words="", *, suffix=".wav", samples=None, rate=16000, **how):
    """A case that soundfile writes."""
    samples = noise() if samples is None else samples

    @case(name, outcome, words)
    def _(root):
        soundfile.write(root / (NAME + suffix), samples, rate, **how)


def bytes_of(samples=None, **how):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x")
        soundfile.write(path, noise() if samples is None else samples, 16000, **how)
        return path.read_bytes()


def changed(name, outcome, words, change, *, suffix=".wav", **how):
    """A case that changes the bytes of a file that is right."""

    @case(name, outcome, words)
    def _(root):
        (root / (NAME + suffix)).write_bytes(change(bytes_of(**{"format": "WAV", **how})))


def field(position, layout, value):
    """A change of one field of a wav header."""

    def change(content):
        size = struct.calcsize(layout)
        return content[:position] + struct.pack(layout, value) + content[position + size :]

    return change


for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"):
    written(f"wav {subtype}", TAKEN, subtype=subtype)
for subtype in ("IMA_ADPCM", "MS_ADPCM"):
    written(f"wav {subtype}", TAKEN, subtype=subtype)
written("wav GSM610", NOTICE, "fan clips of", subtype="GSM610")  # its blocks are long
for subtype in ("PCM_S8", "PCM_16", "PCM_24"):
    written(f"flac {subtype}", TAKEN, suffix=".flac", subtype=subtype)
for rate in (8000, 11025, 44100, 96000, 192000, 384000):
    written(f"{rate} Hz", NOTICE, f"{rate} Hz in 1 recording", rate=rate, samples=noise(rate // 5))
for rate in (1, 100, 3999, 400_000, 2**31 - 1):
    written(f"{rate} Hz", REFUSED, "4000 to 384000 Hz", rate=rate)
for channels in (2, 8):
    many = noise(channels=channels)
    written(f"{channels} channels", NOTICE, f"{channels} channels in 1", samples=many)
    written(f"{channels} channels, float", NOTICE, "channels in", samples=many, subtype="FLOAT")
written("WAVE_EXTENSIBLE", TAKEN, format="WAVEX")
written("WAVE_EXTENSIBLE, 24 bit", TAKEN, format="WAVEX", subtype="PCM_24")
written("RF64", TAKEN, format="RF64")
written("big-endian", TAKEN, format="WAV", endian="BIG")
written("flac content in a wav", TAKEN, format="FLAC")
written("wav content in a flac", TAKEN, suffix=".flac", format="WAV")
written("upper case", TAKEN, suffix=".WAV", format="WAV")
written("beyond full scale", TAKEN, samples=30000 * noise(), subtype="FLOAT")
written("silence", NOTICE, "one value throughout", samples=np.zeros(2000))
written("a constant voltage", NOTICE, "one value throughout", samples=np.full(2000, 0.25))
written("a constant voltage in flac", NOTICE, "one value", suffix=".flac", samples=np.ones(999))
click = np.zeros(2000)
click[1001] = 0.5
written("a single click", TAKEN, samples=click)
written("another length", NOTICE, "fan clips of", samples=noise(5000))
written("ogg", NOTICE, "a .ogg file, which is not read", suffix=".ogg")
written("mp3", NOTICE, "a .mp3 file, which is not read", suffix=".mp3")
written("ogg content in a wav", REFUSED, "OGG audio", format="OGG")
written("mp3 content in a wav", REFUSED, "MP3 audio", format="MP3")
written("aiff content in a wav", REFUSED, "AIFF audio", format="AIFF")
written("au content in a flac", REFUSED, "AU audio", suffix=".flac", format="AU")
written("w64 content in a wav", REFUSED, "W64 audio", format="W64")
written("no samples", REFUSED, "no samples", samples=np.zeros(0))
written("too short", REFUSED, "100 samples at 16000 Hz", samples=noise(100))
written("too short once resampled", REFUSED, "500 samples at", samples=noise(1500), rate=48000)
written("much too long", REFUSED, "much longer than the other", samples=noise(2000 * 60))
for value in (np.nan, np.inf, -np.inf, 1e30):
    odd = noise()
    odd[77] = value
    written(f"{value} in float", REFUSED, "not finite", samples=odd, subtype="FLOAT")
    written(f"{value} in double", REFUSED, "not finite", samples=odd, subtype="DOUBLE")
odd = noise()
odd[1999] = 1e300
written("1e300 in double", REFUSED, "not finite", samples=odd, subtype="DOUBLE")

changed("zero bytes", REFUSED, "0 bytes that do not decode", lambda b: b"")
changed("one byte", REFUSED, "1 bytes that do not decode", lambda b: b[:1])
changed("cut in its header", REFUSED, "do not decode", lambda b: b[:30])
changed("cut before its samples", REFUSED, "0 bytes of audio", lambda b: b[:44])
changed("cut in its samples", REFUSED, "truncated", lambda b: b[:2000])
changed("cut by a byte", REFUSED, "truncated", lambda b: b[:-1])
changed("float cut", REFUSED, "truncated", lambda b: b[:-1000], subtype="FLOAT")
changed("extensible cut", REFUSED, "truncated", lambda b: b[:-9], format="WAVEX")
changed("big-endian cut", REFUSED, "truncated", lambda b: b[:-9], endian="BIG")
changed("text", REFUSED, "do not decode", lambda b: b"not audio at all\n" * 99)
changed("a picture", REFUSED, "do not decode", lambda b: b"\x89PNG\r\n\x1a\n" + b[8:])
changed("wrong magic", REFUSED, "do not decode", lambda b: b"RIFZ" + b[4:])
changed("an older kind of wav", REFUSED, "do not decode", lambda b: b[:8] + b"WAVX" + b[12:])
changed("binary", REFUSED, "do not decode", lambda b: bytes(range(256)) * 20)
changed("a size of 2 GB", REFUSED, "2147483647 bytes", field(40, "<I", 2**31 - 1))
changed("a size of 4 GB", REFUSED, "bytes as its header", field(40, "<I", 0xFFFFFEFF))
changed("a size that says streamed", TAKEN, "", field(40, "<I", 0xFFFFFFFF))
changed("a huge format chunk", REFUSED, "do not decode", field(16, "<I", 0xFFFFFFF0))
changed("no channels", REFUSED, "do not decode", field(22, "<H", 0))
changed("65,535 channels", REFUSED, "do not decode", field(22, "<H", 65535))
changed("no rate", REFUSED, "", field(24, "<I", 0))
changed("a rate of 4 GHz", REFUSED, "", field(24, "<I", 2**32 - 1))
changed("no bits", REFUSED, "", field(34, "<H", 0))
changed("an unknown coding", REFUSED, "do not decode", field(20, "<H", 0x1234))
changed("other chunks", TAKEN, "", lambda b: b[:36] + b"LIST\3\0\0\0abc\0" + b[36:] + b"tail")
changed("endless chunks", REFUSED, "do not decode", lambda b: b[:36] + b"junk\0\0\0\0" * 9999)
changed(
    "a signaling NaN",
    REFUSED,
    "not finite",
    lambda b: b[:-4] + struct.pack("<I", 0x7FA00000),
    subtype="FLOAT",
)
changed("flac cut", REFUSED, "truncated", lambda b: b[:2500], suffix=".flac", format="FLAC")
changed("flac header", REFUSED, "", lambda b: b[:50], suffix=".flac", format="FLAC")
changed(
    "flac damaged in its middle",
    REFUSED,
    "decoding ends early",
    lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 16]) + b[len(b) // 2 + 1 :],
    suffix=".flac",
    format="FLAC",
)
changed(
    "flac that says 64 billion samples",
    REFUSED,
    "Cut it into clips",
    lambda b: b[:21] + bytes([b[21] | 15]) + b"\xff\xff\xff\xff" + b[26:],
    suffix=".flac",
    format="FLAC",
)


@case("a pipe", REFUSED, "a folder, pipe, socket or device")
def _(root):
    os.mkfifo(root / f"{NAME}.wav")


@case("a socket", REFUSED, "a folder, pipe, socket or device")
def _(root):
    here = os.getcwd()
    os.chdir((root / NAME).parent)  # such an address must be short
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
            end.bind(os.path.basename(NAME) + ".wav")
    finally:
        os.chdir(here)


@case("a device", REFUSED, "a folder, pipe, socket or device")
def _(root):
    os.symlink("/dev/zero", root / f"{NAME}.wav")


@case("a link to itself", REFUSED, "Too many levels of symbolic links")
def _(root):
    os.symlink(f"{os.path.basename(NAME)}.wav", root / f"{NAME}.wav")


@case("a link to nothing", REFUSED, "No such file")
def _(root):
    os.symlink("nowhere", root / f"{NAME}.flac")


@case("a link to a folder", NOTICE, "an empty folder")
def _(root):
    (root / "empty").mkdir()
    os.symlink(root / "empty", root / f"{NAME}.wav")
    os.rmdir(root / "empty")
    (root / "empty").mkdir()


@case("a folder", NOTICE, "an empty folder")
def _(root):
    (root / f"{NAME}.wav").mkdir()


@case("a link to another clip of its split", NOTICE, "a copy of")
def _(root):
    os.symlink(next((root / "fan/train").iterdir()), root / f"{NAME}.wav")


@case("a link across the splits", REFUSED, "a copy of")
def _(root):
    os.symlink(next((root / "fan/test").iterdir()), root / f"{NAME}.wav")


@case("silence in both splits", NOTICE, "one value throughout")
def _(root):
    for name in (NAME, "fan/test/section_00_source_test_normal_0009"):
        soundfile.write(root / f"{name}.wav", np.zeros(2000), 16000)


@case("a pair of wav and flac", REFUSED, "the same name as")
def _(root):
    for number, suffix in enumerate((".wav", ".flac")):
        soundfile.write(root / (NAME + suffix), noise(seed=30 + number), 16000)


@case("names that differ in case", TAKEN)
def _(root):
    for number, name in enumerate((NAME, NAME + "x", NAME + "X")):
        soundfile.write(root / f"{name}.wav", noise(seed=20 + number), 16000)


def named(name, outcome, words=""):
    @case(f"name {name!r}", outcome, words)
    def _(root):
        try:
            soundfile.write(os.fsencode(root / f"{NAME}{name}.wav"), noise(), 16000)
        except OSError as error:
            pytest.skip(f"this file system has no such names: {error}")


for name in ("_ü_é", "_風", "_'a'", '_"a"', "_a, b", "_=1+1", "_a b", "_😀", "_<b>&amp;"):
    named(name, TAKEN)
for name in ("_a\nb", "_a\rb", "_a\x1b[2Jb", "_a\x7fb", "_a\u2028b", "_a\udcffb", "_a\\b"):
    named(name, REFUSED, "such a name")


@case("a machine type on two lines", REFUSED, "such a name")
def _(root):
    path = root / "fa\nn" / NAME.removeprefix("fan/")
    path.parent.mkdir(parents=True)
    soundfile.write(f"{path}.wav", noise(), 16000)


@case("a hidden file", TAKEN)
def _(root):
    (root / "fan/train/._section_00.wav").write_bytes(b"x")


@pytest.mark.parametrize("name", CASES)
def test_validation_and_extraction_agree(template, tmp_path, name):
    write, outcome, words = CASES[name]
    root = tmp_path / "dev_data"
    shutil.copytree(template, root)
    write(root)
    problems = validate(root, settings=SETTINGS)
    errors = [problem for problem in problems if problem.is_error]
    assert bool(errors) == (outcome == REFUSED), list(map(str, problems))
    assert bool(problems) == (outcome != TAKEN), list(map(str, problems))
    assert any(words in str(problem) for problem in problems or [""])
    for problem in problems:
        assert len(str(problem).splitlines()) == 1
        assert str(problem).isprintable()

    def extract(store, on_error):
        return extract_collection(
            root, tmp_path / store, SETTINGS, on_error=on_error, progress=False
        )

    if outcome != REFUSED:
        store = extract("store", "stop")
        assert np.isfinite(store.features).all()
        assert store.manifest["skipped"] == []
        return
    with pytest.raises(ExtractionError) as caught:
        extract("store", "stop")
    assert [error.file for error in caught.value.errors] == [error.file for error in errors]
    assert not (tmp_path / "store/manifest.json").exists()
    with pytest.warns(UserWarning, match="left out"):
        store = extract("skipping", "skip")
    assert [entry["file"] for entry in store.manifest["skipped"]] == [e.file for e in errors]
    assert len(store) == 5 - len(errors) if "pair" not in name else 5
    assert extract("skipping", "skip").clips == store.clips
    with pytest.raises(DataError, match="1 fault"):
        extract("skipping", "stop")


def test_enough_is_tried():
    assert len(CASES) >= 60


def test_all_faults_are_listed_at_once(template, tmp_path):
    root = tmp_path / "dev_data"
    shutil.copytree(template, root)
    for number in range(3):
        (root / f"fan/train/section_00_source_train_normal_001{number}.wav").write_bytes(b"x")
    with pytest.raises(ExtractionError, match="3 faults:") as caught:
        extract_collection(root, tmp_path / "store", SETTINGS, progress=False)
    assert len(str(caught.value).splitlines()) == 1 + 3 + 1
    assert "on_error='skip'" in caught.value.remedy
    (root / "fan/train/note.wav").write_bytes(b"x")  # a name that says nothing
    with pytest.raises(ExtractionError, match="4 faults:"):
        extract_collection(root, tmp_path / "store", SETTINGS, progress=False)


def test_a_section_without_training_clips(template, tmp_path):
    root = tmp_path / "dev_data"
    shutil.copytree(template, root)
    soundfile.write(root / "fan/test/section_01_source_test_normal_0000.wav", noise(), 16000)
    with pytest.raises(ExtractionError, match="1 test clips and no training clip"):
        extract_collection(root, tmp_path / "store", SETTINGS, progress=False)
    assert not (tmp_path / "store").exists()  # said before any work
    with pytest.warns(UserWarning, match=r"1 fault left out \(fan section 01\)"):
        store = extract_collection(
            root, tmp_path / "store", SETTINGS, on_error="skip", progress=False
        )
    assert {clip.section for clip in store.clips} == {"00"}


def test_a_section_that_loses_its_training_clips_is_left_out(template, tmp_path):
    root = tmp_path / "dev_data"
    shutil.copytree(template, root)
    (root / "fan/train/section_01_source_train_normal_0000.wav").write_bytes(b"x")
    soundfile.write(root / "fan/test/section_01_source_test_normal_0000.wav", noise(), 16000)
    for _ in range(2):  # made, and opened again
        with contextlib.ExitStack() as stack:
            if not (tmp_path / "store").exists():
                stack.enter_context(pytest.warns(UserWarning, match="2 faults left out"))
            store = extract_collection(
                root, tmp_path / "store", SETTINGS, on_error="skip", progress=False
            )
        assert {clip.section for clip in store.clips} == {"00"}
        files = [entry["file"] for entry in store.manifest["skipped"]]
        assert files == ["fan/train/section_01_source_train_normal_0000.wav", "fan section 01"]


def test_skipped_recordings_that_are_repaired_are_noticed(template, tmp_path):
    root = tmp_path / "dev_data"
    shutil.copytree(template, root)
    bad = root / f"{NAME}.wav"
    bad.write_bytes(b"x")
    _, clips = load_collection(root)
    skip = {"on_error": "skip", "progress": False}
    with pytest.warns(UserWarning, match="1 fault left out"):
        build_store(clips, root, tmp_path / "store", SETTINGS, **skip)
    assert open_store(tmp_path / "store").manifest["skipped"][0]["found"].startswith("1 bytes")
    soundfile.write(bad, noise(), 16000)
    with pytest.raises(DataError, match="1 recording changed since"):
        build_store(clips, root, tmp_path / "store", SETTINGS, **skip)
    with pytest.raises(ValueError, match="on_error must be 'stop' or 'skip', found 'ignore'"):
        build_store(clips, root, tmp_path / "other", SETTINGS, on_error="ignore")


def test_folders_and_files_that_may_not_be_read(template, open_folder, nobody):
    root = open_folder / "dev_data"
    shutil.copytree(template, root)
    os.chmod(root, 0o755)
    os.chmod(root / "fan", 0o755)
    os.chmod(root / "fan/train", 0o755)
    hidden = root / "fan/train/section_00_source_train_normal_0000_v_1.wav"
    os.chmod(hidden, 0)
    os.chmod(root / "fan/test", 0)
    with nobody():
        problems = [problem for problem in validate(root) if problem.is_error]
        with pytest.raises(DataError, match=r"no readable file \(Permission denied\)"):
            decode(hidden)
        with pytest.raises(DataError, match="a folder that cannot be read"):
            load_collection(root)
    assert [(p.file, p.found) for p in problems] == [
        ("fan/test", "a folder that cannot be read (Permission denied)"),
        (str(hidden.relative_to(root)), "no readable file (Permission denied)"),
    ]
    os.chmod(root / "fan/test", 0o755)


def test_a_store_in_a_folder_that_may_not_be_written(template, open_folder, nobody):
    (open_folder / "locked").mkdir(mode=0o555)
    clips = load_collection(template)[1]
    with nobody(), pytest.raises(PermissionError) as caught:
        build_store(clips, template, open_folder / "locked/store", SETTINGS, progress=False)
    assert caught.value.filename == str(open_folder / "locked/store")


def test_a_folder_without_layout_and_one_in_it_that_may_not_be_read(open_folder, nobody):
    root = open_folder / "pump"
    (root / "more").mkdir(parents=True)
    os.chmod(root, 0o755)
    for number in range(2):
        soundfile.write(root / f"{number}.wav", noise(seed=number), 16000)
    (root / "1.wav").write_bytes(b"x")
    os.chmod(root / "1.wav", 0o644)
    os.chmod(root / "more", 0)
    with nobody():
        problems = [problem for problem in validate(root) if problem.is_error]
        with pytest.raises(DataError, match="a folder that cannot be read"):
            load_collection(root)
    assert [problem.file for problem in problems] == ["1.wav", "more"]
    os.chmod(root / "more", 0o755)
