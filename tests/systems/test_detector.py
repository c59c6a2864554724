"""The Detector: sklearn's and PyOD's habits, an encoder of one's own, several seeds."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

from asdproto import Detector, cli
from asdproto.config import ConfigError, override
from asdproto.data.dataset import prepare
from asdproto.data.dcase import Clip
from asdproto.errors import DataError
from asdproto.features import audio_features
from asdproto.scoring.thresholds import ThresholdWarning
from asdproto.systems.exported import Exported
from asdproto.systems.inputs import memory_store
from asdproto.systems.prototype import EncoderConfig, PrototypeSystem, train
from asdproto.systems.system import RunOptions
from asdproto.training.devices import use_devices
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
    np.testing.assert_array_equal(
        knn.decision_function(np.stack(waveforms), sample_rate=RATE), of_files
    )
    fitted = Detector(system="spectral-knn").fit(
        [soundfile.read(f, dtype="float32")[0] for f in sorted((folder / "normal").iterdir())],
        sample_rate=RATE,
    )
    np.testing.assert_array_equal(fitted.decision_function(folder / "new"), of_files)
    # Another rate is converted: the hum stays where it was, so the scores nearly do.
    double = [np.repeat(audio, 2) for audio in waveforms]
    found = knn.decision_function(double, sample_rate=2 * RATE)
    assert found[2:].min() > found[:2].max()


def test_a_saved_detector_is_a_run(knn, folder, tmp_path):
    run = knn.save(tmp_path / "run")
    again = Detector.load(run)
    expected = knn.decision_function(folder / "new")
    np.testing.assert_array_equal(again.decision_function(folder / "new"), expected)
    assert again.threshold_ == knn.threshold_
    table = tmp_path / "x.csv"
    assert cli.main(["score", str(run), str(folder / "new"), "--csv", str(table)]) == 0
    rows = table.read_text().splitlines()
    column = rows[0].split(",").index("score")
    assert sorted(float(row.split(",")[column]) for row in rows[1:]) == sorted(expected)
    assert cli.main(["report", str(run)]) == 0


def test_a_detector_is_saved_where_nothing_is(knn, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(b"mine")
    with pytest.raises(DataError, match="a folder with other things in it"):
        knn.save(tmp_path / "clips")
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["a.wav"]
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


def test_contamination_sets_the_threshold(knn, folder):
    loose = Detector.load(knn.save(folder / "run")).set_params(contamination=0.4)
    assert loose.threshold_ < knn.threshold_
    share = np.mean(loose.decision_scores_ > loose.threshold_)
    assert 0.2 <= share <= 0.6


def test_parameters_are_sklearns():
    detector = Detector(system="gmm", seed=3, parts__r=0.9)
    assert repr(detector) == "Detector(system='gmm', seed=3, parts__r=0.9)"
    assert detector.get_params()["parts__r"] == 0.9
    other = clone(detector)
    assert other is not detector
    assert other.get_params() == detector.get_params()
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


def test_few_clips_are_said_once():
    with pytest.warns(ThresholdWarning, match="spectral-knn: .* care: machine: it rests on 8 cl"):
        detector = Detector(system="spectral-knn").fit(NORMAL[:8], sample_rate=RATE)
    detector.predict(NEW, sample_rate=RATE)  # no warning
    (limit,) = detector.limits().values()
    assert (limit.clips, limit.above) == (8, np.mean(detector.decision_scores_ > limit.threshold))


def test_a_workdir_belongs_to_one_fit(tmp_path):
    options = {"sample_rate": RATE, "workdir": tmp_path / "w"}
    Detector(system="spectral-knn", **options).fit(NORMAL)
    Detector(system="spectral-knn", **options).fit(NORMAL)
    added = r"1 file added \(waveform 12\).*Give another workdir"
    with pytest.raises(DataError, match=added):
        Detector(system="spectral-knn", **options).fit([*NORMAL, NEW[0]])
    with pytest.raises(DataError, match=r"1 file changed \(waveform 3\)"):
        Detector(system="spectral-knn", **options).fit([*NORMAL[:3], NEW[0], *NORMAL[4:]])
    with pytest.raises(DataError, match="another seeds"):
        Detector(system="spectral-knn", seed=1, **options).fit(NORMAL)
    (tmp_path / "w" / "fit.json").unlink()
    (tmp_path / "w" / "a.wav").touch()
    with pytest.raises(DataError, match=r"a folder with other things in it \(a\.wav\)"):
        Detector(system="spectral-knn", **options).fit(NORMAL)


NAN = np.where(np.arange(RATE) == 7, np.nan, NORMAL[0])
BAD_FITS = [
    ({"system": "toaster"}, NORMAL, {}, "'toaster' is unknown"),
    ({"contamination": 1.0}, NORMAL, {}, "contamination=1.0: expected"),
    ({"contamination": "few"}, NORMAL, {}, "contamination='few': expected"),
    ({"preset": "huge"}, NORMAL, {}, "'huge' is unknown"),
    ({"seed": -1}, NORMAL, {}, "seed=-1: expected"),
    ({"seed": [0, 0]}, NORMAL, {}, r"seed=\[0, 0\]: expected"),
    ({"seed": 0.5}, NORMAL, {}, r"seed=0\.5: expected"),
    ({"system": "gmm", "prats__r": 3}, NORMAL, {}, "did you mean parts"),
    ({"sample_rate": None}, NORMAL, {}, "sample_rate"),
    ({"sample_rate": float("inf")}, NORMAL, {}, "sample_rate=inf: expected a whole number"),
    ({"sample_rate": True}, NORMAL, {}, "sample_rate=True: expected a whole number"),
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
    ({"preset": None}, NORMAL, {}, "preset 'None' is unknown"),
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


@pytest.mark.parametrize("rate", [1, float("inf"), 0, -16000, "16000", 16000.5])
def test_rates_that_are_none_are_refused_at_once(knn, rate):
    with pytest.raises(ConfigError, match="sample_rate="):
        knn.decision_function(NEW, sample_rate=rate)


def test_sections_and_machine_types(folder):
    sections = ["00", "01"] * 6
    detector = Detector(system="spectral-knn").fit(NORMAL, sample_rate=RATE, sections=sections)
    with pytest.raises(DataError, match="section unknown"):
        detector.predict(NEW, sample_rate=RATE)
    scores = detector.decision_function(NEW[:1] * 2, sample_rate=RATE, sections=["00", "01"])
    assert scores[1] > 2 * scores[0]
    with pytest.warns(ThresholdWarning, match="fan: it rests on 6 clips only; pump: it rests"):
        machines = Detector(system="spectral-knn").fit(
            NORMAL, sample_rate=RATE, machine_types=["fan", "pump"] * 6
        )
    assert set(machines.threshold_) == {"fan", "pump"}


SMALL = {
    "pretrain__epochs": 2,
    "pretrain__batch_size": 4,
    "finetune__epochs": 1,
    "finetune__shots": 2,
    "encoder__crop": 16,
}


def test_an_encoder_of_ones_own(tmp_path):
    module = tiny.Encoder(embedding_dim=6)
    detector = Detector(system=PrototypeSystem(encoder=EncoderConfig(module=module)), **SMALL)
    detector.fit(NORMAL, sample_rate=RATE, attributes=SPEEDS)
    scores = detector.decision_function(NEW, sample_rate=RATE)
    assert np.isfinite(scores).all()
    (row,) = detector.details(NEW[:1], sample_rate=RATE)
    assert row.nearest_class.split()[-1] in set(SPEEDS)
    run = detector.save(tmp_path / "run")
    loaded = Detector.load(run, encoder=tiny.Encoder(embedding_dim=6))
    np.testing.assert_array_equal(loaded.decision_function(NEW, sample_rate=RATE), scores)
    for wrong in (None, tiny.Encoder(embedding_dim=7)):
        with pytest.raises(DataError, match=r"encoder of its own.*embedding_dim = 6"):  # one line
            Detector.load(run, encoder=wrong)


def test_recordings_are_scored_onto_a_page(folder, tmp_path, capsys):
    files = sorted((folder / "normal").iterdir())
    detector = Detector(system="autoencoder", preset="quick", stage__epochs=1)
    detector.fit(files).save(tmp_path / "run")
    page = tmp_path / "page.html"
    command = ["score", str(tmp_path / "run"), str(folder / "new"), "--report", str(page)]
    assert cli.main([*command, "--threshold", "1e-3"]) == 0
    assert f"written: {page}" in capsys.readouterr().out
    text = page.read_text()
    rows = detector.details(folder / "new")
    places = [text.index(f"{row.file}</h3>") for row in sorted(rows, key=lambda r: -r.score)]
    assert places == sorted(places)  # the most anomalous first
    assert text.count("<audio") == 4
    assert text.count("limit 0.001") == 1 + 4
    assert f"4 of {len(rows)} recordings sound unlike normal" in text
    assert cli.main([*command[:2], "--watch", str(folder), *command[3:]]) == 1
    assert "--watch and --report" in capsys.readouterr().err


def test_several_seeds_are_one_detector(tmp_path):
    module = tiny.Encoder(embedding_dim=6)
    system = PrototypeSystem(encoder=EncoderConfig(module=module))
    found = {}
    for seed in (0, 1, [0, 1]):
        detector = Detector(system=system, seed=seed, workdir=tmp_path / str(seed), **SMALL)
        detector.fit(NORMAL, sample_rate=RATE, attributes=SPEEDS)
        scores = detector.decision_function(NEW, sample_rate=RATE)
        found[str(seed)] = scores, np.median(detector.decision_scores_)
    logs = [np.log(scores / median) for scores, median in (found["0"], found["1"])]
    # One section: the mean over seeds of log(score / median held-out training score).
    np.testing.assert_allclose(found["[0, 1]"][0], np.mean(logs, axis=0), rtol=1e-12)
    exported = Exported(detector.export(tmp_path / "out"))
    for audio, expected in zip(NEW, found["[0, 1]"][0], strict=True):
        # Logarithms: the relative error of float32 distances is an absolute one here.
        assert exported.score(audio)["score"] == pytest.approx(expected, abs=1e-5)


def test_importing_the_package_loads_no_detector():
    code = "import asdproto, sys; print('jax' in sys.modules, 'Detector' in dir(asdproto))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"
    import asdproto

    with pytest.raises(AttributeError, match="nope"):
        _ = asdproto.nope


def test_seeds_trained_as_one_program_are_those_trained_alone():
    system = override(
        PrototypeSystem(encoder=EncoderConfig(module=tiny.Encoder(embedding_dim=6))),
        [f"{name.replace('__', '.')}={value}" for name, value in SMALL.items()],
    )
    clips = [
        Clip(f"{index}.wav", "fan", "00", "", "train", "normal", speed)
        for index, speed in enumerate(SPEEDS)
    ]
    store = memory_store(
        clips,
        lambda index: (audio_features(NORMAL[index], RATE, system.features), None),
        system.features,
    )
    data = prepare(store, system.crop)
    options = RunOptions(None, use_devices(2))
    together = train(system, data, options, [0, 1, 2])
    for seed, states in zip([0, 1, 2], together, strict=True):
        alone = train(system, data, RunOptions(None, use_devices(1)), [seed])[0]
        for stage in ("pretrain", "finetune"):
            # vmap sums in another order, and training lets such differences grow.
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
                states[stage].params["encoder"],
                alone[stage].params["encoder"],
            )
