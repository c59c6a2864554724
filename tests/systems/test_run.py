"""A run on a few wav files: scores of single recordings, other back-ends, fusing, export."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

from asdproto import cli
from asdproto.config import ConfigError, override
from asdproto.data.collection import read_collection
from asdproto.data.dataset import section_keys
from asdproto.data.extract import build_store
from asdproto.errors import DataError
from asdproto.results.run_folder import (
    read_config,
    read_scores,
    write_config,
    write_results,
)
from asdproto.scoring.fusion import LEARNED, combine
from asdproto.systems import remake, run
from asdproto.systems.detector import Detector
from asdproto.systems.exported import Exported
from asdproto.systems.prototype import PrototypeSystem
from asdproto.training.devices import RunOptions, use_devices
from tests.test_robustness import damage, tiny_run

pytestmark = pytest.mark.filterwarnings(
    "ignore:undefined figures",  # there is no target domain
    "ignore::asdproto.scoring.thresholds.ThresholdWarning",  # of eight clips
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_block):
    """A tiny run on twelve recordings of two fans, with yardsticks, and its results."""
    root, rng = tmp_path_factory.mktemp("collection"), np.random.default_rng(0)
    (root / "fan").mkdir()
    clips = [("train_normal", 1), ("train_normal", 2)] * 2
    clips += [("test_normal", 1), ("test_anomaly", 2)]
    for section in ("00", "01"):
        for number, (kind, speed) in enumerate(clips):
            name = f"section_{section}_source_{kind}_{number:04d}_n_{speed}.wav"
            hum = np.sin(np.arange(16000) * 0.1 * speed * (1 + int(section)))
            soundfile.write(root / "fan" / name, 0.1 * (hum + rng.standard_normal(16000)), 16000)
    # Four attribute classes: fewer than the ten that an episode of the paper takes.
    changes = [*tiny_run.OVERRIDES, "finetune.ways=10", "score.hop=8"]
    system = override(PrototypeSystem(), changes)
    store = build_store(read_collection(root), root / "features", system.features, progress=False)
    workdir = tmp_path_factory.mktemp("run")
    options = RunOptions(workdir, use_devices(1))
    with pytest.warns(UserWarning, match="finetune: trust the threshold with care: fan: it rests"):
        results = run.train_run(system, store, options, seeds=[0])
    assert set(results["systems"]) == {"pretrain", "finetune"}
    results["systems"] |= run.train_yardsticks(system, store, options)
    write_results(workdir, results)
    return root, [clip for clip in store.clips if clip.split == "test"], workdir, results


def details(detector, root, clips):
    return detector.score_recordings([detector.read(root / clip.path) for clip in clips])


def test_a_recording_scores_as_it_did_in_the_run(finished):
    root, test, workdir, results = finished
    detector = Detector.load(workdir)
    rows = details(detector, root, test)
    written = read_scores(workdir / "scores" / "finetune")
    for row, expected in zip(rows, written, strict=True):
        assert row == dataclasses.replace(expected, file=str(root / expected.file))
        assert row.nearest_class.split()[1] == row.section
    assert details(detector, root, test[2:3]) == rows[2:3]
    assert set(results["systems"]) == {"pretrain", "finetune", "spectral-knn", "gmm"}
    early = details(Detector.load(workdir, "pretrain"), root, test[:1])
    assert early[0].score != rows[0].score


def test_another_back_end_needs_no_training(finished, tmp_path):
    root, test, workdir, before = finished
    out = tmp_path / "again"
    results = remake.rescore(workdir, out, ["score.kind=knn", "score.hop=4"])
    assert set(results["systems"]) == {"pretrain", "finetune"}
    config = json.loads((out / "config.json").read_text())
    assert (config["system"]["score"]["kind"], config["system"]["score"]["hop"]) == ("knn", 4)
    old, new = Detector.load(workdir), Detector.load(out)
    assert new.members_[0].model.scorer.config.kind == "knn"
    variables = [one.members_[0].model.variables for one in (old, new)]
    jax.tree.map(np.testing.assert_array_equal, *variables)
    scores = [row.score for row in details(new, root, test)]
    assert scores == [row.score for row in read_scores(out / "scores" / "finetune")]
    with pytest.raises(ConfigError, match=r"pretrain.epochs=3 asks for training"):
        remake.rescore(workdir, tmp_path / "no", ["pretrain.epochs=3"])
    # The same settings give the same files as training did.
    same = remake.rescore(workdir, tmp_path / "same", ["score.hop=8"])
    assert same["systems"] == {name: before["systems"][name] for name in same["systems"]}
    for path in (tmp_path / "same" / "scores").rglob("*"):
        if path.is_file():
            written = workdir / path.relative_to(tmp_path / "same")
            assert written.read_bytes() == path.read_bytes()


def test_fused_detectors_score_as_one(finished, tmp_path):
    root, test, workdir, _ = finished
    out = tmp_path / "fused"
    knn = workdir / "scores" / "spectral-knn"
    results = remake.fuse(out, [workdir, knn])
    names = {f"{workdir.name}/finetune", f"{workdir.name}/spectral-knn"}
    assert set(results["systems"]) == {"fused", *names}
    rows = details(Detector.load(out), root, test)
    parts = [Detector.load(workdir, name) for name in ("finetune", "spectral-knn")]
    expected = combine(
        [np.array([row.score for row in details(part, root, test)]) for part in parts],
        [part.members_[0].held_out for part in parts],
        section_keys(test),
        [(machine, section) for _, machine, section in parts[0].train_clips_],
        parts=[0, 1],
        weights=[LEARNED, 1],
    )
    np.testing.assert_array_equal([row.score for row in rows], expected)
    written = read_scores(out / "scores" / "fused")
    assert [row.score for row in written] == [row.score for row in rows]
    # Again: the same result, and another one is refused.
    assert remake.fuse(out, [workdir, knn]) == results
    with pytest.raises(DataError, match="found another run"):
        remake.fuse(out, [knn, workdir])
    with pytest.raises(ConfigError, match="finetune is given twice"):
        remake.fuse(tmp_path / "no", [workdir, workdir / "scores" / "finetune"])
    assert not (tmp_path / "no").exists()
    # Fused once more, its parts stay parts.
    remake.fuse(tmp_path / "twice", [out, workdir])
    assert [one.part for one in Detector.load(tmp_path / "twice").members_] == [0, 1, 2]


def test_other_recordings_of_the_same_names_are_noticed(finished, tmp_path):
    """Where runs are fused, and where a run's features have become those of others."""
    runs = [shutil.copytree(finished[2], tmp_path / name) for name in ("one", "other")]
    for number, copy in enumerate(runs):
        names = [name for name, *_ in Detector.load(copy).train_clips_]
        collection = {name: [number, 0, 0] for name in names}
        write_config(copy, {**read_config(copy), "collection": collection})
    with pytest.raises(DataError, match=r"finetune: found other recordings: \d+ files changed"):
        remake.fuse(tmp_path / "no", [runs[0] / "scores" / "spectral-knn", runs[1]])
    write_results(runs[0], finished[3])
    with pytest.raises(DataError, match=r"features: found other recordings: \d+ files changed"):
        remake.rescore(runs[0], tmp_path / "no", ["score.kind=knn"])


# --- export

# scipy and flatbuffers are jax's own.
BLOCKED = """
import sys
for name in ("flax", "optax", "orbax", "librosa", "sklearn", "soundfile", "asdproto"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def audio_of(path):
    return soundfile.read(path, dtype="float32")[0]


BACKENDS = (
    ["score.kind=mahalanobis-knn", "score.shrinkage=0.1", "score.neighbors=3"],
    ["score.kind=knn", "score.neighbors=2"],
    ["score.kind=cosine"],
)


def test_exported_back_ends_score_as_the_detector(finished, tmp_path):
    root, test, workdir, _ = finished
    cut = tmp_path / "cut.wav"  # whose windows are not a whole number of hops apart
    soundfile.write(cut, audio_of(root / test[0].path)[:13000], 16000)
    for number, change in enumerate(BACKENDS):
        out = tmp_path / str(number)
        remake.rescore(workdir, out, change)
        detector = Detector.load(out)
        exported = Exported(detector.export(out / "export"))
        recordings = [detector.read(root / clip.path) for clip in test]
        recordings.append(detector.read(cut, section="00"))
        for row in detector.score_recordings(recordings):
            found = exported.score(audio_of(row.file), section=row.section)
            # float32 against float64 distances, and features from another FFT: 1e-7 of unit
            # embeddings that lie within 1e-2 of each other.
            assert found["score"] == pytest.approx(row.score, rel=1e-4, abs=1e-9)
            assert found["threshold"] == row.threshold
            assert " ".join(found["nearest_class"]) == row.nearest_class


def test_an_exported_detector_refuses_in_one_line(finished, tmp_path):
    """And scores where jax and numpy alone can be imported."""
    root, test, workdir, _ = finished
    out = tmp_path / "out"
    assert cli.main(["export", str(workdir), str(out)]) == 0
    (tmp_path / "text.wav").write_text("no wav")
    rows = [row for row in details(Detector.load(workdir), root, test) if row.section == "01"]
    (tmp_path / "cut.wav").write_bytes((root / test[0].path).read_bytes()[:-100])
    os.mkfifo(tmp_path / "pipe.wav")
    bad = [tmp_path / f"{name}.wav" for name in ("text", "no", "cut", "pipe")]
    command = [sys.executable, "-c", BLOCKED, out / "score.py", "--section", "01", *bad]
    command += [row.file for row in rows]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, len(bad))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for one, row in zip(found, rows, strict=True):
        assert one["score"] == pytest.approx(row.score, rel=1e-4)  # as above
        assert (one["file"], one["threshold"]) == (row.file, row.threshold)
    detector, samples = Exported(out), np.zeros(16000, np.float32)
    samples[5] = np.nan
    for wrong, message in (
        (samples, "expected at least 512 finite ones"),
        (samples[:0], "found 0 samples"),
        (np.zeros(16000, np.int16), "dtype int16; expected floating"),
        (np.zeros((2, 16000)), r"shape \[2, 16000\]"),
    ):
        with pytest.raises(ValueError, match=message):
            detector.score(wrong, section="00")
    with pytest.raises(ValueError, match="which machine type and section it is: fan 00, fan 01"):
        detector.score(audio_of(rows[0].file))
    damage.flip(out / "model.jax")
    with pytest.raises(ValueError, match=r"model\.jax: found another export's"):
        Exported(out)
    about = (out / "about.json").read_text()
    (out / "about.json").write_text(about.replace('"hop": 8', '"hop": 9'))
    with pytest.raises(ValueError, match=r"found no whole export .*about.json was changed"):
        Exported(out)


def test_only_prototypes_are_exported(finished, tmp_path):
    with pytest.raises(DataError, match="a detector of gmm; expected prototype members"):
        Detector.load(finished[2], "gmm").export(tmp_path / "out")
