import base64
import dataclasses
import datetime
import html.parser
import io
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import soundfile

from asdproto import cli
from asdproto.data.collection import read_collection
from asdproto.data.dcase import Clip
from asdproto.data.extract import build_store
from asdproto.errors import DataError
from asdproto.features import FeatureSettings, audio_features
from asdproto.files import write_arrays, write_manifest
from asdproto.results import page, pictures, sounds
from asdproto.results.run_folder import (
    Run,
    ScoredSystem,
    read_config,
    read_run,
    write_config,
    write_results,
    write_scores,
)
from asdproto.results.sounds import Sounds
from asdproto.scoring import metrics
from asdproto.scoring.thresholds import gamma_threshold
from tests.experiments.collection import write_collection
from tests.results.rows import scored
from tests.stores import write_store

RATE = 16_000
SETTINGS = FeatureSettings(n_fft=512, hop_length=256, n_mels=32)
LIMIT = 1.75
SHOWN = 2


@pytest.fixture(autouse=True, scope="module")
def few_shown():
    """Pairs of spectrograms are most of what drawing takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "MOST_SHOWN", SHOWN)
        yield


def make_run(root):
    """A finished run of two systems with everything that a run can hold."""
    rng = np.random.default_rng(0)
    write_collection(root / "data")
    made = read_collection(root / "data")
    build_store(made, root / "features", SETTINGS, progress=False)
    train = [clip for clip in made.clips if clip.split == "train"]
    test = [clip for clip in made.clips if clip.split == "test"]
    systems = {}
    for name in ("pretrain", "finetune"):
        scores = 1.0 + rng.random(len(test)) + [clip.path.count("anomaly") for clip in test]
        rows = scored(test, scores, LIMIT, nearest_class="fan 00 source a")
        systems[name] = write_scores(root / "scores" / name, rows)
        held_out = 1.0 + rng.gamma(4.0, 0.1, len(train))
        machines = np.array([clip.machine_type for clip in train])
        arrays = {"machine_types": machines, "scores": held_out}
        write_arrays(root / "scores" / name / "training_scores.npz", arrays)
        write_manifest(root / "scores" / name / "detector.json", ["training_scores.npz"], {})
    lost = max(rows, key=lambda row: row.score).file
    (root / "data" / lost).unlink()
    write_results(root, {"seeds": [0], "systems": systems})
    rows = [
        {"stage": stage, "epoch": epoch, "step": epoch, "loss": 2.0 / epoch, "learning_rate": 0.1}
        for stage in ("pretrain", "finetune")
        for epoch in (1, 2, 3)
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"kind": "prototype", "system": {"width": 16, "fmax": None}}
    write_config(root, {**config, "names": ["pretrain", "finetune"]})
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="module")
def finished_page(finished):
    run = read_run(finished)
    return page.render(run, Sounds(run))


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


class Page(html.parser.HTMLParser):
    """Tags, and what could reach the network; fails on a closing tag that closes nothing."""

    VOID = frozenset(("meta", "br", "img", "link", "wbr"))

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.tags = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "data", "action")
        self.references += [value for name, value in attrs if name.startswith(("on", *names))]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in self.VOID or self.open.pop() == tag


def table_rows(text):
    text = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[cell.strip() for cell in row] for row in cells]


def test_the_page_is_whole_and_self_contained(workdir, finished_page):
    assert cli.main(["report", str(workdir), "--out", str(workdir / "new" / "page.html")]) == 0
    text = (workdir / "new" / "page.html").read_text()
    assert text == finished_page, "the same run gives the same page"
    parsed = Page(text)
    assert not set(parsed.tags) & {"link", "iframe", "object", "form"}
    # Beside data in the page itself, references within a picture (clip paths) are all there is.
    assert all(value.startswith(("#", "data:")) for value in parsed.references)
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    # Its own script, and no other, is let run.
    assert parsed.tags.count("script") == 1
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = page.hashlib.sha256(script.encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in text
    drawn = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    # A plot for each machine type; a pair, of which the other is lost; two stages.
    assert len(drawn) == 2 + 2 * (SHOWN - 1) + 2
    assert "The recordings of 1 of 2 clips cannot be read, so they are not shown" in text
    for picture in drawn:
        ElementTree.fromstring(picture.replace("xlink:href", "href"))
        assert not [color for color in pictures._VARIABLES if color in picture]
    for kind, magic in (("image/png", b"\x89PNG"), ("audio/flac", b"fLaC")):
        found = re.findall(rf"data:{kind};base64,([A-Za-z0-9+/=\s]+)", text)
        assert len(found) >= SHOWN
        assert all(base64.b64decode(one).startswith(magic) for one in found)


def test_labeled_recordings_have_the_challenges_figures(finished, finished_page):
    run = read_run(finished)
    rows = table_rows(finished_page)
    for name, system in run.systems.items():
        expected = [name, *(f"{100 * system.figures[metric]:.2f}" for metric in page.HEADLINE)]
        machines = system.figures["machines"].values()
        assert [*expected, *(f"{100 * machine['overall']:.2f}" for machine in machines)] in rows
        for machine in machines:
            for section, values in machine["sections"].items():
                three = [f"{100 * values[metric]:.2f}" for metric in metrics.AUC_METRICS]
                assert any(row[:5] == ["", section, *three] for row in rows), (name, section)
    assert "by the detector <b>finetune</b>" in finished_page
    assert "finetune: 3 epochs, loss 2 to 0.6667" in finished_page
    assert ["system.width", "16"] in rows
    assert "recordings known to be" not in finished_page
    fan = [clip for clip in run.systems["finetune"].clips if clip.machine_type == "fan"]
    noticed = sum(clip.decision for clip in fan if clip.state == "anomaly")
    assert f"{noticed} of 2 known anomalies ({50 * noticed} %) raised an alarm" in finished_page


def clip_rows(scores, limit, **more):
    clips = [Clip(f"{i}.wav", "pump", "00", "", "test", "", "") for i in range(len(scores))]
    return scored(clips, scores, limit, **more)


def test_one_sentence_says_how_a_machine_is(tmp_path):
    held_out = np.arange(1.0, 41.0)
    system = ScoredSystem(clip_rows([*range(37), 90, 91, 92], 36.5), {}, {"pump": held_out})
    (verdict,) = page.verdicts(system)
    assert verdict.alarms == 3
    above = "At this limit, 4 of 40 normal recordings (10 %) that were held out of training"
    assert verdict.sentences[0].startswith(above)
    # Three of forty are no more than the limit lets through.
    assert verdict.sentences[1] == "That many would be expected if all of them were normal."
    text = page.render(Run("r", systems={"knn": system}, result="knn"), Sounds(Run("r")))
    assert "pump: 3 of 40 recordings sound unlike normal</h2>" in text
    assert ["0.wav", "normal", "0", "36.5", "50"] in table_rows(text)
    for word in ("AUC", "harmonic", "domain", "known to be"):
        assert word not in text
    many = dataclasses.replace(system, clips=clip_rows([50.0] * 5 + [1.0] * 5, 36.5))
    assert len(page.verdicts(many)[0].sentences) == 1
    few = dataclasses.replace(many, held_out={"pump": held_out[:4]})
    assert "Only 4 normal recordings speak for the limit" in page.verdicts(few)[0].sentences[-1]


def test_everything_from_files_is_escaped(tmp_path):
    evil = '<script>alert(1)</script>&"\x1b[31m\u202e\u200b\n'
    root = tmp_path / "run <b>"
    clips = [Clip(f"t/<i>{i}\u202e.wav", "a&<i>b", "0<u>", "", "test", "", "") for i in range(4)]
    rows = scored(clips, [1.0, 2.0, 3.0, 4.0], 2.5, nearest_class=evil, note=evil)
    write_scores(root / "scores" / "<script>of", rows)
    write_config(root, {"kind": evil, "system": {evil: evil}})
    row = {"stage": evil, "epoch": 1, "loss": 1.0, "learning_rate": 0.1}
    (root / "metrics.jsonl").write_text(json.dumps(row) + "\n" + "<i>" + "\n")
    figures = {**dict.fromkeys(metrics.AUC_METRICS, 0.5), "overall": 0.5, "machines": {}}
    write_results(root, {"seeds": [], "systems": {evil: figures}})
    text = page.write_report(root).read_text()
    assert text.count("<script") == 1
    for part in ("<i>", "<u>", "run <b>", "\x1b", "\u202e", "\u200b"):
        assert part not in text
    escaped = r"&lt;script&gt;alert\(1\)&lt;/script&gt;&amp;(&#34;|&quot;)\\x1b\[31m"
    assert len(re.findall(escaped, text)) >= 10
    Page(text)


def test_machine_types_take_turns_as_their_scores_do_not_compare():
    scores = {"fan": [100.0, 300.0, 200.0, 100.0], "valve": [1.0], "pump": [2.0, 3.0]}
    rows = [
        dataclasses.replace(row, machine_type=machine)
        for machine, values in scores.items()
        for row in clip_rows(values, 0.0)
    ]
    chosen = [(row.machine_type, row.score) for row in page.most_anomalous(rows, 5)]
    assert chosen == [("fan", 300.0), ("fan", 200.0), ("pump", 3.0), ("pump", 2.0), ("valve", 1.0)]


@pytest.fixture
def tones(tmp_path):
    """Normal recordings with a tone at 1 kHz or at 5 kHz, and one with both 5 and 2.5 kHz."""
    root = tmp_path / "run"
    settings = dataclasses.replace(SETTINGS, n_fft=1024, n_mels=64)
    time = np.arange(8 * RATE) / RATE
    low, high, odd = (0.1 * np.sin(2 * np.pi * f * time) for f in (1000, 5000, 2500))
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(time))
    audio = {
        "fan/train/low.wav": low,
        "fan/train/high.wav": high,
        "fan/test/odd.wav": high + np.where(time > 5, odd, 0),
        "valve/train/odd.wav": high + odd,
    }
    clips = [Clip(name, name.split("/")[0], "00", "", name.split("/")[1], "", "") for name in audio]
    for name, samples in audio.items():
        (root / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / "data" / name, samples + noise, RATE)
    features = [audio_features(samples + noise, RATE, settings) for samples in audio.values()]
    write_store(root / "features", features, clips, settings=settings)
    write_config(root, {"kind": "gmm", "system": {}})
    return Sounds(read_run(root))


def test_an_alarm_stands_beside_the_nearest_normal_recording_of_its_section(tones):
    odd = tones.sound("fan/test/odd.wav")
    # On the scale people read, whichever scale the features have.
    assert odd.levels.shape[1] * 5000 / 8000 == pytest.approx(np.argmax(odd.spectrum), abs=1.5)
    normal = tones.nearest_normal(odd, ("fan", "00"))
    assert normal.file == "fan/train/high.wav"
    words = sounds.difference_in_words(odd, normal)
    found = re.match(r"\+(\d+) dB at ([\d.]+) to ([\d.]+) kHz", words)
    assert float(found[1]) > 6
    assert 2.0 < float(found[2]) < 2.5 < float(found[3]) < 3.0
    assert re.fullmatch(r"−\d+ dB at .*", sounds.difference_in_words(normal, odd))
    assert "within 2 dB" in sounds.difference_in_words(normal, normal)
    assert tones.nearest_normal(odd, ("pump", "00")) is None
    # Excerpts hold what differs and keep levels.
    (begin, one), (_, other) = sounds.excerpts(odd, normal)
    assert begin == pytest.approx(4.0, abs=0.1)
    heard, rate = soundfile.read(io.BytesIO(one))
    beside, _ = soundfile.read(io.BytesIO(other))
    assert (len(heard), len(beside), rate) == (4 * RATE, 4 * RATE, RATE)
    # Three of four seconds have a second tone, as loud as the first.
    powers = [np.mean(np.square(samples)) for samples in (heard, beside)]
    assert powers[0] / powers[1] == pytest.approx(1.75, rel=0.05)
    assert np.sqrt(powers[0]) == pytest.approx(0.08, rel=0.01)
    assert sounds.excerpts(odd, None)[1] is None


def test_recordings_outside_the_collection_are_not_read(finished, tmp_path):
    of_run = Sounds(read_run(finished))
    inside = "fan/train/section_00_source_train_normal_0000_load_1.wav"
    assert of_run.recording(inside) == finished / "data" / inside
    secret = finished / "secret.wav"
    soundfile.write(secret, np.zeros(100), 8000)
    for path in ("../secret.wav", str(secret), ""):
        assert of_run.recording(path) is None
    assert Sounds(read_run(finished), from_files=True).recording(str(secret)) == secret


def test_times_come_from_names_or_else_from_files(tmp_path):
    rows = clip_rows([1.0, 2.0], 5.0)
    names = ("2026-11-03/fan_0615.wav", "day 1/rec-20261104T181500.wav")
    named = [dataclasses.replace(rows[0], file=name) for name in names]
    of_files = Sounds(Run("r", recordings=[tmp_path]))
    assert sounds.times_of(named, of_files) == (
        [datetime.datetime(2026, 11, 3), datetime.datetime(2026, 11, 4, 18, 15)],
        "file names",
    )
    for row, stamp in zip(rows, (1.7e9, 1.7e9 + 7200), strict=True):
        (tmp_path / row.file).touch()
        os.utime(tmp_path / row.file, (stamp, stamp))
    times, source = sounds.times_of(rows, of_files)
    assert (times[1] - times[0], source) == (datetime.timedelta(hours=2), "file times")
    # A downloaded collection, a number that is no day, and files of one moment.
    labeled = [dataclasses.replace(row, state="normal") for row in rows]
    no_day = dataclasses.replace(rows[0], file="20260230.wav")
    os.utime(tmp_path / rows[0].file, (1.7e9 + 7199, 1.7e9 + 7199))
    for unknown in (labeled, [named[0], no_day], rows):
        assert sounds.times_of(unknown, of_files) == ([], "")


def test_what_a_limit_does(finished):
    system = read_run(finished).systems["pretrain"]
    effects = page.threshold_effects(system)
    assert [(e.machine_type, e.quantile) for e in effects] == [
        (machine, q) for machine in ("fan", "pump") for q in (0.8, 0.9, 0.95, 0.99)
    ]
    one, held_out = effects[5], system.held_out["pump"]
    assert one.threshold == gamma_threshold(held_out, quantile=0.9)
    assert one.counts["held-out normal"] == (np.sum(held_out > one.threshold), 8)
    pump = [clip for clip in system.clips if clip.machine_type == "pump"]
    for kind, state in (("normal", "normal"), ("anomalous", "anomaly")):
        above = [clip.score > one.threshold for clip in pump if clip.state == state]
        assert one.counts[kind] == (sum(above), 2)
    unlabeled = [dataclasses.replace(clip, state="") for clip in system.clips]
    effect = page.threshold_effects(dataclasses.replace(system, clips=unlabeled))[5]
    assert effect.counts["scored"] == (one.counts["normal"][0] + one.counts["anomalous"][0], 4)


def test_a_run_is_about_its_own_result(workdir):
    shutil.copytree(workdir / "scores" / "pretrain", workdir / "scores" / "gmm")
    systems = {name: system.figures for name, system in read_run(workdir).systems.items()}
    for figures in systems.values():
        figures["undefined"] = ["fan has no target"]
    # What is fitted beside a run stands behind the run's own systems.
    systems = {"gmm": systems["pretrain"], **systems}
    write_results(workdir, {"seeds": [], "systems": systems})
    run = read_run(workdir)
    assert list(run.systems) == ["pretrain", "finetune", "gmm"]
    assert run.result == "finetune"
    # One sentence for what several systems have in common.
    assert run.notes == ["Undefined for pretrain, finetune, gmm: fan has no target."]


def test_a_run_without_test_clips_shows_what_limits_do(workdir):
    (workdir / "results.json").unlink()
    for path in workdir.glob("scores/*/*.*s*"):
        if path.suffix != ".npz" and path.name != "detector.json":
            path.unlink()
    run = read_run(workdir)
    assert (run.systems["finetune"].clips, run.systems["finetune"].figures) == ([], {})
    text = page.render(run, Sounds(run))
    assert "fan: trained on 8 normal recordings, none scored yet" in text
    effect = page.threshold_effects(run.systems["finetune"])[0]
    above = page._share(effect.counts["held-out normal"])
    assert ["fan", "20 %", f"{effect.threshold:.4g}", above] in table_rows(text)


def test_a_run_that_was_interrupted_can_be_looked_at(workdir):
    (workdir / "results.json").unlink()
    write_config(workdir, {**read_config(workdir), "data": "/moved/elsewhere"})
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    # Epoch 3 was trained twice, the second time after a resume; then the run died mid-line.
    again = json.dumps({**json.loads(lines[2]), "loss": 0.125})
    bad = json.dumps({**json.loads(lines[3]), "loss": None, "learning_rate": None})
    (workdir / "metrics.jsonl").write_text("\n".join([*lines[:3], again, bad, lines[4][:20]]))
    run = read_run(workdir)
    assert [row["loss"] for row in run.training["pretrain"]] == [2.0, 1.0, 0.125]
    cut = "1 of 6 lines of metrics.jsonl, the first of them line 6,"
    assert run.notes == [f"{cut} are no lines of metrics and left out."]
    # Without the run's results.json the figures are those of each detector.
    assert list(run.systems) == ["pretrain", "finetune"]
    assert run.recordings == [workdir / "data"]
    assert all(system.figures["overall"] > 0.5 for system in run.systems.values())
    assert page._notes(run, [])[-1] == "The loss of finetune is not finite in 1 of 1 epochs."


def test_a_damaged_file_is_named_and_the_rest_is_shown(workdir):
    for name, words in (
        ("config.json", "config.json"),
        ("results.json", "results.json"),
        ("metrics.jsonl", "metrics.jsonl"),
        ("features/features.npy", "feature store"),
        ("scores/finetune/scores.csv", "finetune"),
        ("scores/finetune/training_scores.npz", "finetune"),
    ):
        path = workdir / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2 - 5])
        run = read_run(workdir)
        assert any(words in note for note in run.notes), name
        assert all("\n" not in note for note in run.notes)
        # What can be made again is.
        assert run.systems["pretrain"].figures["overall"] > 0.5
        path.write_bytes(whole)


def test_nothing_but_damage_is_refused(tmp_path):
    with pytest.raises(DataError, match="found nothing; expected the folder of a run"):
        page.write_report(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"config\.json: found text that is not json"):
        page.write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_scores_that_are_all_alike_still_draw():
    for scores in ([1.0, 1.0], [1e-9, *[1e-9] * 20, 5.0], [-3.0]):
        text = pictures.score_figure(clip_rows(scores, 2.0), None, [])
        ElementTree.fromstring(text.replace("xlink:href", "href"))
