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
    from asdproto.results.clips import MOST_SHOWN, most_anomalous, show_clip, spectrogram_of
    from asdproto.results.page import render
    from asdproto.results.result_files import write_text
    from asdproto.results.run_folder import Run
    from asdproto.results.system_folder import ScoredClip, System
    from asdproto.results.windows import Windows
    from asdproto.systems.trained import stack

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
        windows = detector.windows(stack(recording.features[:1]), [recording.section])
        one = show_clip(
            clip,
            rank,
            threshold=system.thresholds[clip.machine_type],
            spectrogram=spectrogram_of(recording.features[0], detector.settings[0]),
            windows=windows
            and Windows(windows.starts, 0 * windows.starts + windows.seconds, windows.scores),
            recording=Path(clip.path),
        )
        shown.append(one)
    run = Run(name, systems={detector.name: system}, result=detector.name)
    return write_text(path, render(run, shown))
