import html.parser
import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from rich.console import Console

from asdproto.data.dcase import Clip
from asdproto.data.store import write_store
from asdproto.errors import DataError
from asdproto.results import page as report
from asdproto.results import plots as figures
from asdproto.results import result_files as results_io
from asdproto.results import run_folder, tables
from asdproto.results import score_files as scores_io
from asdproto.scoring import metrics
from asdproto.scoring.thresholds import decide


def scored_clips(seed, machine="fan", sections=("00", "01")):
    rng = np.random.default_rng(seed)
    clips = [
        Clip(
            f"{machine}/test/section_{section}_{domain}_test_{state}_{index:04d}.wav",
            machine,
            section,
            domain,
            "test",
            state,
            "",
        )
        for section in sections
        for domain in ("source", "target")
        for state in ("normal", "anomaly")
        for index in range(12)
    ]
    scores = rng.normal(size=len(clips)) + np.array([clip.state == "anomaly" for clip in clips])
    return clips, scores


@pytest.fixture
def workdir(tmp_path):
    """A finished run of two systems, two stages, two machine types."""
    root = tmp_path / "run"
    systems = {}
    for number, name in enumerate(("pretrain", "finetune")):
        clips, scores = [], []
        for offset, (machine, sections) in enumerate((("fan", ("00", "01")), ("valve", ("00",)))):
            more, values = scored_clips(10 * number + offset, machine, sections)
            clips += more
            scores.append(values)
        scores = np.concatenate(scores)
        decisions = decide(scores, 1.25)
        scores_io.write_scores(root / "scores" / name, clips, scores, decisions)
        systems[name] = metrics.evaluate(metrics.group_scores(clips, scores, decisions))
    results_io.write_results(root / "results.json", {"systems": systems})
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
    (root / "config.json").write_text(json.dumps({"preset": "quick", "model": {"width": 16}}))
    return root


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


def parse(page):
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    return balance


def test_the_page_is_whole_and_self_contained(workdir):
    page = report.write_report(workdir).read_text()
    assert (workdir / "report.html").read_text() == page
    parsed = parse(page)
    assert not parsed.tags & {"script", "img", "link", "iframe", "object"}
    # References inside a picture (markers, clip paths) are all there is.
    assert all(value.startswith("#") for _, _, value in parsed.references)
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    # Two stages; two systems of three sections.
    assert len(pictures) == 2 + 2 * 3
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert not [color for color in figures._VARIABLES if color in picture]
    assert report.write_report(workdir).read_text() == page, "the same run gives the same page"


def test_the_page_shows_the_figures(workdir):
    results = results_io.read_results(workdir / "results.json")["systems"]
    page = report.write_report(workdir, workdir / "elsewhere.html").read_text()
    assert (workdir / "elsewhere.html").exists()
    assert not (workdir / "report.html").exists()
    text = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text)
    cells = [re.sub(r"<[^>]+>", "|", row).replace("||", "|").strip("|").split("|") for row in rows]
    for name, result in results.items():
        expected = [name] + [f"{100 * result[metric]:.2f}" for metric in tables.HEADLINE]
        expected += [f"{100 * machine['overall']:.2f}" for machine in result["machines"].values()]
        assert expected in cells
        for machine in result["machines"].values():
            for section, values in machine["sections"].items():
                three = [f"{100 * values[metric]:.2f}" for metric in metrics.AUC_METRICS]
                assert any(row[:4] == [section, *three] for row in cells), (name, section)
    assert ["pretrain", "3", "2.0000", "0.6667", "0.0333333", "4.5", "100"] in cells
    assert ["model.width", "16"] in cells
    assert 'class="note"' not in page


def test_everything_from_files_is_escaped(tmp_path):
    evil = "<script>alert('$x$')</script>&"
    root = tmp_path / "run <b>"
    root.mkdir()
    figure = metrics.evaluate(metrics.group_scores(*scored_clips(0, machine="a&<i>b")))
    results_io.write_results(root / "results.json", {"systems": {evil: figure}})
    (root / "config.json").write_text(json.dumps({evil: evil}))
    row = {"stage": evil, "epoch": 1, "loss": 1.0, "learning_rate": 0.1}
    (root / "metrics.jsonl").write_text(json.dumps(row) + "\n" + evil + "\n")
    page = report.write_report(root).read_text()
    assert "<script" not in page
    assert "<i>b" not in page
    assert "run <b>" not in page
    assert page.count("&lt;script&gt;") >= 4
    parse(page)


def test_without_matplotlib_the_tables_remain(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = report.write_report(workdir).read_text()
    assert "<svg" not in page
    assert page.count("pip install &#x27;asdproto[report]&#x27;") == 1
    assert "Systems side by side" in page
    parse(page)
    with pytest.raises(figures.MissingLibrary, match=r"pip install 'asdproto\[report\]'"):
        figures.training_figure([{"epoch": 1, "loss": 1.0, "learning_rate": 0.1}])


def test_a_run_that_was_interrupted_can_be_looked_at(workdir):
    (workdir / "results.json").unlink()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    # Epoch 3 was trained twice, the second time after a resume; then the run died mid-line.
    again = json.dumps({**json.loads(lines[2]), "loss": 0.125})
    bad = json.dumps({**json.loads(lines[3]), "loss": float("nan")})
    (workdir / "metrics.jsonl").write_text("\n".join([*lines[:3], again, bad, lines[4][:20]]))
    run = run_folder.read_run(workdir)
    assert [row["loss"] for row in run.training["pretrain"]] == [2.0, 1.0, 0.125]
    assert run.notes == ["Line 6 of metrics.jsonl is cut short and left out."]
    # Without results.json the figures come from the scores.
    assert set(run.systems) == {"pretrain", "finetune"}
    page = report.render(run)
    assert "The loss of finetune is not finite in 1 of 1 epochs." in page
    parse(page)


def test_scores_of_names_that_say_nothing_use_the_store(tmp_path):
    clips = [
        Clip(f"{state}/{index}.wav", "pump", "00", "", "test", state, "")
        for state in ("normal", "anomaly")
        for index in range(4)
    ]
    scores_io.write_scores(tmp_path / "scores" / "ours", clips, np.arange(8.0))
    run = tmp_path / "config.json"
    run.write_text("{}")
    with pytest.raises(DataError, match="none of config"):
        run_folder.read_run(tmp_path)
    run.write_text('{"seed": 1}')
    assert "Not everything of ours is drawn" in run_folder.read_run(tmp_path).notes[0]
    features = np.zeros((8, 2, 3), np.float32)
    write_store(tmp_path / "features", features, clips, settings={"n_mels": 3})
    with pytest.warns(metrics.UndefinedMetricWarning):
        run = run_folder.read_run(tmp_path)
    assert run.systems["ours"]["source_auc"] == 1.0
    assert run.notes == [
        "Undefined for ours: pump section 00 has no normal clips of the target domain and no "
        "anomalous clips of the target domain (target_auc)."
    ]


def test_bad_run_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="found nothing; expected the folder of a run"):
        report.write_report(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"none of config\.json"):
        report.write_report(tmp_path)
    (tmp_path / "results.json").write_text('{"systems": {"ours": {"overall": 0.5}}}')
    with pytest.raises(DataError, match="found ours without source_auc, target_auc, pauc"):
        report.write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_thresholds_are_read_off_the_decisions():
    clips, scores = scored_clips(0)
    decisions = decide(scores, 0.4)
    (machine, threshold), *rest = run_folder.infer_thresholds(
        metrics.group_scores(clips, scores, decisions)
    ).items()
    assert (machine, rest) == ("fan", [])
    assert scores[scores <= 0.4].max() <= threshold <= scores[scores > 0.4].min()
    assert run_folder.infer_thresholds(metrics.group_scores(clips, scores)) == {}
    assert run_folder.infer_thresholds(metrics.group_scores(clips, scores, scores > 1e9)) == {}
    # Two thresholds, one per section, are not one per machine type.
    mixed = np.where([clip.section == "00" for clip in clips], scores > 0.0, scores > 1.0)
    assert run_folder.infer_thresholds(metrics.group_scores(clips, scores, mixed)) == {}


def test_the_thresholds_of_the_run_are_drawn(workdir):
    assert 1.2 < run_folder.read_run(workdir).thresholds["finetune"]["fan"] < 1.3
    path = workdir / "scores" / "finetune" / "thresholds.json"
    path.write_text('{"fan": 0.75, "valve": 2.5}')
    assert run_folder.read_run(workdir).thresholds["finetune"] == {"fan": 0.75, "valve": 2.5}
    path.write_text('{"fan": "high"}')
    run = run_folder.read_run(workdir)
    assert "thresholds.json: found something else; expected {machine type: number}" in run.notes[0]


def test_maps_are_principal_components(workdir):
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    clips = scored_clips(0, "fan")[0] + scored_clips(1, "valve")[0]
    files = [clip.path for clip in clips]
    train = rng.normal(size=(len(clips), 6)) * [9.0, 5.0, 2.0, 1.0, 1.0, 1.0]
    test = rng.normal(size=(len(clips), 6)) * [9.0, 5.0, 2.0, 1.0, 1.0, 1.0]
    path = workdir / "scores" / "finetune" / "embeddings.npz"
    np.savez(path, train=train, test=test, train_files=files, test_files=files)
    run = run_folder.read_run(workdir)
    assert list(run.maps) == ["finetune"]
    fan, valve = run.maps["finetune"]
    half = len(clips) // 2
    assert (fan.machine_type, valve.machine_type) == ("fan", "valve")
    assert fan.anomaly.tolist() == [clip.state == "anomaly" for clip in clips[:half]]
    assert fan.target.tolist() == [clip.domain == "target" for clip in clips[:half]]
    both = np.concatenate([train[half:], test[half:]])
    expected = PCA(2).fit_transform(both)
    found = np.concatenate([valve.train, valve.test])
    # An axis may point either way.
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    page = report.render(run)
    parse(page)
    assert page.count("Map of the embeddings of") == 2
    path.write_bytes(b"PK")
    run = run_folder.read_run(workdir)
    assert "embeddings.npz" in run.notes[0]
    np.savez(path, train=np.array([{}], object))
    assert "embeddings.npz" in run_folder.read_run(workdir).notes[0]


def test_long_lists_of_the_configuration_are_cut(workdir):
    classes = [["fan", "00", "source", f"m-n_{number}"] for number in range(100)]
    (workdir / "config.json").write_text(json.dumps({"classes": classes}))
    page = report.write_report(workdir).read_text()
    assert "... (100 entries)" in page
    assert "m-n_99" not in page


def test_histogram_edges():
    rng = np.random.default_rng(0)
    edges, logarithmic = figures.histogram_edges(rng.normal(size=1000))
    assert not logarithmic
    assert np.all(np.diff(edges) > 0)
    skewed = rng.lognormal(0.0, 3.0, size=1000)
    edges, logarithmic = figures.histogram_edges(skewed)
    assert logarithmic
    np.testing.assert_allclose(edges[[0, -1]], np.quantile(skewed, [0.01, 0.99]))
    edges, logarithmic = figures.histogram_edges(np.full(5, 3.0))
    assert edges[0] < 3.0 < edges[-1]


def test_a_section_of_one_kind_still_draws():
    normal = metrics.SectionScores("fan", "00", ("a", "b"), [1.0, 1.0], [0, 0], ["source"] * 2)
    ElementTree.fromstring(figures.section_figure(normal, threshold=5.0))


def test_percent_and_highest():
    assert tables.percent(0.75254) == "75.25"
    assert tables.percent(float("nan")) == tables.percent(None) == "–"
    assert tables.percent({"mean": 0.7, "std": 0.012, "count": 3}) == "70.00 ± 1.20"
    assert tables.percent({"mean": 0.7, "std": float("nan"), "count": 1}) == "70.00"
    assert tables.highest([0.5, 0.70001, None, 0.70004]) == {1, 3}
    assert tables.highest([0.5, None]) == set()


def printed(results, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    tables.print_table(results, console=console)
    return console.file.getvalue()


def test_printed_tables():
    one, two = (metrics.evaluate(metrics.group_scores(*scored_clips(seed))) for seed in (0, 1))
    text = printed({"systems": {"[red]ours": one, "theirs": two}})
    # Names are shown as they are, not read as markup.
    row = next(line for line in text.splitlines() if "[red]ours" in line)
    assert row.split() == ["[red]ours", *(tables.percent(one[m]) for m in tables.HEADLINE)]
    row = next(line for line in text.splitlines() if line.startswith(" fan"))
    assert row.split()[1:] == [tables.percent(r["machines"]["fan"]["overall"]) for r in (one, two)]
    single = printed(one)
    sections = one["machines"]["fan"]["sections"]
    row = next(line for line in single.splitlines() if line.startswith(" fan"))
    assert row.split() == ["fan", "00", *(f"{100 * v:.2f}" for v in sections["00"].values())]
    assert "harmonic mean" in single
    assert "±" in printed({"systems": {"ours": metrics.summarize([one, two])}})
    # Everything fits a terminal of 80 columns.
    assert max(map(len, printed({"systems": {"ours": one, "theirs": two}}, 80).splitlines())) <= 80


def test_published_scores_make_a_report(real_data, tmp_path):
    tables_ = scores_io.read_scores(real_data / "dcase2022" / "dev_scores")
    run = run_folder.Run("dev", systems={"published": metrics.evaluate(tables_)})
    run.scores["published"] = [table for table in tables_ if table.machine_type == "valve"]
    page = report.render(run)
    assert page.count("<svg") == 3
    parse(page)
