"""A collection without fault, then one fault at a time: each must be found, and nothing else."""

import os
import shutil

import numpy as np
import pytest
import soundfile

from asdproto.data.dcase import Clip, scan
from asdproto.data.table import write_table
from asdproto.data.validate import Problem, validate

TRAIN = "fan/train/section_00_source_train_normal_0000_m-n_W.wav"
TEST = "fan/test/section_00_target_test_anomaly_0000_m-n_Z.wav"


@pytest.fixture
def root(tmp_path):
    """One section, all cells of the table, no fault."""
    root = tmp_path / "dev_data"
    rng = np.random.default_rng(0)
    names = [
        ("train", "source_train_normal_0000_m-n_W"),
        ("train", "source_train_normal_0001_m-n_X"),
        ("train", "target_train_normal_0000_m-n_Z"),
        ("test", "source_test_normal_0000_m-n_W"),
        ("test", "source_test_anomaly_0000_m-n_X"),
        ("test", "target_test_normal_0000_m-n_Z"),
        ("test", "target_test_anomaly_0000_m-n_Z"),
    ]
    rows = ["file_name,d1p,d1v"]
    for split, name in names:
        file = root / f"fan/{split}/section_00_{name}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, rng.normal(0, 0.1, 4000), 16000)
        rows.append(f"fan/{split}/{file.name},m-n,{name[-1]}")
    (root / "fan/attributes_00.csv").write_text("\n".join(rows) + "\n")
    return root


def test_a_collection_without_fault_has_no_problem(root):
    assert validate(root) == []
    assert validate(root / "fan") == []


def noise(seconds=0.25, channels=1, rate=16000, seed=7):
    return np.random.default_rng([seed, 1]).normal(0, 0.1, (int(rate * seconds), channels))


def fault(name):
    """Decorator: a way to break the collection."""

    def register(function):
        FAULTS[name] = function
        return function

    return register


FAULTS = {}


@fault("unparsable name")
def _(root):
    (root / "fan/train/note_1.wav").write_bytes((root / TRAIN).read_bytes()[:-2])
    return ("error", "fan/train/note_1.wav", "the name 'note_1.wav'", "section_NN_", "Rename")


@fault("truncated")
def _(root):
    (root / TRAIN).write_bytes((root / TRAIN).read_bytes()[:-500])
    return "error", TRAIN, "7500 bytes of audio", "8000 bytes", "again"


@fault("zero bytes")
def _(root):
    (root / TRAIN).write_bytes(b"")
    return "error", TRAIN, "0 bytes that do not decode", "wav or flac", "again"


@fault("no samples")
def _(root):
    soundfile.write(root / TRAIN, np.zeros(0), 16000)
    return "error", TRAIN, "no samples", "a recording", "Replace"


@fault("too short")
def _(root):
    soundfile.write(root / TRAIN, noise(0.05)[:, 0], 16000)
    return "error", TRAIN, "800 samples at 16000 Hz", "one window of 1024", "Remove"


@fault("wrong split folder")
def _(root):
    (root / "fan/attributes_00.csv").unlink()
    name = "section_00_source_train_normal_0002_m-n_W.wav"
    soundfile.write(root / f"fan/test/{name}", noise(), 16000)
    return "error", f"fan/test/{name}", "a train clip in the folder 'test'", "test clips", "Move"


@fault("anomaly in training")
def _(root):
    name = "fan/train/section_00_source_train_anomaly_0002_m-n_W.wav"
    soundfile.write(root / name, noise(), 16000)
    return "error", name, "an anomaly in the training split", "normal", "Move"


@fault("other rate")
def _(root):
    soundfile.write(root / TRAIN, noise(rate=8000), 8000)
    return "notice", TRAIN, "8000 Hz in 1 recording of fan, others at 16000 Hz", "16000", "resampl"


@fault("channels")
def _(root):
    soundfile.write(root / TRAIN, noise(channels=8), 16000, format="WAVEX")
    return "notice", TRAIN, "8 channels in 1 recording of fan", "one channel", "channel 0"


@fault("another length")
def _(root):
    soundfile.write(root / TEST, noise(0.5), 16000)
    return "notice", TEST, "fan clips of 0.2 and 0.5 seconds; 0.5 in 1 recording", "one length", ""


@fault("no target training clip")
def _(root):
    (root / "fan/train/section_00_target_train_normal_0000_m-n_Z.wav").unlink()
    (root / "fan/attributes_00.csv").unlink()
    return (
        "notice",
        "fan section 00",
        "no target training clip, though 2 test clips are of that domain",
        "both domains",
        "Add target",
    )


@fault("no source training clip")
def _(root):
    for file in (root / "fan/train").glob("*source*"):
        file.unlink()
    (root / "fan/attributes_00.csv").unlink()
    return "notice", "fan section 00", "no source training clip", "both domains", "Add source"


@fault("no training clip")
def _(root):
    shutil.rmtree(root / "fan/train")
    (root / "fan/attributes_00.csv").unlink()
    return "error", "fan section 00", "4 test clips and no training", "normal training", "Add"


@fault("no test clip")
def _(root):
    shutil.rmtree(root / "fan/test")
    (root / "fan/attributes_00.csv").unlink()
    return "notice", "fan section 00", "3 training clips and no test", "test clips", "Nothing"


@fault("one kind of test clip")
def _(root):
    for file in (root / "fan/test").glob("*anomaly*"):
        file.unlink()
    (root / "fan/attributes_00.csv").unlink()
    return "notice", "fan section 00", "2 normal test clips and none", "anomalous", "no AUC"


@fault("empty split folder")
def _(root):
    (root / "pump/test").mkdir(parents=True)
    return "error", "pump/test", "an empty folder", "recordings", "Add"


@fault("empty other folder")
def _(root):
    (root / "pump").mkdir()
    return "notice", "pump", "an empty folder", "recordings", "Add"


@fault("csv names a missing file")
def _(root):
    with open(root / "fan/attributes_00.csv", "a") as stream:
        stream.write("fan/train/section_00_source_train_normal_0009_m-n_W.wav,m-n,W\n")
    return "error", "fan/attributes_00.csv: line 9", "_0009_m-n_W.wav', which is not there", "", ""


@fault("csv disagrees with a name")
def _(root):
    edit(root, ",m-n,Z", ",m-n,Y", 1)
    return (
        "error",
        "fan/attributes_00.csv: line 4",
        "m-n is 'Y' here and 'Z' in the name",
        "'m-n_Z'",
        "The name is what counts",
    )


@fault("csv has another key")
def _(root):
    edit(root, ",m-n,Z", ",n-m,Z", 1)
    return "notice", "fan/attributes_00.csv: line 4", "n-m is 'Z' here", "'m-n_Z'", "The name"


@fault("csv names a file twice")
def _(root):
    with open(root / "fan/attributes_00.csv", "a") as stream:
        stream.write(f"{TRAIN},m-n,W\n")
    return "notice", "fan/attributes_00.csv: line 9", "a second time", "line 2 has it", "Remove"


@fault("csv without header")
def _(root):
    edit(root, "file_name,", "name,", 1)
    return "error", "fan/attributes_00.csv", "the header 'name,d1p,d1v'", "file_name", "Add the"


@fault("control characters in a csv")
def _(root):
    with open(root / "fan/attributes_00.csv", "a") as stream:
        stream.write(f'{TRAIN},m-n,"W\x1b[2J"\n')
    return "error", "fan/attributes_00.csv: line 9", r"'W\x1b[2J'", "without control", "Correct"


@fault("a csv that is a link to nothing")
def _(root):
    os.symlink("nowhere", root / "fan/attributes_01.csv")
    return "error", "fan/attributes_01.csv", "link to nothing", "a csv", "Remove it"


@fault("a csv that is a pipe, and names without attributes")
def _(root):
    os.mkfifo(root / "fan/attributes_01.csv")
    name = "fan/train/section_00_source_train_normal_0009.wav"
    soundfile.write(root / name, noise(), 16000)
    return "error", "fan/attributes_01.csv", "a folder, pipe", "a csv", "Remove it"


@fault("clips.csv that is a folder")
def _(root):
    (root / "clips.csv").mkdir()
    return "error", f"{root}/clips.csv", "a folder, pipe", "a csv of clips", "Remove it"


@fault("a long machine type")
def _(root):
    name = f"{'x' * 81}/train/section_00_source_train_normal_0009.wav"
    (root / name).parent.mkdir(parents=True)
    soundfile.write(root / name, noise(), 16000)
    return "error", name, "(81 characters)", "at most 80 bytes", "Rename"


@fault("a machine type of spaces")
def _(root):
    name = "a /train/section_00_source_train_normal_0009.wav"
    (root / name).parent.mkdir(parents=True)
    soundfile.write(root / name, noise(), 16000)
    return "error", name, "the machine type 'a '", "white space", "Rename"


@fault("digits of another script")
def _(root):
    name = "fan/train/section_٠٠_source_train_normal_0009.wav"
    soundfile.write(root / name, noise(), 16000)
    return "error", name, "the name", "section_NN", "Rename"


@fault("the same name twice")
def _(root):
    other = TRAIN.replace(".wav", ".flac")
    soundfile.write(root / other, noise(), 16000)
    # wav sorts after flac, so it is the second of the two.
    return "error", TRAIN, f"the same name as {other}", "one recording", "Remove"


@fault("a copy in the same split")
def _(root):
    other = TRAIN.replace("0000", "0005")
    shutil.copy(root / TRAIN, root / other)
    return "notice", other, f"a copy of {TRAIN}", "once", "Remove"


@fault("a copy across the splits")
def _(root):
    shutil.copy(root / TEST, root / TRAIN)
    return "error", TRAIN, f"a copy of {TEST}, across the splits", "once", "Remove"


@fault("another audio format")
def _(root):
    (root / "fan/train/section_00_source_train_normal_0003.mp3").write_bytes(b"x")
    return "notice", "fan/train/section_00_source_train_normal_0003.mp3", "is not read", "", "Conv"


@fault("an archive")
def _(root):
    (root / "dev_data_fan.zip").write_bytes(b"x")
    return "notice", "dev_data_fan.zip", "an archive", "", "Unpack"


@fault("no machine type")
def _(root):
    soundfile.write(root / "section_00_source_train_normal_0000.wav", noise(), 16000)
    return (
        "error",
        "section_00_source_train_normal_0000.wav",
        "no folder that says the machine type",
        "<machine type>",
        "Move",
    )


def edit(root, old, new, count):
    file = root / "fan/attributes_00.csv"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, count))


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_and_nothing_else(root, name):
    severity, file, found, expected, remedy = FAULTS[name](root)
    problems = validate(root)
    # A rate that is mixed concerns both rates, and so has two lines.
    if name == "other rate":
        problems = [problem for problem in problems if problem.file == file]
    assert len(problems) == 1, [str(problem) for problem in problems]
    problem = problems[0]
    assert (problem.severity, problem.file) == (severity, file)
    assert problem.is_error == (severity == "error")
    for part, text in ((found, problem.found), (expected, problem.expected)):
        assert part in text
    assert remedy in problem.remedy
    assert all([problem.found, problem.expected, problem.remedy])
    assert str(problem).startswith(f"{severity}: {file}: found ")


def test_every_problem_is_listed_errors_first(root):
    expected = [
        FAULTS[name](root)[:2] for name in ("anomaly in training", "channels", "an archive")
    ]
    (root / TEST).write_bytes(b"")
    (root / "fan/train/x.wav").write_bytes(b"")
    problems = validate(root)
    assert [(problem.severity, problem.file) for problem in problems] == [
        ("error", TEST),
        ("error", "fan/train/section_00_source_train_anomaly_0002_m-n_W.wav"),
        ("error", "fan/train/x.wav"),
        ("notice", "dev_data_fan.zip"),
        ("notice", TRAIN),
    ]
    assert set(expected) <= {(p.severity, p.file) for p in problems}


def test_no_collection(tmp_path):
    assert [problem.found for problem in validate(tmp_path / "absent")] == ["nothing"]
    (tmp_path / "empty").mkdir()
    assert [problem.found for problem in validate(tmp_path / "empty")] == ["no .wav or .flac file"]


def test_what_a_terminal_does_not_show_is_written_out(root):
    os.rename(root / "fan", root / "fa\u202en")
    (root / "fa\u202en/attributes_00.csv").unlink()
    (root / "fa\u202en/test").joinpath(os.path.basename(TEST)).write_bytes(b"")
    said = [str(problem) for problem in validate(root)]
    assert said
    assert all(text.isprintable() and r"fa\u202en" in text for text in said)


def test_a_root_that_may_not_be_entered(open_folder, nobody):
    root = open_folder / "collection"
    root.mkdir()
    os.chmod(root, 0)
    with nobody():
        problems = validate(root)
    os.chmod(root, 0o755)
    assert [(p.file, p.found) for p in problems] == [
        (str(root), "a folder that cannot be read (Permission denied)")
    ]


def test_hidden_files_are_none_of_our_business(root):
    (root / "fan/train/._section_00_source_train_normal_0000.wav").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / ".git/x.zip").touch()
    assert validate(root) == []


def test_evaluation_sets_without_labels(root):
    (root / "fan/attributes_00.csv").unlink()
    shutil.rmtree(root / "fan/test")
    (root / "fan/test").mkdir()
    for i in range(3):
        soundfile.write(root / f"fan/test/section_00_{i:04}.wav", noise(seed=i), 16000)
    (problem,) = validate(root)
    assert not problem.is_error
    assert problem.found == "3 of 3 test clips not labeled normal or anomaly"
    assert "no metrics are computed" in problem.remedy
    # One label does not make the others known.
    soundfile.write(root / "fan/test/section_00_source_test_normal_0009.wav", noise(seed=9), 16000)
    assert [p.found for p in validate(root)] == ["3 of 4 test clips not labeled normal or anomaly"]


def test_a_collection_described_by_a_csv(tmp_path):
    for i, folder in enumerate(("normal", "abnormal", "new")):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "1.wav", noise(seed=i), 16000)
    clips = [
        Clip("normal/1.wav", "pump", "00", "", "train", "normal", ""),
        Clip("abnormal/1.wav", "pump", "00", "", "test", "anomaly", ""),
        Clip("new/1.wav", "pump", "00", "", "test", "normal", ""),
    ]
    write_table(tmp_path / "clips.csv", clips)
    problems = validate(tmp_path)
    assert [(p.severity, p.file) for p in problems] == [("notice", "new/1.wav")]
    assert problems[0].found == "the same name as abnormal/1.wav"
    assert validate(tmp_path / "clips.csv") == problems

    text = (tmp_path / "clips.csv").read_text()
    (tmp_path / "clips.csv").write_text(
        text.replace("test,normal", "trial,normal") + "gone/2.wav,pump,00,,test,normal,\n"
    )
    problems = [problem for problem in validate(tmp_path) if problem.is_error]
    assert [problem.file.removeprefix(f"{tmp_path}/") for problem in problems] == [
        "clips.csv: row 4, column split",
        "gone/2.wav",
    ]
    assert problems[1].found == "no readable file (No such file or directory)"
    (tmp_path / "clips.csv").write_text("file\n")
    assert "Add machine_type, split" in validate(tmp_path)[0].remedy


def test_real_collections(real_data):
    assert validate(real_data / "uavmix/dev_data") == []
    problems = validate(real_data / "dcase2023_clips")
    # The excerpt has no target training clips.
    assert {p.found.split(",")[0] for p in problems} >= {"no target training clip"}
    assert not any(p.is_error for p in problems)
    problems = validate(real_data / "mimii_fan_id_00")
    assert len(problems) == 42
    assert all(isinstance(p, Problem) and "csv of clips" in p.remedy for p in problems)


def test_links_are_followed_but_not_in_circles(root, tmp_path):
    os.symlink(root, root / "fan/circle")
    os.symlink("nowhere", root / "fan/broken")
    linked = tmp_path / "linked"
    linked.mkdir()
    os.symlink(root / "fan", linked / "fan")
    assert validate(linked) == []
    assert len(scan(linked)) == len(scan(root)) == 7
    # Files that are links to nothing are recordings that cannot be read.
    os.symlink("nowhere", root / "fan/train/section_00_source_train_normal_0009.wav")
    assert [problem.found for problem in validate(root)] == [
        "no readable file (No such file or directory)"
    ]
