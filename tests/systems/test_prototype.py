"""The paper's system on a few wav files: data set, training, scores, and single recordings."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

from asdproto import cli
from asdproto.config import ConfigError, override
from asdproto.data.collection import read_collection
from asdproto.data.dataset import ClipArrays, prepare
from asdproto.data.dcase import Clip
from asdproto.data.extract import build_store
from asdproto.data.store import write_store
from asdproto.errors import DataError
from asdproto.results.run_folder import write_results
from asdproto.systems import YARDSTICKS, after
from asdproto.systems.embedding import embed_clips, window_starts
from asdproto.systems.members import RunOptions
from asdproto.systems.prototype import PrototypeSystem
from asdproto.systems.run import train_run
from asdproto.systems.trained import load_run
from asdproto.training.devices import use_devices
from experiments import two_stage
from tests.training import tiny


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(64, [0]), (65, [0, 1]), (96, [0, 32]), (97, [0, 16, 33]), (128, [0, 32, 64])],
)
def test_windows_cover_a_clip_to_its_last_frame(frames, expected):
    starts = window_starts(frames, 64, 32)
    assert np.abs(starts - expected).max() <= 1  # halves may be rounded either way
    assert starts[-1] + 64 == frames


def _embed(features, frames, **kwargs):
    model = tiny.Encoder()
    import jax

    variables = model.init(jax.random.key(0), np.zeros((1, 8, tiny.MELS), np.float32), train=False)
    rows = np.arange(len(features))
    clips = ClipArrays(features, rows, np.asarray(frames), 8)
    ones = np.ones(tiny.MELS)
    embeddings = embed_clips(model, variables, clips, mean=0 * ones, scale=ones, hop=4, **kwargs)
    return model, variables, embeddings


def test_an_embedding_is_the_mean_over_windows_and_does_not_depend_on_company():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((5, 30, tiny.MELS)).astype(np.float32)
    frames = [30, 8, 17, 5, 12]
    model, variables, found = _embed(features, frames, batch=8)
    for clip, count in enumerate(frames):
        length = max(count, 8)
        frames_of = np.take(features[clip, :count], np.arange(length) % count, axis=0)
        crops = np.stack([frames_of[s : s + 8] for s in window_starts(length, 8, 4)])
        mean = np.asarray(model.apply(variables, crops, train=False), np.float64).mean(axis=0)
        np.testing.assert_allclose(found[clip], mean / np.linalg.norm(mean), atol=1e-6)
    alone = _embed(features[2:3], frames[2:3], batch=8)[2]
    np.testing.assert_array_equal(alone[0], found[2])
    whole = _embed(features, frames, full_clip=True)[2]
    one = model.apply(variables, features[:1], train=False)
    np.testing.assert_allclose(whole[0], one[0], atol=1e-6)


def _clips(*rows):
    return [Clip(f"{i}.wav", *row) for i, row in enumerate(rows)]


NORMAL = ("fan", "00", "source", "train", "normal")


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (_clips(("fan", "00", "source", "test", "normal", "a_1")), "no training clips among 1"),
        (_clips((*NORMAL, "a_1"), (*NORMAL[:4], "anomaly", "a_2")), "an anomaly in the training"),
    ],
)
def test_unusable_collections_are_refused(tmp_path, clips, message):
    features = np.zeros((len(clips), 9, 4), np.float32)
    store = write_store(tmp_path / "s", features, clips, settings={"n_mels": 4}, dtype="float32")
    with pytest.raises(DataError, match=message):
        prepare(store, 8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run on ten recordings of two fans, and its results."""
    root = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    for section in ("00", "01"):
        for number, (split, speed) in enumerate(
            [("train", 1), ("train", 1), ("train", 2), ("train", 2), ("test", 1), ("test", 2)]
        ):
            state = "anomaly" if (split, speed) == ("test", 2) else "normal"
            name = f"section_{section}_source_{split}_{state}_{number:04d}_n_{speed}.wav"
            path = f"fan/{split}/{name}"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            hum = np.sin(np.arange(16000) * 0.1 * speed * (1 + int(section)))
            soundfile.write(root / path, 0.1 * (hum + rng.standard_normal(16000)), 16000)
    store = build_store(read_collection(root), root / "features", progress=False)
    # Four attribute classes: fewer than the ten that an episode of the paper takes.
    system = override(
        PrototypeSystem(),
        [
            "encoder.width=4",
            "encoder.crop=16",
            "pretrain.epochs=1",
            "pretrain.batch_size=4",
            "finetune.epochs=1",
            "finetune.shots=2",
            "score.hop=8",
        ],
    )
    workdir = tmp_path_factory.mktemp("run")
    with pytest.warns(UserWarning, match="undefined"):  # there is no target domain
        results = train_run(system, store, RunOptions(workdir, use_devices(1)), seeds=[0])
    write_results(workdir, results)
    return root, store.clips, workdir, results


def test_a_recording_scores_as_it_did_in_the_run(finished):
    root, clips, workdir, results = finished
    run = load_run(workdir)
    test = [clip for clip in clips if clip.split == "test"]
    rows = run.score_files([root / clip.path for clip in test])
    written = {}
    for section in ("00", "01"):
        file = workdir / "scores" / "finetune" / f"anomaly_score_fan_section_{section}_test.csv"
        written.update(line.rsplit(",", 1) for line in file.read_text().splitlines())
    assert [float(written[clip.name]) for clip in test] == [row["score"] for row in rows]
    assert [(row["machine_type"], row["section"]) for row in rows] == [
        (clip.machine_type, clip.section) for clip in test
    ]
    alone = run.score_files([root / test[2].path])
    assert alone == [rows[2]]
    for row in rows:
        assert row["decision"] == int(row["score"] > row["threshold"])
        assert row["nearest_class"][1] == row["section"]
    assert set(results["systems"]) == {"pretrain", "finetune", *YARDSTICKS}
    early = load_run(workdir, "pretrain").score_files([root / test[0].path])
    assert early[0]["score"] != rows[0]["score"]


def test_a_recording_of_unknown_origin_asks_for_its_section(finished, tmp_path):
    root, clips, workdir, _ = finished
    run = load_run(workdir)
    (tmp_path / "new.wav").write_bytes((root / clips[-1].path).read_bytes())
    with pytest.raises(DataError, match=r"section unknown.*fan 00, fan 01.*--section"):
        run.score_files([tmp_path / "new.wav"])
    row = run.score_files([tmp_path / "new.wav"], section="01")[0]
    assert row["score"] == run.score_files([root / clips[-1].path])[0]["score"]
    with pytest.raises(DataError, match="machine type pump"):
        run.score_files([tmp_path / "new.wav"], machine_type="pump", section="01")


def test_a_run_that_is_not_finished_or_damaged_is_refused(finished, tmp_path):
    with pytest.raises(DataError, match="no finished detector"):
        load_run(tmp_path)
    workdir = finished[2]
    with pytest.raises(DataError, match="no finished detector nope; there are finetune, gmm"):
        load_run(workdir, "nope")
    about = json.loads((workdir / "config.json").read_text())
    assert about["system"]["encoder"]["width"] == 4
    path = workdir / "scores" / "finetune" / "detector.json"
    saved = path.read_text()
    try:
        path.write_text(saved.replace('"width"', '"wdith"'))
        with pytest.raises(DataError, match="what its checksum says"):
            load_run(workdir)
    finally:
        path.write_text(saved)


@pytest.mark.filterwarnings("ignore:undefined figures")  # there is no target domain
@pytest.mark.filterwarnings("ignore::asdproto.scoring.thresholds.ThresholdWarning")
def test_another_back_end_needs_no_training(finished, tmp_path):
    root, clips, workdir, _ = finished
    out = tmp_path / "again"
    results = after.rescore(workdir, ["score.kind=knn", "score.hop=4"], out)
    assert set(results["systems"]) == {"pretrain", "finetune", *YARDSTICKS}
    config = json.loads((out / "config.json").read_text())
    assert (config["system"]["score"]["kind"], config["system"]["score"]["hop"]) == ("knn", 4)
    old, new = load_run(workdir), load_run(out)
    assert new.members[0].scorer.kind == "knn"
    jax.tree.map(np.testing.assert_array_equal, old.members[0].variables, new.members[0].variables)
    test = [clip for clip in clips if clip.split == "test" and clip.section == "00"]
    rows = new.score_files([root / clip.path for clip in test])
    file = out / "scores" / "finetune" / "anomaly_score_fan_section_00_test.csv"
    written = [float(line.rsplit(",", 1)[1]) for line in file.read_text().splitlines()]
    assert [row["score"] for row in rows] == written
    with pytest.raises(ConfigError, match=r"pretrain.epochs=3 asks for training"):
        after.rescore(workdir, ["pretrain.epochs=3"], out)
    # The same settings give the same scores as training did.
    after.rescore(workdir, ["score.hop=8"], tmp_path / "same")
    for name in ("anomaly_score_fan_section_01_test.csv", "thresholds.json", "result.csv"):
        here, there = (run / "scores" / "finetune" / name for run in (tmp_path / "same", workdir))
        assert here.read_bytes() == there.read_bytes()


@pytest.mark.filterwarnings("ignore:undefined figures", "ignore:no gamma distribution")
def test_fused_detectors_score_as_one(finished, tmp_path):
    root, clips, workdir, _ = finished
    out = tmp_path / "fused"
    knn = workdir / "scores" / "spectral-knn"
    results = after.fuse(out, [workdir, knn], [3, 1])
    assert set(results["systems"]) == {
        "fused",
        f"{workdir.name}/finetune",
        f"{workdir.name}/spectral-knn",
    }
    fused = load_run(out)
    test = [clip for clip in clips if clip.split == "test"]
    rows = fused.score_files([root / clip.path for clip in test])
    parts = [load_run(workdir), load_run(workdir, "spectral-knn")]
    logs = []
    for part in parts:
        scores = np.array([r["score"] for r in part.score_files([root / c.path for c in test])])
        sections = np.array([section for _, section in part.train_sections])
        own = [np.median(part.held_out[0][sections == clip.section]) for clip in test]
        logs.append(np.log(scores / own))
    # Sums of two float64 logarithms.
    np.testing.assert_allclose(
        [row["score"] for row in rows], 0.75 * logs[0] + 0.25 * logs[1], rtol=1e-9, atol=1e-12
    )
    written = {}
    for file in (out / "scores" / "fused").glob("anomaly_score_*_test.csv"):
        written.update(line.rsplit(",", 1) for line in file.read_text().splitlines())
    assert [float(written[clip.name]) for clip in test] == [row["score"] for row in rows]
    # Fused again with a part of its own: the weights are shared out.
    again = after.fuse(tmp_path / "twice", [out, knn], [1, 1])
    assert load_run(tmp_path / "twice").weights == pytest.approx([0.375, 0.125, 0.5])
    assert sum(after.fuse(tmp_path / "balanced", [workdir, knn])["weights"]) == pytest.approx(1)
    assert again["systems"]["fused"]["machines"]
    for weights, message in (([1], "expected 2"), ([-1, 1], "none below 0"), ([0, 0], "one above")):
        with pytest.raises(ConfigError, match=message):
            after.fuse(tmp_path / "no", [workdir, knn], weights)


# scipy and flatbuffers are jax's own.
BLOCKED = """
import sys
for name in ("flax", "optax", "orbax", "librosa", "sklearn", "soundfile", "asdproto"):
    sys.modules[name] = None
"""


@pytest.mark.filterwarnings(
    "ignore:undefined figures", "ignore::asdproto.scoring.thresholds.ThresholdWarning"
)
@pytest.mark.parametrize(
    "change",
    [
        [],
        ["score.kind=mahalanobis", "score.shrinkage=0.001"],
        ["score.kind=knn", "score.neighbors=2"],
        ["score.kind=cosine", "score.full_clip=false"],
    ],
    ids=lambda change: "-".join(change),
)
def test_an_exported_detector_needs_jax_and_numpy_alone(finished, tmp_path, change):
    root, clips, workdir, _ = finished
    if change:
        after.rescore(workdir, change, tmp_path / "run")
        workdir = tmp_path / "run"
    assert cli.main(["export", str(workdir), str(tmp_path / "out")]) == 0
    test = [clip for clip in clips if clip.split == "test"]
    code = (
        f"{BLOCKED}\nsys.path.insert(0, {str(tmp_path / 'out')!r})\n"
        "import json, wave, numpy as np\nfrom score import Exported\n"
        f"exported, rows = Exported({str(tmp_path / 'out')!r}), []\n"
        f"for path, section in {[(str(root / clip.path), clip.section) for clip in test]!r}:\n"
        "    with wave.open(path) as file:\n"
        "        data = np.frombuffer(file.readframes(file.getnframes()), np.int16)\n"
        "    rows.append(exported.score(data / np.float32(32768), section=section))\n"
        "print(json.dumps(rows))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    expected = load_run(workdir).score_files([root / clip.path for clip in test])
    for row, other in zip(rows, expected, strict=True):
        # float32 against float64 distances, and features from another FFT: 1e-7 of unit embeddings
        # that lie within 1e-2 of each other.
        assert row["score"] == pytest.approx(other["score"], rel=1e-4)
        assert row["threshold"] == other["threshold"]
        assert tuple(row["nearest_class"]) == other["nearest_class"]


def test_other_systems_are_not_exported(finished, tmp_path, capsys):
    arguments = ["export", str(finished[2]), str(tmp_path), "--detector", "gmm"]
    assert cli.main(arguments) == 1
    assert "a detector of gmm; expected prototype members" in capsys.readouterr().err


def test_presets_differ_where_they_say():
    paper, small = two_stage.get_config("paper"), two_stage.get_config("small")
    assert paper == PrototypeSystem()
    assert (small.encoder.width, small.pretrain.epochs, small.finetune.epochs) == (16, 10, 5)
    assert dataclasses.replace(small.pretrain, epochs=120) == paper.pretrain
