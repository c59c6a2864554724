"""One self-contained web page about a run: clips to listen to, figures, pictures, training curves.

The page is a single file without scripts, fonts or images from elsewhere; it opens from a disk or a
mail, in light and dark. Its text is ``page.html`` beside this module, a jinja2 template with
everything escaped that comes from files.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asdproto import __version__
from asdproto.files import write_output
from asdproto.results import plots
from asdproto.results.clips import ShownClip, shown_clips
from asdproto.results.run_folder import Run, read_run
from asdproto.results.system_folder import threshold_effects
from asdproto.results.tables import HEADLINE, TITLES, highest, number, percent, value_of
from asdproto.scoring.metrics import AUC_METRICS, DECISION_METRICS

# Cosine of the darkest color.
_LOWEST = -0.2


def write_report(workdir: str | os.PathLike, path: str | os.PathLike | None = None) -> Path:
    """Writes the report of a run.

    Args:
      workdir: The run folder; see :func:`asdproto.results.run_folder.read_run`.
      path: File to write; ``report.html`` in the run folder by default.

    Returns:
      The path of the page.

    Raises:
      DataError: As :func:`asdproto.results.run_folder.read_run`.
    """
    run = read_run(workdir)
    page = Path(workdir) / "report.html" if path is None else Path(path)
    write_output(page, render(run))
    return page


def render(run: Run, clips: Sequence[ShownClip] | None = None) -> str:
    """The page as text.

    Args:
      run: As :func:`asdproto.results.run_folder.read_run` gives it.
      clips: The clips to show; the most anomalous of the run's result when ``None``.

    Returns:
      A complete HTML document.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        percent=percent,
        number=number,
        tint=_tint,
        data_url=_data_url,
        threshold_effects=threshold_effects,
    )
    if clips is None:
        clips = shown_clips(run, run.systems[run.result]) if run.result else []
    notes = [*run.notes, *_training_notes(run)]
    if not run.systems:
        notes.append("Nothing has been scored yet, so there are no figures.")
    evaluated = {name: system.figures for name, system in run.systems.items() if system.figures}
    text = importlib.resources.files("asdproto.results").joinpath("page.html").read_text("utf-8")
    return environment.from_string(text).render(
        run=run,
        version=__version__,
        notes=list(dict.fromkeys(notes)),
        clips=clips,
        evaluated=evaluated,
        columns=_columns(evaluated),
        stages=[_stage(name, rows) for name, rows in run.training.items()],
        config=_flat(run.config),
        titles=TITLES,
        metrics=AUC_METRICS,
        headline=list(HEADLINE),
        decision_metrics=DECISION_METRICS,
        plots=plots,
        low=_LOWEST,
        ramp=plots.matrix_png(np.linspace(0.0, 1.0, 64)[None], 0.0, 1.0),
    )


def _columns(systems: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Headline figures, then the overall figure of every machine type, of systems side by side."""
    machines = dict.fromkeys(m for system in systems.values() for m in system.get("machines", ()))
    columns = [
        (TITLES[name], [system.get(name) for system in systems.values()]) for name in HEADLINE
    ]
    # The figures of one machine type are the overall ones.
    for machine in machines if len(machines) > 1 else ():
        of_machine = [system.get("machines", {}).get(machine, {}) for system in systems.values()]
        columns.append((machine, [figures.get("overall") for figures in of_machine]))
    return [{"title": title, "figures": row, "best": highest(row)} for title, row in columns]


def _stage(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [float(row["clips_per_second"]) for row in rows if row.get("clips_per_second")]
    seconds = [row["seconds"] for row in rows if row.get("seconds")]
    return {
        "name": name,
        "epochs": len(rows),
        "first": rows[0]["loss"],
        "last": rows[-1]["loss"],
        "learning_rate": rows[-1]["learning_rate"],
        "seconds": sum(map(float, seconds)) if seconds else None,
        "rate": float(np.median(rates)) if rates else None,
    }


def _training_notes(run: Run) -> list[str]:
    notes = []
    for stage, rows in run.training.items():
        bad = sum(not math.isfinite(row["loss"]) for row in rows)
        if bad:
            notes.append(f"The loss of {stage} is not finite in {bad} of {len(rows)} epochs.")
    return notes


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _tint(figure: Any) -> str:
    """Attribute with the background of an AUC, by how far it is above or below chance."""
    value = value_of(figure)
    if math.isnan(value):
        return ""
    strength = min(abs(value - 0.5) * 2.0, 1.0) * 0.45
    color = "var(--good-rgb)" if value >= 0.5 else "var(--bad-rgb)"
    return f' style="background:rgba({color},{strength:.2f})"'


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and (value or not prefix):
        return [
            pair
            for key, item in value.items()
            for pair in _flat(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) > 400 and isinstance(value, list):
        text = f"{text[:400]} ... ({len(value)} entries)"
    return [(prefix, text)]
