"""The Detector: sklearn's and PyOD's habits, an encoder of one's own, several seeds."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

import asdproto
from asdproto import Detector, cli
from asdproto.errors import DataError
from asdproto.scoring.thresholds import ThresholdWarning
from asdproto.systems.exported import Exported
from tests.test_robustness import tiny_run
from tests.training import tiny

RATE = 16_000


def hum(pitch, seed, seconds=1.0):
    """A hum of a few harmonics in noise, float32."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * pitch * n * time + rng.uniform(0, 6)) / n for n in (1, 2, 3))
    return (0.1 * tones + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


NORMAL = [hum(pitch, seed) for seed, pitch in enumerate([200, 300] * 6)]
SPEEDS = ["speed_1", "speed_2"] * 6
NEW = [hum(200, 20), hum(300, 21), hum(450, 22), hum(700, 23)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same clips as 16-bit wav files."""
    folder = tmp_path_factory.mktemp("clips")
    for kind, clips in (("normal", NORMAL), ("new", NEW)):
        for index, audio in enumerate(clips):
            (folder / kind).mkdir(exist_ok=True)
            soundfile.write(folder / kind / f"{index:02d}.wav", audio, RATE)
    return folder


@pytest.fixture(scope="module")
def knn(folder):
    return Detector(system="spectral-knn").fit(sorted((folder / "normal").iterdir()))


def test_it_tells_other_sounds_from_normal_ones(knn, folder):
    files = sorted((folder / "new").iterdir())
    scores = knn.decision_function(files)
    assert scores.dtype == np.float64
    assert scores[2:].min() > knn.threshold_ > scores[:2].max()
    np.testing.assert_array_equal(knn.predict(files), [0, 0, 1, 1])
    # A folder is its files; a clip scores alike alone.
    np.testing.assert_array_equal(knn.decision_function(folder / "new"), scores)
    np.testing.assert_array_equal(knn.decision_function([files[2]]), scores[2:3])
    row = knn.details(files)[3]
    assert (row.file, row.threshold, row.percentile) == (str(files[3]), knn.threshold_, 100.0)
    assert knn.decision_scores_.shape == (12,)
    np.testing.assert_array_equal(knn.labels_, knn.decision_scores_ > knn.threshold_)


def test_waveforms_score_like_the_files_they_came_from(knn, folder):
    waveforms = [soundfile.read(f, dtype="float32")[0] for f in sorted((folder / "new").iterdir())]
    of_files = knn.decision_function(folder / "new")
    np.testing.assert_array_equal(knn.decision_function(waveforms, sample_rate=RATE), of_files)
    fitted = Detector(system="spectral-knn").fit(
        [soundfile.read(f, dtype="float32")[0] for f in sorted((folder / "normal").iterdir())],
        sample_rate=RATE,
    )
    np.testing.assert_array_equal(fitted.decision_function(folder / "new"), of_files)


def test_recordings_unlike_the_training_ones_carry_a_note(knn, tmp_path):
    """Alike for files and waveforms, by detectors that were fitted on either."""
    arrays = Detector(system="spectral-knn", sample_rate=RATE).fit(NORMAL)
    odd = [0.01 * NEW[0], np.clip(40 * NEW[1], -1, 1), np.zeros(RATE, np.float32), NEW[1]]
    expected = ["level", "% of the samples clipped; level", "one value throughout", ""]
    for number, samples in enumerate(odd):
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE)
    for detector in (knn, Detector.load(arrays.save(tmp_path / "arrays"))):
        notes = [row.note for row in detector.details(odd, sample_rate=RATE)]
        files = sorted(tmp_path.glob("*.wav"))
        assert [row.note for row in detector.details(files)] == notes
        for note, text in zip(notes, expected, strict=True):
            assert text in note
            assert bool(text) == bool(note)
        (row,) = detector.details([np.repeat(NEW[0], 2)], sample_rate=2 * RATE)
        assert row.note == "32000 Hz where training has 16000"


def test_a_saved_detector_is_a_run(knn, folder, tmp_path):
    run = knn.save(tmp_path / "run")
    again = Detector.load(run)
    expected = knn.decision_function(folder / "new")
    np.testing.assert_array_equal(again.decision_function(folder / "new"), expected)
    assert again.threshold_ == knn.threshold_
    loose = Detector.load(run).set_params(contamination=0.4)
    assert loose.threshold_ < knn.threshold_
    page = tmp_path / "page.html"
    command = ["score", str(run), str(folder / "new"), "--report", str(page)]
    assert cli.main([*command, "--threshold", "1e-3"]) == 0
    text = page.read_text()
    assert text.count("<audio") == 4
    assert text.count("limit 0.001") == 1 + 4
    assert "4 of 4 recordings sound unlike normal" in text
    assert cli.main(["report", str(run)]) == 0


def test_a_detector_is_saved_where_nothing_is(knn, tmp_path):
    with pytest.raises(DataError, match="found no finished detector;"):
        Detector.load(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"mine")
    with pytest.raises(DataError, match="a folder with other things in it"):
        knn.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    run = knn.save(tmp_path / "run")
    assert knn.save(run) == run  # the same one again
    other = Detector(system="gmm").fit(NORMAL, sample_rate=RATE)
    with pytest.raises(DataError, match="found another run"):
        other.save(run)


def test_the_example_of_the_readme_runs(folder, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- example: detector -->\s*```python\n(.*?)```", text, re.DOTALL)[1]
    (tmp_path / "recordings").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md: detector", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    # One in ten normal clips may be called an anomaly; those that are none are far beyond.
    assert [line.split()[1] for line in lines[2:]] == ["anomaly", "anomaly"]
    detector = Detector.load("runs/spectra")
    scores = detector.decision_function(folder / "new")
    assert scores[:2].max() < 1.05 * detector.threshold_ < 0.5 * scores[2:].min()


def test_parameters_are_sklearns():
    detector = Detector(system="gmm", seed=3, parts__r=0.9)
    assert repr(detector) == "Detector(system='gmm', seed=3, parts__r=0.9)"
    assert detector.get_params()["parts__r"] == 0.9
    assert clone(detector).get_params() == detector.get_params()
    assert repr(detector.set_params(seed=0, quantile=0.8)) == (
        "Detector(system='gmm', parts__r=0.9, quantile=0.8)"
    )
    with pytest.raises(NotFittedError, match="not fitted"):
        detector.predict(["a.wav"])
    with pytest.raises(NotFittedError):
        check_is_fitted(detector)


def test_scikit_learn_works_with_it(knn):
    check_is_fitted(knn)
    pipeline = make_pipeline(
        FunctionTransformer(), Detector(system="spectral-knn", sample_rate=RATE)
    )
    pipeline.fit(np.stack(NORMAL))
    np.testing.assert_array_equal(pipeline.predict(np.stack(NEW)), [0, 0, 1, 1])
    more = [hum(pitch, seed) for seed, pitch in enumerate([200, 300] * 6, 30)]
    clips = np.stack([*NORMAL, NEW[2], *more, NEW[3]])
    labels = np.isin(np.arange(26), (12, 25)).astype(int)
    detector = Detector(system="spectral-knn", sample_rate=RATE)
    scores = cross_val_score(detector, clips, labels, cv=2)  # anomalies are never fitted on
    np.testing.assert_array_equal(scores, [1.0, 1.0])
    grid = GridSearchCV(detector, {"parts__score__neighbors": [1, 2]}, cv=2).fit(clips, labels)
    assert set(grid.best_params_) == {"parts__score__neighbors"}
    fitted = Detector(system="spectral-knn", sample_rate=RATE)
    np.testing.assert_array_equal(fitted.fit_predict(NORMAL), fitted.labels_)
    assert fitted.score(NEW, [0, 0, 1, 1]) == 1.0
    shares = fitted.predict_proba([*NORMAL[:1], *NEW])
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert (shares[0, 1], shares[3:, 1].tolist()) == (0.0, [1.0, 1.0])  # its own clip, and hums


def test_a_workdir_belongs_to_one_fit(tmp_path):
    options = {"sample_rate": RATE, "workdir": tmp_path / "w"}
    Detector(system="spectral-knn", **options).fit(NORMAL)
    Detector(system="spectral-knn", **options).fit(NORMAL)
    with pytest.raises(DataError, match=r"1 file changed \(waveform 3\)"):
        Detector(system="spectral-knn", **options).fit([*NORMAL[:3], NEW[0], *NORMAL[4:]])
    (tmp_path / "w" / "config.json").unlink()
    (tmp_path / "w" / "a.wav").touch()
    with pytest.raises(DataError, match=r"a folder with other things in it \(a\.wav\)"):
        Detector(system="spectral-knn", **options).fit(NORMAL)


NAN = np.where(np.arange(RATE) == 7, np.nan, NORMAL[0])
BAD_FITS = [
    ({"contamination": "few"}, NORMAL, {}, "contamination='few': expected"),
    ({"preset": None}, NORMAL, {}, "preset 'None' is unknown"),
    ({"seed": -1}, NORMAL, {}, "seed=-1: expected"),
    ({"seed": [0, 0]}, NORMAL, {}, r"seed=\[0, 0\]: expected"),
    ({"seed": 0.5}, NORMAL, {}, r"seed=0\.5: expected"),
    ({"system": "gmm", "prats__r": 3}, NORMAL, {}, "did you mean parts"),
    ({"sample_rate": None}, NORMAL, {}, "sample_rate"),
    ({"sample_rate": float("inf")}, NORMAL, {}, "sample_rate=inf: expected a whole number"),
    ({"sample_rate": True}, NORMAL, {}, "sample_rate=True: expected a whole number"),
    ({"sample_rate": 16000.5}, NORMAL, {}, r"sample_rate=16000\.5: expected a whole number"),
    ({}, [], {}, "no clips"),
    ({}, 7, {}, "X is a int"),
    ({}, NORMAL, {"attributes": ["a"]}, "attributes has 1 values for 12 clips"),
    ({}, NORMAL, {"domains": [*["source"] * 11, "sorce"]}, "domain of clip 11 is 'sorce'"),
    ({}, NORMAL, {"sections": [1] * 12}, "section of clip 0 is 1: expected a text"),
    ({}, NORMAL, {"y": [0, 2] * 6}, r"y has shape \[12\]: expected 0 or 1"),
    ({}, ["section_00_source_train_anomaly_0000.wav"] * 2, {}, "no readable file"),
    ({}, [NORMAL[0], np.zeros((2, RATE))], {}, r"waveform 1: found shape \[2, 16000\]"),
    ({}, [NORMAL[0], np.zeros(RATE, np.int16)], {}, "waveform 1: .* divide integers"),
    ({}, [NORMAL[0], NAN], {}, "waveform 1: found samples that are not finite"),
    ({}, [NORMAL[0], np.zeros(9)], {}, "waveform 1: found 9 samples"),
    ({"system": "prototype"}, NORMAL, {}, "1 attribute class among 12"),
    ({"system": 3}, NORMAL, {}, "system=3: expected a name"),
    ({"contamination": 1e-300}, NORMAL, {}, "contamination=1e-300: expected"),
    ({}, NORMAL, {"attributes": 3}, "attributes=3: expected a text, or one a clip"),
    ({}, NORMAL, {"machine_types": "a\nb"}, r"machine_type of clip 0 is 'a\\nb': expected"),
    ({}, NORMAL, {"y": [1] * 12}, "y: found anomalies only"),
]


@pytest.mark.parametrize(("parameters", "clips", "options", "message"), BAD_FITS)
def test_what_cannot_be_fitted_is_said(parameters, clips, options, message):
    detector = Detector(**{"system": "spectral-knn", "sample_rate": RATE, **parameters})
    with pytest.raises(ValueError, match=message) as caught:
        detector.fit(clips, options.pop("y", None), **options)
    assert "\n" not in str(caught.value)


def test_sections_and_machine_types(folder):
    sections = ["00", "01"] * 6
    detector = Detector(system="spectral-knn").fit(NORMAL, sample_rate=RATE, sections=sections)
    unknown = r"section unknown; expected one of machine 00, machine 01\. .*--section"
    with pytest.raises(DataError, match=unknown):
        detector.predict(NEW, sample_rate=RATE)
    with pytest.raises(DataError, match="machine type pump, section 00"):
        detector.predict(NEW, sample_rate=RATE, sections="00", machine_types="pump")
    scores = detector.decision_function(NEW[:1] * 2, sample_rate=RATE, sections=["00", "01"])
    assert scores[1] > 2 * scores[0]
    with pytest.warns(ThresholdWarning, match="fan: it rests on 6 clips only; pump: it rests"):
        machines = Detector(system="spectral-knn").fit(
            NORMAL, sample_rate=RATE, machine_types=["fan", "pump"] * 6
        )
    assert set(machines.threshold_) == {"fan", "pump"}
    machines.predict(NEW, sample_rate=RATE, machine_types="fan")  # no warning again


def test_several_seeds_are_one_detector(tmp_path):
    """With an encoder of one's own."""
    small = dict(text.split("=") for text in tiny_run.OVERRIDES)
    own = Detector(system="tests.training.tiny:System", seed=[0, 1], **small)
    own.fit(NORMAL, sample_rate=RATE, attributes=SPEEDS)
    data = own.details(NEW, sample_rate=RATE)
    assert Detector.load(own.save(tmp_path / "run")).details(NEW, sample_rate=RATE) == data
    assert data[0].nearest_class.split()[-1] in SPEEDS
    alone = []
    for member in own.members_:
        one = Detector()
        one.restore(own.about_, [member], own.train_clips_)
        scores = one.decision_function(NEW, sample_rate=RATE)
        alone.append(np.log(scores / np.median(one.decision_scores_)))
    # One section: the mean over seeds of log(score / median held-out training score).
    expected = np.mean(alone, axis=0)
    np.testing.assert_allclose([row.score for row in data], expected, rtol=1e-12)
    exported = Exported(own.export(tmp_path / "out"))
    for audio, score in zip(NEW, expected, strict=True):
        # Logarithms: the relative error of float32 distances is an absolute one here.
        assert exported.score(audio)["score"] == pytest.approx(score, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*trust the threshold", "ignore:undefined figures")
def test_an_encoder_of_ones_own_goes_through_every_command(folder, tmp_path, monkeypatch, capsys):
    """It is trained, fused with spectra, scored, scored anew and exported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    code = Path(tiny.__file__).read_text()
    (tmp_path / "mine_at_home.py").write_text(code.replace(tiny.__name__, "mine_at_home"))
    for index, file in enumerate(sorted((folder / "normal").iterdir())):
        name = f"section_00_source_train_normal_{index:04d}_{SPEEDS[index]}.wav"
        (tmp_path / "data" / "fan" / "train").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "data" / "fan" / "train" / name)
    options = ["--preset", "quick", "--devices", "1", "--system", "mine_at_home:System"]
    options += tiny_run.OVERRIDES
    assert cli.main(["train", "data", "run", *options]) == 0
    kinds = [member.model.system.kind for member in Detector.load("run").members_]
    assert kinds == ["mine_at_home:System", *["spectral"] * 4]
    assert cli.main(["train", "data", "run", *options]) == 0  # only reports
    clip = str(folder / "new" / "02.wav")
    for name in ("fused", "finetune"):
        assert cli.main(["score", "run", clip, "--detector", name]) == 0
    assert cli.main(["rescore", "run", "again", "score.kind=cosine"]) == 0
    assert cli.main(["export", "run", "out"]) == 0
    assert cli.main(["report", "run"]) == 0
    # Where its code is gone, one line says so.
    monkeypatch.delitem(sys.modules, "mine_at_home")
    (tmp_path / "mine_at_home.py").unlink()
    capsys.readouterr()
    assert cli.main(["score", "run", clip]) == 1
    assert "'mine_at_home:System': found no module 'mine_at_home'" in capsys.readouterr().err


def test_the_package_names_the_detector_and_nothing_else():
    with pytest.raises(AttributeError, match="nope"):
        _ = asdproto.nope
