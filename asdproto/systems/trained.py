"""A finished run that scores recordings: what ``python -m asdproto score`` stands on."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from asdproto.config import from_dict
from asdproto.data.dataset import ClipArrays
from asdproto.data.dcase import parse_name
from asdproto.errors import DataError
from asdproto.scoring.backends import Scorer
from asdproto.scoring.thresholds import decide
from asdproto.systems.embedding import embed_clips
from asdproto.systems.prototype import (
    BATCH_STATS,
    STAGES,
    PrototypeSystem,
    evaluation_model,
    open_checkpoints,
)
from asdproto.training.devices import use_devices
from asdproto.training.state import Task


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A finished run, ready to score recordings; made by :func:`load_run`.

    Attributes:
      system: The system.
      classes: Attribute classes, as the run's ``config.json`` lists them.
      scorer: The fitted back-end.
      thresholds: Decision threshold of each machine type.
      mean: float32, shape ``[mels]``.
      scale: float32, shape ``[mels]``.
      model: Encoder in evaluation mode.
      variables: Its parameters and running statistics.
    """

    system: PrototypeSystem
    classes: list[tuple[str, ...]]
    scorer: Scorer
    thresholds: dict[str, float]
    mean: np.ndarray
    scale: np.ndarray
    model: nn.Module
    variables: dict[str, Any]

    def score_files(
        self,
        paths: Sequence[Path | str],
        *,
        machine_type: str | None = None,
        section: str | None = None,
    ) -> list[dict[str, Any]]:
        """Scores recordings exactly as the run scored its test clips.

        Args:
          paths: Audio files.
          machine_type: Of all files; taken from the folder above them when ``None``, or the run's
            only one.
          section: Of all files; taken from their names when ``None``, or the run's only one.

        Returns:
          One dictionary a file: ``file``, ``machine_type``, ``section``, ``score``, ``threshold``,
          ``decision`` (1 for anomaly) and ``nearest_class``.

        Raises:
          DataError: A file cannot be read, or it is not known which section it belongs to.
        """
        from asdproto.features import log_mel, read_audio

        settings = self.system.features
        keys, arrays = [], []
        for path in paths:
            keys.append(self._section_of(Path(path), machine_type, section))
            audio, _ = read_audio(path, settings.sample_rate)
            # The store keeps float16: a file must embed to the same bits as it does from there.
            arrays.append(log_mel(audio, settings).astype(np.float16))
        if not arrays:
            return []
        frames = np.array([len(array) for array in arrays])
        features = np.zeros((len(arrays), frames.max(), settings.n_mels), np.float16)
        for row, array in zip(features, arrays, strict=True):
            row[: len(array)] = array
        rows = np.arange(len(arrays))
        embeddings = embed_clips(
            self.model,
            self.variables,
            ClipArrays(features, rows, frames, self.system.encoder.crop),
            mean=self.mean,
            scale=self.scale,
            hop=self.system.score.hop,
            full_clip=self.system.score.full_clip,
        )
        scores = self.scorer.score(embeddings, keys)
        nearest = self.scorer.nearest(embeddings, keys)
        limits = np.array([self.thresholds[machine] for machine, _ in keys])
        return [
            {
                "file": str(path),
                "machine_type": machine,
                "section": number,
                "score": float(value),
                "threshold": float(limit),
                "decision": int(decision),
                "nearest_class": self.classes[label],
            }
            for path, (machine, number), value, limit, decision, label in zip(
                paths, keys, scores, limits, decide(scores, limits), nearest, strict=True
            )
        ]

    def _section_of(
        self, path: Path, machine_type: str | None, section: str | None
    ) -> tuple[str, str]:
        known: list[tuple[str, str]] = list(self.scorer.sections)  # type: ignore[arg-type]
        with contextlib.suppress(DataError):
            parsed = parse_name(path)
            section = section or parsed.section
        if machine_type is None:
            above = {folder.name for folder in path.absolute().parents}
            named = {machine for machine, _ in known if machine in above}
            machines = named or {machine for machine, _ in known}
            machine_type = machines.pop() if len(machines) == 1 else None
        sections = {number for machine, number in known if machine == machine_type}
        if section is None and len(sections) == 1:
            section = sections.pop()
        if (machine_type, section) not in known:
            raise DataError(
                path,
                f"machine type {machine_type or 'unknown'}, section {section or 'unknown'}",
                "one of " + ", ".join(f"{machine} {number}" for machine, number in known),
                "Say which one with --machine-type and --section.",
            )
        return str(machine_type), str(section)


def load_run(workdir: Path | str, stage: str | None = None) -> TrainedRun:
    """Loads a finished run for scoring.

    Args:
      workdir: Its work folder.
      stage: ``"pretrain"`` or ``"finetune"``; the last one that was scored when ``None``.

    Returns:
      The run.

    Raises:
      DataError: The folder holds no finished run, or a part of it is damaged.
    """
    workdir = Path(workdir)
    stages = (stage,) if stage is not None else STAGES[::-1]
    name = next((s for s in stages if (workdir / "scores" / s / "thresholds.json").is_file()), None)
    if name is None:
        raise DataError(
            workdir,
            "no scored stage (" + ", ".join(stages) + ")",
            "the work folder of a finished run",
            "Let the run end first; the command that started it goes on where it stopped.",
        )
    folder = workdir / "scores" / name
    try:
        about = json.loads((workdir / "config.json").read_text())
        thresholds = json.loads((folder / "thresholds.json").read_text())
        with np.load(workdir / "standardization.npz", allow_pickle=False) as arrays:
            mean, scale = arrays["mean"], arrays["scale"]
        with np.load(folder / "scorer.npz", allow_pickle=False) as arrays:
            scorer = Scorer.from_arrays(dict(arrays))
        system = from_dict(PrototypeSystem, about["system"])
        classes = [tuple(fields) for fields in about["classes"]]
        batch_stats = None
        if system.score.batch_stats == "training":
            with np.load(folder / BATCH_STATS, allow_pickle=False) as arrays:
                batch_stats = unflatten_dict(dict(arrays), sep="/")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            workdir, f"{type(error).__name__}: {error}", "a whole run", "Train it again."
        ) from error
    devices = use_devices(1) if jax.process_count() == 1 else use_devices()
    task = Task(
        model=evaluation_model(system, devices),
        stage=getattr(system, name),
        objective=system.objective(name),
        num_classes=len(classes),
        num_clips=len(classes),
        largest_class=1,
        crop=system.encoder.crop,
    )
    like = jax.eval_shape(lambda key: task.init(key, system.features.n_mels), jax.random.key(0))
    with open_checkpoints(workdir, name) as checkpoints:
        state = checkpoints.restore(like)
    return TrainedRun(
        system=system,
        classes=classes,
        scorer=scorer,
        thresholds=thresholds,
        mean=mean,
        scale=scale,
        model=task.model,
        variables={
            "params": state.params["encoder"],
            "batch_stats": state.batch_stats if batch_stats is None else batch_stats,
        },
    )
