"""The page of ``score --report``: the most anomalous recordings, to look at and to listen to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdproto.results import class_name

if TYPE_CHECKING:
    from asdproto.systems.trained import TrainedDetector


def write_scored_page(
    path: Path,
    name: str,
    detector: TrainedDetector,
    rows: Sequence[Mapping[str, Any]],
) -> Path:
    """Writes the page of what a run's detector scored, and returns its path.

    It shows :data:`asdproto.results.clips.MOST_SHOWN` recordings at most.
    """
    from asdproto.files import write_output
    from asdproto.results.clips import MOST_SHOWN, most_anomalous, show_clip, spectrogram_of
    from asdproto.results.page import render
    from asdproto.results.run_folder import Run
    from asdproto.results.system_folder import ScoredClip, System

    clips = [
        ScoredClip(
            file=row["file"],
            path=row["file"],
            machine_type=row["machine_type"],
            section=row["section"],
            state="",
            domain="",
            score=row["score"],
            decision=bool(row["decision"]),
            nearest=class_name(row["nearest_class"]),
        )
        for row in rows
    ]
    system = System(clips=clips, thresholds={r["machine_type"]: r["threshold"] for r in rows})
    for machine in system.thresholds:
        own = [kind == machine for kind, _ in detector.train_sections]
        system.training[machine] = detector.train_scores[own]
    shown = []
    for rank, clip in most_anomalous(clips, MOST_SHOWN):
        recording = detector.read(clip.path, machine_type=clip.machine_type, section=clip.section)
        one = show_clip(
            clip,
            rank,
            threshold=system.thresholds[clip.machine_type],
            spectrogram=spectrogram_of(recording.features[0], detector.settings[0]),
            recording=Path(clip.path),
        )
        shown.append(one)
    run = Run(name, systems={detector.name: system}, result=detector.name)
    write_output(path, render(run, shown))
    return path
