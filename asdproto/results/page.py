"""One self-contained web page about a run: verdicts, recordings to see and hear, figures.

The page is a single file without scripts, fonts or images from elsewhere; it opens from a disk or a
mail, in light and dark. Its text is ``page.html`` beside this module, a jinja2 template; everything
that comes from files goes through :func:`asdproto.errors.html_text`. Its few lines of script sort a
table and are the only ones that its policy lets run.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asdproto import __version__
from asdproto.errors import counted, html_text
from asdproto.files import write_output
from asdproto.results import pictures
from asdproto.results.run_folder import Run, ScoredClip, ScoredSystem, read_run
from asdproto.results.sounds import EXCERPT, Sound, Sounds, difference_in_words, excerpts, times_of
from asdproto.results.tables import HEADLINE, TITLES, highest, number, percent
from asdproto.scoring.metrics import AUC_METRICS, DECISION_METRICS
from asdproto.scoring.thresholds import gamma_threshold

MOST_SHOWN = 10
QUANTILES = (0.8, 0.9, 0.95, 0.99)
_FEW = 10  # held-out clips below which a limit is a guess


class Verdict(NamedTuple):
    """What a page says of one machine type: scored recordings, how many alarms, and sentences."""

    machine_type: str
    clips: list[ScoredClip]
    alarms: int
    sentences: list[str]


class ThresholdEffect(NamedTuple):
    """What a limit does to the recordings of a machine type.

    Attributes:
      machine_type: The machine type.
      quantile: Of the distribution fitted to the held-out scores of training clips.
      threshold: The score there.
      counts: By kind of recording (``"held-out normal"``, ``"scored"``, ``"normal"``,
        ``"anomalous"``): how many lie above the limit, and of how many.
    """

    machine_type: str
    quantile: float
    threshold: float
    counts: dict[str, tuple[int, int]]


class ShownClip(NamedTuple):
    """A recording beside the nearest normal one.

    Attributes:
      clip: What the detector says of it.
      sounds: The recording and the normal one; None where there is no picture.
      difference: How their mean spectra differ, in words; ``""`` without the two.
      levels: Limits of the colors of both pictures, dB.
      heard: Begin and flac file of an excerpt of each; None where it cannot be played.
    """

    clip: ScoredClip
    sounds: tuple[Sound | None, Sound | None] = (None, None)
    difference: str = ""
    levels: tuple[float, float] = (0.0, 1.0)
    heard: Sequence[tuple[float, bytes] | None] = (None, None)


def write_report(workdir: str | os.PathLike, path: str | os.PathLike | None = None) -> Path:
    """Writes the report of a run, ``report.html`` in its folder by default; returns its path.

    Raises:
      DataError: As :func:`asdproto.results.run_folder.read_run`.
    """
    run = read_run(workdir)
    page = Path(workdir) / "report.html" if path is None else Path(path)
    write_output(page, render(run, Sounds(run)))
    return page


def write_scored_report(
    path: Path, workdir: str | os.PathLike, name: str, clips: Sequence[ScoredClip]
) -> None:
    """Writes a page about recordings that one of a run's detectors has scored.

    Args:
      path: The page.
      workdir: The run folder.
      name: The detector.
      clips: The recordings; their files are paths as they are.
    """
    run = read_run(workdir)
    machines = {clip.machine_type for clip in clips}
    held_out = run.systems[name].held_out
    own = {machine: scores for machine, scores in held_out.items() if machine in machines}
    system = ScoredSystem(sorted(clips, key=lambda clip: clip.file), held_out=own)
    shown = Run(
        run.name, systems={name: system}, result=name, store=run.store, recordings=run.recordings
    )
    write_output(path, render(shown, Sounds(shown, from_files=True)))


def render(run: Run, sounds: Sounds) -> str:
    """The page of a run and its recordings: a complete HTML document."""
    import jinja2
    import markupsafe

    def escaped(value: Any) -> Any:
        is_text = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
        return markupsafe.Markup(html_text(value)) if is_text else value

    environment = jinja2.Environment(
        autoescape=True, finalize=escaped, trim_blocks=True, lstrip_blocks=True
    )

    def breakable(name: str) -> Any:
        """A name that lines may break where its parts end."""
        return markupsafe.Markup(re.sub(r"([/_])", r"\1<wbr>", html_text(name)))

    environment.filters.update(
        percent=percent, number=number, data_url=_data_url, share=_share, breakable=breakable
    )
    system = run.systems.get(run.result, ScoredSystem())
    times, source = times_of(system.clips, sounds)
    evaluated = {name: one.figures for name, one in run.systems.items() if one.figures}
    shown = shown_clips(system, sounds)
    text = importlib.resources.files("asdproto.results").joinpath("page.html").read_text("utf-8")
    script = text.partition("<script>")[2].partition("</script>")[0]
    return environment.from_string(text).render(
        run=run,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
        notes=_notes(run, shown),
        system=system,
        verdicts=verdicts(system),
        shown=shown,
        alarms=sum(clip.decision for clip in system.clips),
        times=dict(zip((clip.file for clip in system.clips), times, strict=False)),
        times_source=source,
        rows=sorted(system.clips, key=lambda c: (-c.decision, c.threshold - c.score, c.file)),
        effects=threshold_effects(system),
        evaluated=evaluated,
        columns=_columns(evaluated),
        config=_flat(run.config),
        titles=TITLES,
        headline=list(HEADLINE),
        auc_metrics=AUC_METRICS,
        decision_metrics=DECISION_METRICS,
        excerpt=EXCERPT,
        pictures=pictures,
    )


def verdicts(system: ScoredSystem) -> list[Verdict]:
    """What the page says of every machine type, in sentences."""
    result = []
    for machine in sorted({clip.machine_type for clip in system.clips} | system.held_out.keys()):
        clips = [clip for clip in system.clips if clip.machine_type == machine]
        held_out = system.held_out.get(machine, np.zeros(0))
        alarms = sum(clip.decision for clip in clips)
        sentences = []
        if clips and len(held_out):
            above = int((held_out > clips[0].threshold).sum())
            sentences.append(
                f"At this limit, {_share((above, len(held_out)), 'normal recordings')} that were "
                "held out of training sound so, too."
            )
            expected = above / len(held_out) * len(clips)
            if 0 < alarms <= expected and not any(clip.state for clip in clips):
                sentences.append("That many would be expected if all of them were normal.")
        if 0 < len(held_out) < _FEW:
            sentences.append(
                f"Only {counted(len(held_out), 'normal recording')} speak for the limit: take it "
                "with caution."
            )
        for state, noun, verb in (
            ("anomaly", "known anomalies", "raised an alarm"),
            ("normal", "known normal recordings", "did so, too"),
        ):
            known = [clip.decision for clip in clips if clip.state == state]
            if known:
                sentences.append(f"{_share((sum(known), len(known)), noun)} {verb}.")
        result.append(Verdict(machine, clips, alarms, sentences))
    return result


def threshold_effects(system: ScoredSystem) -> list[ThresholdEffect]:
    """What limits at :data:`QUANTILES` of the held-out scores do, by machine type."""
    effects = []
    for machine, held_out in system.held_out.items():
        groups = {"held-out normal": held_out}
        clips = [clip for clip in system.clips if clip.machine_type == machine]
        if clips and not all(clip.state for clip in clips):
            groups["scored"] = np.array([clip.score for clip in clips])
        elif clips:
            for state, kind in (("normal", "normal"), ("anomaly", "anomalous")):
                groups[kind] = np.array([clip.score for clip in clips if clip.state == state])
        for quantile in QUANTILES:
            threshold = gamma_threshold(held_out, quantile=quantile)
            counts = {kind: (int((x > threshold).sum()), len(x)) for kind, x in groups.items()}
            effects.append(ThresholdEffect(machine, quantile, threshold, counts))
    return effects


def shown_clips(system: ScoredSystem, sounds: Sounds) -> list[ShownClip]:
    """The highest scores above their limits, or else the highest of all, each beside normal."""
    alarms = [clip for clip in system.clips if clip.decision]
    count = MOST_SHOWN if alarms else 3
    shown = []
    for clip in most_anomalous(alarms or system.clips, count):
        sound = sounds.sound(clip.file)
        if sound is None:
            shown.append(ShownClip(clip))
            continue
        normal = sounds.nearest_normal(sound, (clip.machine_type, clip.section))
        difference = "" if normal is None else difference_in_words(sound, normal)
        levels, heard = pictures.levels_of(sound, normal), excerpts(sound, normal)
        shown.append(ShownClip(clip, (sound, normal), difference, levels, heard))
    return shown


def most_anomalous(clips: Sequence[ScoredClip], count: int) -> list[ScoredClip]:
    """The highest scores, of machine types in turn, as they do not compare; by machine type."""
    ranks: Counter[str] = Counter()
    ranked = []
    for clip in sorted(clips, key=lambda clip: (-clip.score, clip.file)):
        ranked.append((ranks[clip.machine_type], clip.machine_type, clip))
        ranks[clip.machine_type] += 1
    chosen = sorted(ranked, key=lambda item: item[:2])[:count]
    return [clip for _, _, clip in sorted(chosen, key=lambda item: (item[1], item[0]))]


def _notes(run: Run, shown: Sequence[ShownClip]) -> list[str]:
    notes = list(run.notes)
    for stage, rows in run.training.items():
        bad = sum(not math.isfinite(row["loss"]) for row in rows)
        if bad:
            notes.append(f"The loss of {stage} is not finite in {bad} of {len(rows)} epochs.")
    lost = [one.clip.file for one in shown if one.heard[0] is None]
    if lost:
        notes.append(
            f"The recordings of {len(lost)} of {len(shown)} clips cannot be read, so they are not "
            f"shown; the first is {lost[0]}."
        )
    odd = [clip for clip in run.systems.get(run.result, ScoredSystem()).clips if clip.note]
    if odd:
        notes.append(
            f"Something is odd about {counted(len(odd), 'recording')}, see the table: "
            f"{odd[0].file}: {odd[0].note}."
        )
    return list(dict.fromkeys(notes))


def _share(pair: tuple[int, int], noun: str = "") -> str:
    """``"4 of 40 recordings (10 %)"``."""
    part, whole = pair
    text = f"{part:,} of {whole:,} {noun}".rstrip()
    return f"{text} ({100 * part / whole:.0f} %)" if whole else text


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


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and (value or not prefix):
        return [
            pair
            for key, item in value.items()
            for pair in _flat(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return [(prefix, text if len(text) <= 400 else f"{text[:400]} ...")]
