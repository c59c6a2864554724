"""The paper's system on a few wav files: data set, training, scores, and single recordings."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from asdproto.config import override
from asdproto.data.dataset import ClipArrays, prepare
from asdproto.data.dcase import Clip
from asdproto.data.extract import build_store
from asdproto.data.store import write_store
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.systems import YARDSTICKS
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
    clips, rng = [], np.random.default_rng(0)
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
            clips.append(Clip(path, "fan", section, "source", split, state, f"n_{speed}"))
    store = build_store(clips, root, root / "features", FeatureSettings(), progress=False)
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
    return root, clips, workdir, results


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
        with pytest.raises(DataError, match="did you mean"):
            load_run(workdir)
    finally:
        path.write_text(saved)


def test_presets_differ_where_they_say():
    paper, small = two_stage.get_config("paper"), two_stage.get_config("small")
    assert paper == PrototypeSystem()
    assert (small.encoder.width, small.pretrain.epochs, small.finetune.epochs) == (16, 40, 20)
    assert dataclasses.replace(small.pretrain, epochs=120) == paper.pretrain
