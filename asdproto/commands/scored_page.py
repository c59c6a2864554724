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
    from asdproto.results.page import render
    from asdproto.results.pictures import Sounds
    from asdproto.results.run_folder import COLUMNS, ScoredClip, read_run

    run = read_run(workdir)
    system = run.systems[name]
    clips = [ScoredClip(**{column: row[column] for column in COLUMNS}) for row in rows]
    scored = {clip.machine_type for clip in clips}
    own = {machine: scores for machine, scores in system.held_out.items() if machine in scored}
    system = dataclasses.replace(system, clips=clips, figures={}, held_out=own)
    run = dataclasses.replace(run, systems={name: system}, result=name, training={}, config={})
    run.notes.clear()
    write_output(path, render(run, Sounds(run, from_files=True)))
