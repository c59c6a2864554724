"""One self-contained web page about a run: figures, training curves, score histograms, ROC curves.

The page is a single file without scripts, fonts or images from elsewhere; it opens from a disk or a
mail, in light and dark. :func:`print_table` shows the same figures in a terminal.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from asdproto import __version__
from asdproto.results import plots as figures
from asdproto.results.result_files import write_text
from asdproto.results.run_folder import Run, read_run
from asdproto.results.tables import HEADLINE, TITLES, highest, percent, print_table, value_of
from asdproto.scoring.metrics import AUC_METRICS, DECISION_METRICS, SectionScores

__all__ = ["print_table", "render", "write_report"]


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
        _system(run, name, notes, is_open=number == len(run.systems) - 1)
        for number, name in enumerate(run.systems)
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
        "false-positive rates up to 0.1, standardized so that chance is 50. Machine types, metrics "
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


def _system(run: Run, name: str, notes: list[str], *, is_open: bool) -> str:
    result = run.systems[name]
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
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>{_drawings(run, name, notes)}"
        f"{_maps(run, name, notes)}</details>"
    )


def _drawings(run: Run, name: str, notes: list[str]) -> str:
    tables, thresholds = run.scores.get(name, []), run.thresholds.get(name, {})
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


def _maps(run: Run, name: str, notes: list[str]) -> str:
    pictures = "".join(
        _picture(
            partial(figures.map_figure, one.train, one.test, one.anomaly, one.target),
            one.machine_type,
            f"Map of the embeddings of {one.machine_type}",
            notes,
        )
        for one in run.maps.get(name, [])
    )
    if not pictures:
        return ""
    return (
        '<p class="legend"><b>Embeddings</b> in the plane in which they vary most '
        '<i class="faint"></i>training <i class="normal"></i>normal '
        '<i class="anomaly"></i>anomaly; '
        f'circles: source, triangles: target</p><div class="pictures">{pictures}</div>'
    )


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
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) > 400 and isinstance(value, list):
        text = f"{text[:400]} ... ({len(value)} entries)"
    return [(prefix, text)]


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
i.source{background:var(--source)}i.faint{background:var(--faint)}
i.target{background:var(--target)}i.all{background:var(--all)}
.dash{display:inline-block;width:0;height:13px;border-left:2px dashed var(--ink);
margin:0 6px 0 12px;vertical-align:-2px}
footer{margin-top:24px;font-size:13px}
@media print{body{background:#fff}section,details,.tile{break-inside:avoid}}
"""
