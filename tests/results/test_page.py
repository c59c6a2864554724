import base64
import html.parser
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import soundfile
from rich.console import Console

from asdproto.data.dcase import Clip
from asdproto.data.store import write_store
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.files import write_arrays
from asdproto.results import clips as report_clips
from asdproto.results import page, plots, tables
from asdproto.results.clips import most_anomalous
from asdproto.results.run_folder import (
    read_config,
    read_run,
    write_config,
    write_results,
    write_scores,
)
from asdproto.results.system_folder import ScoredClip, infer_thresholds, threshold_effects
from asdproto.scoring import metrics
from asdproto.scoring.backends import fit_scorer
from asdproto.scoring.thresholds import decide, gamma_threshold
from tests.results.rows import scored

SETTINGS = FeatureSettings(n_fft=256, hop_length=128, n_mels=8)
CLASSES = [
    ["fan", "00", "a"],
    ["fan", "00", "b"],
    ["fan", "01", "a"],
    ["valve", "00", "a"],
]


def clips_of(machine, section, split, count, labelled=True):
    states = ("normal",) if split == "train" else ("normal", "anomaly")
    return [
        Clip(
            f"{machine}/{split}/section_{section}_{domain}_{split}_{state}_{index:04d}.wav"
            if labelled
            else f"{machine}/{split}/{section}-{domain}-{state}-{index}.wav",
            machine,
            section,
            domain,
            split,
            state if labelled else "",
            "",
        )
        for domain in ("source", "target")
        for state in states
        for index in range(count)
    ]


def make_run(root, *, labelled=True, seed=0):
    """A finished run of two systems with everything that a run can hold."""
    rng = np.random.default_rng(seed)
    parts = (("fan", "00"), ("fan", "01"), ("valve", "00"))
    train = [c for part in parts for c in clips_of(*part, "train", 12)]
    test = [c for part in parts for c in clips_of(*part, "test", 6, labelled)]
    every = [*train, *test]
    features = rng.normal(size=(len(every), 40, SETTINGS.n_mels))
    write_store(root / "features", features, every, settings=SETTINGS)
    for clip in test[::3]:
        path = root / "data" / clip.path
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(16_000), 16_000)
    systems = {}
    for name in ("pretrain", "finetune"):
        folder = root / "scores" / name
        scores = 1.0 + rng.random(len(test)) + [clip.path.count("anomaly") for clip in test]
        held_out = 1.0 + rng.gamma(4.0, 0.1, len(train))
        write_scores(folder, scored(test, scores, 1.75))
        training = {"machine_types": np.array([c.machine_type for c in train]), "scores": held_out}
        write_arrays(folder / "training_scores.npz", training)
        if labelled:
            grouped = metrics.group_scores(test, scores, decide(scores, 1.75))
            systems[name] = metrics.evaluate(grouped)
    embeddings = [rng.normal(size=(len(c), 6)) * [9.0, 5.0, 2, 1, 1, 1] for c in (train, test)]
    labels = np.array([CLASSES.index([c.machine_type, c.section, "a"]) for c in train])
    labels[:5] = 1
    keys = [(clip.machine_type, clip.section) for clip in train]
    scorer = fit_scorer(embeddings[0], labels, keys, kind="cosine")
    member = {f"scorer/{name}": array for name, array in scorer.to_arrays().items()}
    write_arrays(folder / "member_0.npz", member)
    files = [np.array([clip.path for clip in group]) for group in (train, test)]
    names = ("train", "test", "train_files", "test_files")
    write_arrays(folder / "embeddings.npz", dict(zip(names, [*embeddings, *files], strict=True)))
    write_results(root, {"seeds": [0], "systems": systems})
    rows = [
        {
            "stage": stage,
            "epoch": epoch,
            "step": 10 * epoch,
            "loss": 2.0 / epoch,
            "learning_rate": 0.1 / epoch,
            "seconds": 1.5,
            "clips_per_second": 100.0,
        }
        for stage in ("pretrain", "finetune")
        for epoch in (1, 2, 3)
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"kind": "prototype", "system": {"width": 16, "fmax": None}, "names": []}
    write_config(root, {**config, "classes": CLASSES})
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="module")
def finished_page(finished):
    return page.render(read_run(finished))


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


class Balance(html.parser.HTMLParser):
    """Fails on a closing tag that closes nothing and collects what could reach the network."""

    VOID = frozenset(("meta", "br", "img", "link"))

    def __init__(self):
        super().__init__()
        self.open, self.references, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [
            (tag, name, value)
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "data", "action") or name.startswith("on")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(text):
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    return balance


def table_rows(text):
    text = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[cell.strip() for cell in row] for row in cells]


def test_the_page_is_whole_and_self_contained(workdir):
    text = page.write_report(workdir).read_text()
    assert (workdir / "report.html").read_text() == text
    parsed = parse(text)
    assert not parsed.tags & {"script", "link", "iframe", "object", "form"}
    assert {tag for tag, _, value in parsed.references if value.startswith("data:")} == {
        "img",
        "image",
        "audio",
    }
    # Beside data in the page itself, references within a picture (clip paths) are all there is.
    assert all(value.startswith(("#", "data:")) for _, _, value in parsed.references)
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    # Ten clips; two systems of three sections; two maps and a matrix; two stages.
    assert len(pictures) == 10 + 2 * 3 + 3 + 2
    for picture in pictures:
        ElementTree.fromstring(picture.replace("xlink:href", "href"))
        assert not [color for color in plots._VARIABLES if color in picture]
    assert page.write_report(workdir).read_text() == text, "the same run gives the same page"
    assert "NaN" not in text
    assert page.write_report(workdir, workdir / "elsewhere.html") == workdir / "elsewhere.html"


def test_the_page_shows_the_figures(finished, finished_page):
    run = read_run(finished)
    rows = table_rows(finished_page)
    for name, system in run.systems.items():
        expected = [name, *(f"{100 * system.figures[metric]:.2f}" for metric in tables.HEADLINE)]
        machines = system.figures["machines"].values()
        assert [*expected, *(f"{100 * machine['overall']:.2f}" for machine in machines)] in rows
        for machine in machines:
            for section, values in machine["sections"].items():
                three = [f"{100 * values[metric]:.2f}" for metric in metrics.AUC_METRICS]
                assert any(row[:5] == ["", section, *three] for row in rows), (name, section)
    assert ["pretrain", "3", "2.0000", "0.6667", "0.0333333", "4.5", "100"] in rows
    assert ["system.width", "16"] in rows
    assert ["system.fmax", "null"] in rows


@pytest.mark.filterwarnings("ignore:undefined figures")
def test_everything_from_files_is_escaped(tmp_path):
    evil = "<script>alert('$x$')</script>&\""
    root = tmp_path / "run <b>"
    clips = [
        Clip(f"t/<script>{i}.wav", "a&<i>b", "0<u>", domain, split, state, "")
        for split, state in (("train", "normal"), ("test", "normal"), ("test", "anomaly"))
        for i, domain in enumerate(("source", "target") * 2)
    ]
    names = [clip.path for clip in clips]
    write_store(root / "features", np.ones((12, 9, 8)), clips, settings=SETTINGS)
    folder = root / "scores" / "<script>of"
    test = [clip for clip in clips[4:] if clip.state == "normal"]
    write_scores(folder, scored(test, np.arange(4.0)))
    keys = [("a&<i>b", "0<u>")] * 4
    embeddings = np.random.default_rng(0).normal(size=(12, 3))
    scorer = fit_scorer(embeddings[:4], np.array([0, 0, 1, 1]), keys, kind="cosine")
    member = {f"scorer/{name}": array for name, array in scorer.to_arrays().items()}
    write_arrays(folder / "member_0.npz", member)
    arrays = {"train": embeddings[:4], "test": embeddings[4:8]}
    files = {"train_files": np.array(names[:4]), "test_files": np.array(names[4:8])}
    write_arrays(folder / "embeddings.npz", {**arrays, **files})
    config = {"kind": evil, "system": {evil: evil}, "names": [], "classes": [[evil], [evil, "2"]]}
    write_config(root, config)
    row = {"stage": evil, "epoch": 1, "loss": 1.0, "learning_rate": 0.1}
    (root / "metrics.jsonl").write_text(json.dumps(row) + "\n" + evil + "\n")
    figures = metrics.evaluate(metrics.group_scores(clips[4:], np.arange(8.0)))
    write_results(root, {"seeds": [], "systems": {evil: figures}})
    text = page.write_report(root).read_text()
    for tag in ("<script", "<i>b", "<u>", "run <b>"):
        assert tag not in text
    # Class names in the matrix, file names at clips, stage, system and configuration.
    assert text.count("&lt;script&gt;alert(") >= 8
    assert text.count("&lt;script&gt;0.wav") >= 1
    parse(text)


def test_machine_types_take_turns_as_their_scores_do_not_compare():
    scores = {"fan": [100.0, 300.0, 200.0, 100.0], "valve": [1.0], "pump": [2.0, 3.0]}
    clips = [
        ScoredClip(f"{number}.wav", "", machine, "00", "", "", score, None, "")
        for machine, group in scores.items()
        for number, score in enumerate(group)
    ]
    chosen = [(rank, clip.machine_type, clip.score) for rank, clip in most_anomalous(clips, 5)]
    assert chosen == [
        (1, "fan", 300.0),
        (2, "fan", 200.0),
        (1, "pump", 3.0),
        (2, "pump", 2.0),
        (1, "valve", 1.0),
    ]
    assert [clip.file for _, clip in most_anomalous(clips, 99)][2:4] == ["0.wav", "3.wav"]


def test_clips_are_shown_with_what_is_known_of_them(finished, finished_page):
    run = read_run(finished)
    system = run.systems["finetune"]
    shown = report_clips.shown_clips(run, system)
    # Machine types in turn: the highest five of each.
    assert [(one.clip.machine_type, one.rank) for one in shown] == [
        (machine, rank) for machine in ("fan", "valve") for rank in range(1, 6)
    ]
    for machine in ("fan", "valve"):
        scores = sorted(c.score for c in system.clips if c.machine_type == machine)[:-6:-1]
        assert [one.clip.score for one in shown if one.clip.machine_type == machine] == scores
    text = finished_page
    for one in shown:
        assert one.clip.file in text
        assert f"nearest class {one.clip.nearest}" in text
        assert f"score {one.clip.score:.4g}" in text
        assert one.threshold == pytest.approx(1.75, abs=0.25)
    assert {one.clip.state for one in shown} == {"anomaly"}
    # One recording in three is there.
    heard = [one for one in shown if one.audio]
    assert 0 < len(heard) < len(shown)
    assert f"The recordings of {len(shown) - len(heard)} of 10 clips cannot be read" in text
    assert text.count("<audio") == len(heard)


def test_nearest_classes_and_similarities_are_those_of_the_back_end(finished):
    folder = finished / "scores" / "finetune"
    with np.load(folder / "embeddings.npz") as arrays:
        embeddings = dict(zip(map(str, arrays["test_files"]), arrays["test"], strict=True))
    with np.load(folder / "member_0.npz") as arrays:
        prototypes = np.concatenate([arrays[f"scorer/references_{n}"] for n in range(3)])
    names = ["fan 00 a", "fan 00 b", "fan 01 a", "valve 00 a"]
    system = read_run(finished).systems["finetune"]
    for clip in system.clips:
        key = f"{clip.machine_type} {clip.section} "
        cosines = prototypes @ embeddings[clip.path]
        own = [index for index, name in enumerate(names) if name.startswith(key)]
        assert clip.nearest == names[max(own, key=lambda index: cosines[index])]
    assert len({clip.nearest for clip in system.clips}) == 4
    similarity = system.similarity
    assert similarity.classes == names
    assert similarity.groups == ["fan 00", "fan 00", "fan 01", "valve 00"]
    np.testing.assert_allclose(similarity.cosine, prototypes @ prototypes.T, atol=1e-12)


def test_recordings_outside_the_collection_are_not_read(workdir):
    run = read_run(workdir)
    clip = next(
        one.clip for one in report_clips.shown_clips(run, run.systems["finetune"]) if one.audio
    )
    soundfile.write(workdir / "secret.wav", np.zeros(100), 8000)
    assert report_clips._recording(run, clip) is not None
    for path in ("../secret.wav", str(workdir / "secret.wav"), ""):
        moved = type(clip)(clip.file, path, *(getattr(clip, name) for name in clip.__slots__[2:]))
        assert report_clips._recording(run, moved) is None


@pytest.mark.filterwarnings("ignore:undefined figures")
def test_long_clips_are_pooled(tmp_path):
    frames = 3 * report_clips.MOST_COLUMNS - 1
    features = np.tile(np.arange(frames, dtype=float)[:, None], (1, SETTINGS.n_mels)) / frames
    clip = clips_of("fan", "00", "test", 1)[0]
    write_store(tmp_path / "features", [features], [clip], settings=SETTINGS, dtype="float32")
    write_scores(tmp_path / "scores" / "ours", scored([clip], np.ones(1)))
    spectrogram = report_clips._stored_spectrogram(read_run(tmp_path), 0)
    assert len(spectrogram.values) == report_clips.MOST_COLUMNS
    expected = [features[first : first + 3].mean() for first in range(0, frames, 3)]
    np.testing.assert_allclose(spectrogram.values[:, 2], expected, rtol=1e-6)
    assert spectrogram.seconds == pytest.approx(frames * 128 / 16_000)
    # Inverted mel: bands are narrowest at the top.
    assert np.all(np.diff(spectrogram.centers, 2) < 0)


def test_what_a_threshold_does(finished):
    system = read_run(finished).systems["pretrain"]
    effects = threshold_effects(system)
    assert [(e.machine_type, e.quantile) for e in effects] == [
        (machine, q) for machine in ("fan", "valve") for q in (0.8, 0.9, 0.95, 0.99)
    ]
    one = effects[5]
    assert one.threshold == gamma_threshold(system.training["valve"], quantile=0.9)
    valve = [clip for clip in system.clips if clip.machine_type == "valve"]
    for state, share in (("normal", one.false_alarms), ("anomaly", one.detected)):
        above = [clip.score > one.threshold for clip in valve if clip.state == state]
        assert share == np.mean(above)
    assert 0 < one.false_alarms < one.called < one.detected == 1
    system.training = {}
    assert threshold_effects(system) == []


def test_without_ground_truth_the_decisions_are_shown(tmp_path):
    root = make_run(tmp_path / "run", labelled=False)
    run = read_run(root)
    system = run.systems["finetune"]
    assert (system.figures, system.tables) == ({}, [])
    assert {clip.state for clip in system.clips} == {""}
    assert "finetune: 72 of 72 test clips carry no ground truth" in run.notes[0]
    text = page.render(run)
    parse(text)
    rows = table_rows(text)
    share = np.mean([c.score > 1.75 for c in system.clips if c.machine_type == "fan"])
    assert f">{sum(clip.decision for clip in system.clips)}</dd>" in text
    assert "clips called anomalous" in text
    assert "anomalies found" not in text
    effect = next(e for e in threshold_effects(system) if e.quantile == 0.8)
    assert ["fan", "80%", f"{effect.threshold:.4g}", f"{effect.called:.0%}"] in rows
    assert 0 < share < 1
    assert ">is " not in text


def test_the_page_is_about_the_runs_own_result(workdir):
    shutil.copytree(workdir / "scores" / "pretrain", workdir / "scores" / "gmm")
    systems = json.loads((workdir / "results.json").read_text())["systems"]
    for figures in systems.values():
        figures["undefined"] = ["fan has no target"]
    # What is fitted beside a run stands behind the run's own systems.
    write_results(workdir, {"seeds": [], "systems": {**systems, "gmm": systems["pretrain"]}})
    write_config(workdir, {**read_config(workdir), "names": ["pretrain", "finetune"]})
    run = read_run(workdir)
    assert list(run.systems) == ["pretrain", "finetune", "gmm"]
    assert run.result == "finetune"
    text = page.render(run)
    assert "Most anomalous clips of finetune" in text
    assert "<details open><summary>finetune</summary>" in text
    assert text.count("<details open>") == 1
    # One sentence for what several systems have in common.
    assert text.count("fan has no target") == 1
    assert "Undefined for pretrain, finetune, gmm: fan has no target." in run.notes


def test_a_run_without_test_clips_shows_its_thresholds(workdir):
    (workdir / "results.json").unlink()
    for path in [*workdir.glob("scores/*/*.csv")]:
        path.unlink()
    system = read_run(workdir).systems["finetune"]
    assert (system.clips, system.figures) == ([], {})
    effects = threshold_effects(system)
    threshold = gamma_threshold(system.training["fan"], quantile=0.8)
    assert effects[0].called == np.mean(system.training["fan"] > threshold) > 0
    text = page.render(read_run(workdir))
    parse(text)
    assert "training clips called anomalous" in text
    assert "The collection has no test clip" in text
    assert ["fan", "80%", f"{threshold:.4g}", f"{effects[0].called:.0%}"] in table_rows(text)


def test_a_run_that_was_interrupted_can_be_looked_at(workdir):
    (workdir / "results.json").unlink()
    names = ["pretrain", "finetune"]
    write_config(workdir, {**read_config(workdir), "names": names, "data": "/moved/elsewhere"})
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    # Epoch 3 was trained twice, the second time after a resume; then the run died mid-line.
    again = json.dumps({**json.loads(lines[2]), "loss": 0.125})
    bad = json.dumps({**json.loads(lines[3]), "loss": None, "learning_rate": None})
    (workdir / "metrics.jsonl").write_text("\n".join([*lines[:3], again, bad, lines[4][:20]]))
    run = read_run(workdir)
    assert [row["loss"] for row in run.training["pretrain"]] == [2.0, 1.0, 0.125]
    assert run.notes == ["Line 6 of metrics.jsonl is cut short and left out."]
    # Without results.json the figures come from the scores.
    assert list(run.systems) == ["pretrain", "finetune"]
    assert run.recordings == [workdir / "data"]
    assert all(system.figures["overall"] > 0.5 for system in run.systems.values())
    text = page.render(run)
    assert "The loss of finetune is not finite in 1 of 1 epochs." in text
    assert ["finetune", "1", "–", "–", "–", "1.5", "100"] in table_rows(text)
    parse(text)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "results.json",
        "metrics.jsonl",
        "features/manifest.json",
        "features/table.csv",
        *(
            f"scores/finetune/{name}"
            for name in (
                "thresholds.json",
                "embeddings.npz",
                "member_0.npz",
                "training_scores.npz",
                "anomaly_score_fan_section_00_test.csv",
                "decision_result_fan_section_00_test.csv",
            )
        ),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(workdir, name):
    path = workdir / name
    if name.endswith("manifest.json") or name == "scores/finetune/thresholds.json":
        path.write_text("{}")
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2 - 5], b"\x89PNG\xff\xfe\x00", b"[1, 2]\n"):
        path.write_bytes(damage)
        run = read_run(workdir)
        if damage or name != "metrics.jsonl":
            assert any(path.name in note or path.parent.name in note for note in run.notes)
        assert all("\n" not in note for note in run.notes)
        # What can be made again is.
        assert run.systems["pretrain"].figures["overall"] > 0.5


def test_nothing_but_damage_is_refused(tmp_path):
    with pytest.raises(DataError, match="found nothing; expected the folder of a run"):
        page.write_report(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"none of config\.json"):
        page.write_report(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: found text that is not json"):
        page.write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    figures = dict.fromkeys(metrics.AUC_METRICS, float("nan"))
    write_results(tmp_path, {"seeds": [], "systems": {"knn": {**figures, "overall": 0.5}}})
    # Systems need not have score files.
    assert ["knn", "–", "–", "–", "50.00"] in table_rows(page.write_report(tmp_path).read_text())


def test_thresholds_are_read_off_the_decisions(workdir):
    assert read_run(workdir).systems["finetune"].thresholds["fan"] == pytest.approx(1.75, abs=0.1)
    path = workdir / "scores" / "finetune" / "thresholds.json"
    path.write_text('{"fan": 0.75, "valve": 2.5}')
    assert read_run(workdir).systems["finetune"].thresholds == {"fan": 0.75, "valve": 2.5}

    class Scored:
        machine_type = "fan"

        def __init__(self, decisions):
            self.scores, self.decisions = np.arange(4.0), decisions

    low, high = np.array([0, 1, 1, 1], bool), np.array([0, 0, 0, 1], bool)
    assert infer_thresholds([Scored(low)]) == {"fan": 0.5}
    # Two thresholds, one per section, are not one per machine type; nor is no decision any.
    for several in ([low, high], [None], [np.zeros(4, bool)]):
        assert infer_thresholds([Scored(one) for one in several]) == {}


def test_maps_are_principal_components(finished):
    from sklearn.decomposition import PCA

    with np.load(finished / "scores" / "finetune" / "embeddings.npz") as arrays:
        both = np.concatenate([arrays["train"][48:], arrays["test"][48:]])
    fan, valve = read_run(finished).systems["finetune"].maps
    assert (fan.machine_type, valve.machine_type) == ("fan", "valve")
    assert fan.anomaly.tolist() == 2 * 2 * (6 * [False] + 6 * [True])
    assert fan.target.tolist() == 2 * (12 * [False] + 12 * [True])
    # An axis may point either way.
    found = np.concatenate([valve.train, valve.test])
    np.testing.assert_allclose(np.abs(found), np.abs(PCA(2).fit_transform(both)), atol=1e-9)


def test_long_lists_of_the_configuration_are_cut(tmp_path):
    classes = [["fan", "00", "source", f"m-n_{number}"] for number in range(100)]
    write_config(tmp_path, {"kind": "", "system": {}, "names": [], "classes": classes})
    text = page.write_report(tmp_path).read_text()
    assert "... (100 entries)" in text
    assert "m-n_99" not in text


def test_histogram_edges():
    rng = np.random.default_rng(0)
    edges, logarithmic = plots.histogram_edges(rng.normal(size=1000))
    assert not logarithmic
    assert np.all(np.diff(edges) > 0)
    skewed = rng.lognormal(0.0, 3.0, size=1000)
    edges, logarithmic = plots.histogram_edges(skewed)
    assert logarithmic
    np.testing.assert_allclose(edges[[0, -1]], np.quantile(skewed, [0.01, 0.99]))
    edges, logarithmic = plots.histogram_edges(np.full(5, 3.0))
    assert edges[0] < 3.0 < edges[-1]


def test_a_section_of_one_kind_still_draws():
    normal = metrics.SectionScores("fan", "00", ("a", "b"), [1.0, 1.0], [0, 0], ["source"] * 2)
    text = plots.section_figure(normal, threshold=5.0)
    ElementTree.fromstring(text)
    # No half of the picture is kept for clips that there are not.
    assert ">clips<" in text
    assert ">target<" not in text


def test_figures_as_text():
    assert tables.percent(0.75254) == "75.25"
    assert tables.percent(float("nan")) == tables.percent(None) == "–"
    assert tables.percent({"mean": 0.7, "std": 0.012, "count": 3}) == "70.00 ± 1.20"
    assert tables.percent({"mean": 0.7, "std": float("nan"), "count": 1}) == "70.00"
    assert tables.percent({"mean": 0.7, "std": None}, 1, signed=True) == "+70.0"
    assert tables.percent({"mean": None, "std": None}) == "–"
    assert tables.number(None, ".2f") == tables.number(float("inf"), ".2f") == "–"
    assert tables.number(1.234, ".2f") == "1.23"
    assert tables.highest([0.5, 0.70001, None, 0.70004]) == {1, 3}
    assert tables.highest([0.5, None]) == set()


def printed(results, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    tables.print_table(results, console=console)
    return console.file.getvalue()


def test_printed_tables(finished):
    systems = read_run(finished).systems
    one, two = (system.figures for system in systems.values())
    third = {"overall": 0.5, "machines": {"valve": {"overall": 0.5}}}
    alone = {"overall": 0.5}  # without machine types, it is in the first table only
    systems = {"[red]ours": one, "theirs": two, "third": third, "alone": alone}
    text = printed({"systems": systems})
    # Names are shown as they are, not read as markup.
    row = next(line for line in text.splitlines() if "[red]ours" in line)
    assert row.split() == ["[red]ours", *(tables.percent(one[m]) for m in tables.HEADLINE)]
    row = next(line for line in text.splitlines() if line.startswith(" fan"))
    overall = [tables.percent(r["machines"]["fan"]["overall"]) for r in (one, two)]
    assert row.split()[1:] == [*overall, "–"]
    single = printed(one)
    sections = one["machines"]["fan"]["sections"]
    row = next(line for line in single.splitlines() if line.startswith(" fan"))
    three = [sections["00"][name] for name in metrics.AUC_METRICS]
    assert row.split() == ["fan", "00", *(f"{100 * value:.2f}" for value in three)]
    assert "harmonic mean" in single
    assert "±" in printed({"systems": {"ours": metrics.summarize([one, two])}})
    # Eighty columns hold it without cutting columns.
    assert max(map(len, printed({"systems": {"ours": one, "theirs": two}}, 80).splitlines())) <= 80


def test_the_pictures_in_the_page_are_pictures(finished_page):
    for kind, magic in (("image/png", b"\x89PNG"), ("audio/flac", b"fLaC")):
        found = re.findall(rf"data:{kind};base64,([A-Za-z0-9+/=\s]+)", finished_page)
        assert len(found) >= 3
        assert all(base64.b64decode(one).startswith(magic) for one in found)
