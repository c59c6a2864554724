"""The page of ``score --report``: verdicts, and alarms to look at and to listen to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asdproto.results.run_folder import ScoredClip


def write_scored_page(path: Path, workdir: Path, name: str, rows: Sequence[ScoredClip]) -> None:
    """Writes the page of what one of a run's detectors scored.

    Args:
      path: The page.
      workdir: The run folder.
      name: The detector.
      rows: The scored recordings.
    """
    from asdproto.files import write_output
    from asdproto.results.page import render
    from asdproto.results.pictures import Sounds
    from asdproto.results.run_folder import read_run

    run = read_run(workdir)
    system = run.systems[name]
    scored = {clip.machine_type for clip in rows}
    own = {machine: scores for machine, scores in system.held_out.items() if machine in scored}
    system = dataclasses.replace(system, clips=list(rows), figures={}, held_out=own)
    run = dataclasses.replace(run, systems={name: system}, result=name, training={}, config={})
    run.notes.clear()
    write_output(path, render(run, Sounds(run, from_files=True)))
