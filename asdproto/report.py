"""One self-contained web page about a run: figures, training curves, score histograms, ROC curves.

The page is a single file without scripts, fonts or images from elsewhere; it opens from a disk or a
mail, in light and dark. :func:`print_table` shows the same figures in a terminal.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from asdproto import __version__, figures
from asdproto.data.errors import DataError
from asdproto.metrics import AUC_METRICS, DECISION_METRICS, SectionScores, evaluate
from asdproto.results_io import read_results, write_text
from asdproto.scores_io import read_scores
from asdproto.tables import HEADLINE, TITLES, highest, percent, print_table, value_of

__all__ = ["Run", "print_table", "read_run", "write_report"]


@dataclass(slots=True)
class Run:
    """What a run folder holds, as far as it has come.

    Attributes:
      name: The folder's name.
      config: ``config.json``; empty where there is none.
      training: Rows of ``metrics.jsonl`` by stage, in order of their epochs.
      systems: Figures of every system, as :func:`asdproto.metrics.evaluate` gives them.
      scores: Scored test sections of every system whose score files can be read.
      notes: Sentences about what is missing or odd, for the reader of the report.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, list[SectionScores]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_run(workdir: str | os.PathLike) -> Run:
    """Reads a run folder: ``config.json``, ``metrics.jsonl``, ``results.json``, ``scores/``.

    Whatever is missing is left out and noted, so that a run can be looked at while it trains.

    Args:
      workdir: The run folder.

    Returns:
      Its contents.

    Raises:
      DataError: The folder does not exist, holds none of these, or one of them is damaged.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise DataError(
            workdir,
            "a file" if workdir.exists() else "nothing",
            "the folder of a run",
            "Give the --workdir of an experiment.",
        )
    run = Run(workdir.resolve().name)
    if (workdir / "config.json").exists():
        run.config = read_results(workdir / "config.json")
    if (workdir / "metrics.jsonl").exists():
        run.training = _read_training(workdir / "metrics.jsonl", run.notes)
    if (workdir / "results.json").exists():
        run.systems = _read_systems(workdir / "results.json")
    folders = {path.name: path for path in sorted((workdir / "scores").glob("*/"))}
    for name, folder in folders.items():
        if not any(folder.glob("anomaly_score_*.csv")):
            continue
        try:
            run.scores[name] = _read_scores(workdir, folder)
        except DataError as error:
            run.notes.append(f"The scores of {name} are not drawn: {error}")
            continue
        if name not in run.systems:
            run.systems[name] = evaluate(run.scores[name])
    if not (run.config or run.training or run.systems):
        raise DataError(
            workdir,
            "none of config.json, metrics.jsonl, results.json and scores/",
            "the folder of a run",
            "Give the --workdir of an experiment.",
        )
    for name, result in run.systems.items():
        run.notes += [f"Undefined for {name}: {text}." for text in result.get("undefined", [])]
    return run


def write_report(workdir: str | os.PathLike, path: str | os.PathLike | None = None) -> Path:
    """Writes the report of a run.

    Without matplotlib the page has every table and says what it lacks.

    Args:
      workdir: The run folder; see :func:`read_run`.
      path: File to write; ``report.html`` in the run folder by default.

    Returns:
      The path of the page.

    Raises:
      DataError: As :func:`read_run`.
    """
    run = read_run(workdir)
    return write_text(Path(workdir) / "report.html" if path is None else path, render(run))


def render(run: Run) -> str:
    """The page as text.

    Args:
      run: As :func:`read_run` gives it.

    Returns:
      A complete HTML document.
    """
    notes = list(run.notes)
    training = _training(run, notes)
    details = "".join(
        _system(name, result, run.scores.get(name, []), notes, number == len(run.systems) - 1)
        for number, (name, result) in enumerate(run.systems.items())
    )
    if not run.systems:
        notes.append("Nothing has been scored yet, so there are no figures.")
    body = [
        f"<header><h1>Anomalous sound detection</h1><p>Run <b>{escape(run.name)}</b>, "
        f"asdproto {escape(__version__)}</p></header>",
        _tiles(run.systems),
        _side_by_side(run.systems),
        "".join(f'<p class="note">{escape(note)}</p>' for note in dict.fromkeys(notes)),
        training,
        details,
        _config(run.config),
        "<footer>AUC of a domain: its normal clips against the anomalies of both domains. pAUC: "
        "false-positive rates up to 0.1, standardised so that chance is 50. Machine types, metrics "
        "and overall: harmonic means. All figures in percent.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(run.name)}: anomalous sound detection</title>\n"
        f"<style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def infer_thresholds(tables: Sequence[SectionScores]) -> dict[str, float]:
    """Decision threshold of every machine type, as its decisions show it.

    Args:
      tables: Scored sections.

    Returns:
      The middle between the highest score called normal and the lowest called an anomaly, by
      machine type; absent where there are no decisions, or none of one kind, or where no single
      threshold explains them.
    """
    calls: dict[str, list[list[float]]] = {}
    for table in tables:
        if table.decisions is not None:
            normal, anomalous = calls.setdefault(table.machine_type, [[], []])
            normal.extend(table.scores[~table.decisions].tolist())
            anomalous.extend(table.scores[table.decisions].tolist())
    return {
        machine: (max(normal) + min(anomalous)) / 2.0
        for machine, (normal, anomalous) in calls.items()
        if normal and anomalous and max(normal) <= min(anomalous)
    }


def _read_systems(path: Path) -> dict[str, dict[str, Any]]:
    systems = read_results(path).get("systems")
    if not isinstance(systems, dict):
        systems = {"the file": {}}
    for name, result in systems.items():
        lacking = [
            key
            for key in (*HEADLINE, "machines")
            if not isinstance(result, dict) or key not in result
        ]
        if lacking:
            raise DataError(
                path,
                f"{name} without {', '.join(lacking)}",
                '{"systems": {name: the figures of that system}}',
                "Remove the file; the scores are then evaluated again.",
            )
    return systems


def _read_scores(workdir: Path, folder: Path) -> list[SectionScores]:
    """Scores with the ground truth of the clips' names, else of the run's own feature store."""
    try:
        return read_scores(folder)
    except DataError:
        if not (workdir / "features" / "manifest.json").exists():
            raise
    from asdproto.data.store import open_store

    return read_scores(folder, clips=open_store(workdir / "features").clips)


def _read_training(path: Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows by stage; where a resumed run wrote an epoch twice, the later row holds."""
    rows: dict[str, dict[tuple[float, float], dict[str, Any]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            key = float(row["epoch"]), float(row.get("step", 0))
            float(row["learning_rate"])
            row["loss"] = float("nan" if row["loss"] is None else row["loss"])
            rows.setdefault(str(row["stage"]), {})[key] = row
        except (ValueError, KeyError, TypeError, AttributeError):
            if line.strip():
                what = "is cut short" if number == len(lines) else "is not a line of metrics"
                notes.append(f"Line {number} of {path.name} {what} and left out.")
    return {stage: [by_key[key] for key in sorted(by_key)] for stage, by_key in rows.items()}


def _tiles(systems: Mapping[str, Mapping[str, Any]]) -> str:
    tiles = [
        f'<div class="tile"><h3>{escape(name)}</h3><p class="big">{percent(result["overall"])}</p>'
        "<p>overall</p><dl>"
        + "".join(
            f"<div><dt>{TITLES[metric]}</dt><dd>{percent(result[metric])}</dd></div>"
            for metric in AUC_METRICS
        )
        + "</dl></div>"
        for name, result in systems.items()
    ]
    return f'<section class="tiles">{"".join(tiles)}</section>' if tiles else ""


def _side_by_side(systems: Mapping[str, Mapping[str, Any]]) -> str:
    if not systems:
        return ""
    machines = list(dict.fromkeys(m for result in systems.values() for m in result["machines"]))
    columns = [[result[name] for result in systems.values()] for name in HEADLINE] + [
        [result["machines"].get(machine, {}).get("overall") for result in systems.values()]
        for machine in machines
    ]
    best = [highest(column) for column in columns]
    head = "".join(f"<th>{escape(title)}</th>" for title in [*map(TITLES.get, HEADLINE), *machines])
    rows = [
        f"<tr><th>{escape(name)}</th>"
        + "".join(
            _cell(column[row], "best" if row in marked else "")
            for column, marked in zip(columns, best, strict=True)
        )
        + "</tr>"
        for row, name in enumerate(systems)
    ]
    caption = "Bold: the highest of a column." if len(systems) > 1 else ""
    return (
        f'<section><h2>Systems side by side</h2><div class="wide"><table><thead><tr><th>system</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div><p>{caption}</p></section>"
    )


def _training(run: Run, notes: list[str]) -> str:
    if not run.training:
        return ""
    pictures, rows = [], []
    for stage, lines in run.training.items():
        last = lines[-1]
        seconds = sum(float(line.get("seconds") or 0.0) for line in lines)
        rates = [float(line["clips_per_second"]) for line in lines if line.get("clips_per_second")]
        rows.append(
            f"<tr><th>{escape(stage)}</th><td>{len(lines)}</td><td>{lines[0]['loss']:.4f}</td>"
            f"<td>{last['loss']:.4f}</td><td>{float(last['learning_rate']):g}</td>"
            f"<td>{seconds:.1f}</td><td>{f'{np.median(rates):,.0f}' if rates else '–'}</td></tr>"
        )
        bad = sum(not math.isfinite(line["loss"]) for line in lines)
        if bad:
            notes.append(f"The loss of {stage} is not finite in {bad} of {len(lines)} epochs.")
        pictures.append(
            _picture(
                partial(figures.training_figure, lines),
                stage,
                f"Loss and learning rate of {stage} by epoch",
                notes,
            )
        )
    return (
        '<section><h2>Training</h2><div class="wide"><table><thead><tr><th>stage</th>'
        "<th>epochs</th><th>first loss</th><th>last loss</th><th>last learning rate</th>"
        "<th>seconds</th><th>clips/s (median)</th></tr></thead><tbody>"
        f"{''.join(rows)}</tbody></table></div>"
        f'<div class="curves">{"".join(pictures)}</div></section>'
    )


def _system(
    name: str,
    result: Mapping[str, Any],
    tables: Sequence[SectionScores],
    notes: list[str],
    is_open: bool,
) -> str:
    metrics = [*HEADLINE, *(name for name in DECISION_METRICS if name in result)]
    head = "".join(f"<th>{TITLES[metric]}</th>" for metric in metrics)
    rows = []
    for machine, values in result["machines"].items():
        rows.append(
            f'<tr class="machine"><th>{escape(machine)}</th><td></td>'
            + "".join(_cell(values.get(metric), "best", metric in HEADLINE) for metric in metrics)
            + "</tr>"
        )
        rows += [
            f"<tr><th></th><td>{escape(section)}</td>"
            + "".join(
                "<td></td>"
                if metric == "overall"
                else _cell(cells.get(metric), "", metric in HEADLINE)
                for metric in metrics
            )
            + "</tr>"
            for section, cells in values["sections"].items()
        ]
    return (
        f"<details{' open' if is_open else ''}><summary>{escape(name)}</summary>"
        f'<div class="wide"><table><thead><tr><th>machine type</th><th>section</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>{_drawings(tables, notes)}</details>"
    )


def _drawings(tables: Sequence[SectionScores], notes: list[str]) -> str:
    if not tables:
        return ""
    thresholds = infer_thresholds(tables)
    by_machine: dict[str, list[SectionScores]] = {}
    for table in tables:
        by_machine.setdefault(table.machine_type, []).append(table)
    groups = []
    for machine, sections in by_machine.items():
        pictures = [
            _picture(
                partial(figures.section_figure, table, threshold=thresholds.get(machine)),
                f"{machine}, section {table.section}",
                f"Score histograms and ROC curves of {machine}, section {table.section}",
                notes,
            )
            for table in sections
        ]
        groups.append(f'<div class="pictures">{"".join(pictures)}</div>')
    if not any("<svg" in group for group in groups):
        return ""
    threshold = '<span class="dash"></span>decision threshold' if thresholds else ""
    legend = (
        '<p class="legend"><b>Scores</b> (numbers of clips; source above the line, target below) '
        f'<i class="normal"></i>normal <i class="anomaly"></i>anomaly {threshold} <b>ROC</b> '
        '<i class="source"></i>source <i class="target"></i>target <i class="all"></i>all clips, '
        "the area that pAUC measures shaded</p>"
    )
    return legend + "".join(groups)


def _picture(draw: Callable[[], str], title: str, label: str, notes: list[str]) -> str:
    try:
        svg = draw()
    except figures.MissingLibrary as error:
        notes.append(f"This report has no pictures: {error}")
        return ""
    return (
        f'<figure role="img" aria-label="{escape(label)}"><figcaption>{escape(title)}</figcaption>'
        f"{svg}</figure>"
    )


def _cell(figure: Any, style: str = "", tinted: bool = True) -> str:
    """A table cell; an AUC is tinted by how far it is above or below chance."""
    value = value_of(figure)
    tint = ""
    if tinted and not math.isnan(value):
        strength = min(abs(value - 0.5) * 2.0, 1.0) * 0.45
        color = "var(--good-rgb)" if value >= 0.5 else "var(--bad-rgb)"
        tint = f' style="background:rgba({color},{strength:.2f})"'
    kind = f' class="{style}"' if style else ""
    return f"<td{kind}{tint}>{percent(figure)}</td>"


def _config(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in _flat(config)
    )
    return (
        "<details><summary>Configuration</summary>"
        f'<div class="wide"><table class="config"><tbody>{rows}</tbody></table></div></details>'
    )


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [
            pair
            for key, item in value.items()
            for pair in _flat(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, default=str))]


_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1d2733;--soft:#5a6673;
--faint:#b4bcc6;--line:#dfe3e8;--normal:#2f9e77;--anomaly:#d6453d;--source:#2b66c4;
--target:#e08a00;--all:#8a93a0;--good-rgb:47,158,119;--bad-rgb:214,69,61}
@media(prefers-color-scheme:dark){:root{--page:#12161b;--card:#1b2129;--ink:#e4e9ef;
--soft:#9aa6b3;--faint:#56616e;--line:#2c3540;--normal:#4cc79b;--anomaly:#ff7a70;
--source:#6ea3ff;--target:#ffb13d;--all:#9aa6b3;--good-rgb:76,199,155;--bad-rgb:255,122,112}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0}h2{font-size:19px;margin:0 0 12px}
header p,footer,section>p{color:var(--soft);margin:4px 0 0}
section,details,.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;
padding:18px 20px;margin-top:18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:16px;
background:none;border:0;padding:0}
.tile{margin:0}.tile h3{margin:0;font-size:15px;color:var(--soft);font-weight:600;
overflow-wrap:anywhere}
.tile p{margin:0;color:var(--soft)}.tile .big{font-size:34px;line-height:1.25;font-weight:650;
color:var(--ink);font-variant-numeric:tabular-nums}
dl{margin:12px 0 0}dl div{display:flex;justify-content:space-between;
border-top:1px solid var(--line);padding:3px 0}
dt{color:var(--soft)}dd{margin:0;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;
font-weight:400}
thead th{color:var(--soft);font-size:13px;white-space:normal;vertical-align:bottom}
th:first-child,td:first-child{text-align:left}
tbody th{font-weight:600}td.best{font-weight:700}
.machine th,.machine td{border-top:2px solid var(--line)}
.config td,.config th{text-align:left;white-space:normal;overflow-wrap:anywhere;
font:13px/1.4 ui-monospace,monospace}
summary{cursor:pointer;font-size:19px;font-weight:600}
details[open]>summary{margin-bottom:12px}
.note{border-left:4px solid var(--target);background:var(--card);padding:8px 14px;margin:14px 0 0;
border-radius:4px;overflow-wrap:anywhere}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:20px;
margin-top:16px}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));
gap:14px 26px;padding-top:16px;margin-top:16px;border-top:1px solid var(--line)}
figure{margin:0;max-width:560px}figcaption{font-weight:600;margin-bottom:4px;
overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block}svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:inherit}
.legend{color:var(--soft);margin:16px 0 0}.legend b{color:var(--ink);margin-left:14px}
.legend b:first-child{margin-left:0}
.legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin:0 5px 0 10px;
vertical-align:-1px}
i.normal{background:var(--normal)}i.anomaly{background:var(--anomaly)}
i.source{background:var(--source)}i.target{background:var(--target)}i.all{background:var(--all)}
.dash{display:inline-block;width:0;height:13px;border-left:2px dashed var(--ink);
margin:0 6px 0 12px;vertical-align:-2px}
footer{margin-top:24px;font-size:13px}
@media print{body{background:#fff}section,details,.tile{break-inside:avoid}}
"""
