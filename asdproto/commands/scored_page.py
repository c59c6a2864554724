"""The page of ``score --report``: verdicts, and alarms to look at and to listen to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_scored_page(
    path: Path, workdir: Path, name: str, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the page of what one of a run's detectors scored.

    Args:
      path: The page.
      workdir: The run folder.
      name: The detector.
      rows: The scored recordings, by fields of :class:`asdproto.results.run_folder.ScoredClip`.
    """
    from asdproto.files import write_output
    from asdproto.results import class_name
    from asdproto.results.page import render
    from asdproto.results.pictures import Sounds
    from asdproto.results.run_folder import ScoredClip, percentiles, read_run

    run = read_run(workdir)
    system = run.systems[name]
    held_out = [score for scores in system.held_out.values() for score in scores]
    shares = percentiles(
        [row["score"] for row in rows],
        [row["machine_type"] for row in rows],
        held_out,
        [machine for machine, scores in system.held_out.items() for _ in scores],
    )
    clips = [
        ScoredClip(
            file=str(row["file"]),
            machine_type=row["machine_type"],
            section=row["section"],
            domain="",
            state="",
            score=row["score"],
            percentile=float(share),
            threshold=row["threshold"],
            decision=row["decision"],
            nearest_class=class_name(row["nearest_class"]),
            note=row.get("note", ""),
        )
        for row, share in zip(rows, shares, strict=True)
    ]
    scored = {clip.machine_type for clip in clips}
    own = {machine: scores for machine, scores in system.held_out.items() if machine in scored}
    system = dataclasses.replace(system, clips=clips, figures={}, held_out=own)
    run = dataclasses.replace(run, systems={name: system}, result=name, training={}, config={})
    run.notes.clear()
    write_output(path, render(run, Sounds(run, from_files=True)))
