"""The quality part of the loss benchmark: one encoder, one schedule, every loss, paired by seed.

A cell is a loss at a temperature, with a seed, on a data set: it is trained, scored with both
back-ends, and kept as one json file in ``WORKDIR/cells``. A call makes the cells that its options
ask for and that are missing, so the comparison may be made in pieces, by several processes; what it
reports is everything that is there.
"""

import argparse
import dataclasses
import inspect
import json
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from asdproto import losses
from asdproto.config import ConfigError, override, to_dict
from asdproto.data.dataset import ClipArrays, Dataset, prepare, section_keys
from asdproto.prototypes import l2_normalize
from asdproto.results.run_folder import write_config
from asdproto.results.tables import HEADLINE
from asdproto.scoring.metrics import evaluate, group_scores
from asdproto.systems import prototype
from asdproto.systems.prototype import PrototypeSystem, evaluation_model
from asdproto.systems.run import features_of
from asdproto.systems.system import fit_backend
from asdproto.systems.workdir import check_same_run
from asdproto.training.devices import Devices, RunOptions, use_compilation_cache, use_devices
from asdproto.training.objectives import Objective, mpe_objective
from asdproto.training.stage import EpisodePrototypes, Episodes, EpochPrototypes, Stage
from asdproto.training.state import TrainState
from experiments import two_stage
from experiments.common import NO_LABELS, panels, write_json

MakeObjective = Callable[[Any], Objective]
BASE = "softmax"  # what the others are compared with
PAPER = 0.07  # temperature of a loss that is not the library's
# Objectives whose function has another name.
FUNCTIONS = {
    "softmax": "proxy_softmax",
    "softmax_center": "proxy_softmax",
    "negative_prototype_unit": "negative_prototype",
    "mpe_npe": "multi_negative_prototype",
}
FIXED = ("circle",)  # objectives that leave a scale at the function's default
DISTANCES = ("prototypical_network", "proxy_nca")  # which training gives twice the temperature
TRIED = (0.5, 1.0, 2.0)  # times the published temperature
CHOICE_SEED, FOLDS = 0, 4
BACKENDS = ("nearest", "prototypes")


@dataclasses.dataclass(frozen=True)
class LossStage(Episodes, EpochPrototypes, EpisodePrototypes, Stage):
    """Episodes, and what any of the losses reads."""


def get_config(preset: str) -> PrototypeSystem:
    """The pre-training of a preset, on balanced episodes of 8 classes and 4 clips of each.

    Losses within a batch need several clips of a class in it, so that all get the same episodes;
    32 clips are the batch of the paper's pre-training.
    """
    system = two_stage.get_config(preset)
    schedule = {
        field.name: getattr(system.pretrain, field.name) for field in dataclasses.fields(Stage)
    }
    stage: Any = LossStage(**schedule, ways=8, shots=4)
    return dataclasses.replace(system, pretrain=stage)


def prototypes(system: PrototypeSystem) -> PrototypeSystem:
    """The system, compared by prototypes and the last stage as in the paper."""
    changes = ("kind=mahalanobis", "shrinkage=0.001", "all_stages=False")
    return override(system, [f"score.{change}" for change in changes])


def figures(system: PrototypeSystem, data: Dataset, state: TrainState) -> dict[str, Any]:
    """Headline figures of a trained encoder with both back-ends, from one pass over the clips.

    The embedding that is trained comes first in all stages' joined embedding.

    Raises:
      ConfigError: The test clips carry no labels.
    """
    if not data.test_clips or any(not clip.state for clip in data.test_clips):
        raise ConfigError(NO_LABELS)
    member = prototype.fit(system, data, state, seed=0)
    model: Any = member.model
    whole: Any = member.embeddings, model.embed(data.test)
    paper = prototypes(system)
    dim = evaluation_model(paper).embedding_dim
    train, test = (np.asarray(l2_normalize(clips[:, :dim])) for clips in whole)
    scorer, _ = fit_backend(train, data, paper.score.backend)
    found: dict[str, Any] = {}
    for backend, by, clips in zip(BACKENDS, (model.scorer, scorer), (whole[1], test), strict=True):
        scores, _ = by.compare(clips, section_keys(data.test_clips))
        reached = evaluate(group_scores(data.test_clips, scores))
        found[backend] = {name: round(float(reached[name]), 6) for name in HEADLINE}
    return found


def score_of_kept_out(
    system: PrototypeSystem, data: Dataset, state: TrainState, clips: ClipArrays, labels: np.ndarray
) -> float:
    """How well an encoder keeps normal clips that it has not heard with their own class.

    Returns:
      Mean over clips of the distance to the nearest training clip of their class, over that to the
      nearest one of another class; lower is better.
    """
    member = prototype.fit(system, data, state, seed=0)
    model: Any = member.model
    train: Any = member.embeddings
    new = model.embed(clips)
    squares = np.square(new).sum(axis=1)[:, None] + np.square(train).sum(axis=1)
    distances = np.sqrt(np.maximum(squares - 2 * new @ train.T, 0))
    own = labels[:, None] == data.labels
    nearest = [np.where(mask, distances, np.inf).min(axis=1) for mask in (own, ~own)]
    return float(np.mean(nearest[0] / np.maximum(nearest[1], 1e-6)))


@dataclasses.dataclass(frozen=True)
class OneStage(PrototypeSystem):
    """The first stage of the paper's system, and a loss in the place of its own.

    Attributes:
      make_objective: The loss, from the stage's numbers.
    """

    make_objective: Any = mpe_objective  # from the stage

    def objective(self, stage: str, classes: Sequence[tuple] = ()) -> Objective:
        """The loss."""
        del stage, classes
        return self.make_objective(self.pretrain)


def train(
    system: PrototypeSystem,
    make_objective: MakeObjective,
    seeds: Sequence[int],
    data: Dataset,
    devices: Devices,
) -> list[TrainState]:
    """Final states of seeds; several are one program."""
    fields = {**vars(system), "stages": ("pretrain",), "make_objective": make_objective}
    finals = prototype.train(OneStage(**fields), data, RunOptions(None, devices), seeds)
    return [final["pretrain"] for final in finals]


@dataclasses.dataclass
class Comparison:
    """Cells of one data set.

    Attributes:
      folder: Of the cells.
      system: At the temperature of no loss.
      data: The data set.
      devices: Where to train.
      together: Whether the seeds of a loss are one program.
    """

    folder: Path
    system: PrototypeSystem
    data: Dataset
    devices: Devices
    together: bool

    def at(self, temperature: float | None) -> PrototypeSystem:
        """The system at a temperature."""
        changes = [] if temperature is None else [f"pretrain.temperature={temperature}"]
        return override(self.system, changes)

    def fill(
        self, loss: str, make: MakeObjective, temperature: float | None, seeds: Sequence[int]
    ) -> None:
        """Trains and scores a loss with the seeds that are missing."""
        paths = {seed: self.folder / cell_name(loss, temperature, seed) for seed in seeds}
        missing = [seed for seed in seeds if not paths[seed].exists()]
        system = self.at(temperature)
        for group in [missing] if self.together and missing else [[seed] for seed in missing]:
            began = time.monotonic()
            states = train(system, make, group, self.data, self.devices)
            seconds = round((time.monotonic() - began) / len(group), 1)
            for seed, state in zip(group, states, strict=True):
                cell = {
                    "loss": loss,
                    "temperature": temperature,
                    "seed": seed,
                    "train_seconds": seconds,
                    **figures(system, self.data, state),
                }
                write_json(paths[seed], cell)

    def best(self, loss: str, make: MakeObjective, published: float) -> float:
        """The temperature of three that keeps new normal clips closest to their own class.

        Normal training clips of one fold of every class are kept out; see
        :func:`score_of_kept_out`.
        """
        kept_out = fold_of(self.data.labels)
        fewer = subset(self.data, ~kept_out)
        ratios = {}
        for temperature in [published * factor for factor in TRIED]:
            path = self.folder / "choice" / cell_name(loss, temperature, CHOICE_SEED)
            if not path.exists():
                system = self.at(temperature)
                (state,) = train(system, make, [CHOICE_SEED], fewer, self.devices)
                clips = self.data.train.take(np.flatnonzero(kept_out))
                ratio = score_of_kept_out(
                    prototypes(system), fewer, state, clips, self.data.labels[kept_out]
                )
                choice = {"loss": loss, "temperature": temperature, "ratio": round(ratio, 5)}
                write_json(path, choice)
            ratios[temperature] = json.loads(path.read_text())["ratio"]
        return min(ratios, key=lambda temperature: ratios[temperature])


def published_temperature(loss: str) -> float | None:
    """The default of a loss, which is its authors'; ``None`` where it has no temperature.

    A loss of the library is asked by the name of its objective; others get the paper's.
    """
    if loss in FIXED:
        return None
    function = getattr(losses, f"{FUNCTIONS.get(loss, loss)}_loss", None)
    if function is None:
        return PAPER
    parameters = inspect.signature(function).parameters
    if "scale" in parameters:
        return 1 / parameters["scale"].default
    if "temperature" not in parameters:
        return None
    return parameters["temperature"].default / (2 if loss in DISTANCES else 1)


def cell_name(loss: str, temperature: float | None, seed: int) -> str:
    at = "" if temperature is None else f"@{temperature:.4g}"
    return f"{loss}{at}-{seed}.json"


def fold_of(labels: np.ndarray) -> np.ndarray:
    """Clips that are kept out: the first of every :data:`FOLDS` of a class, boolean ``[clips]``.

    Classes of one or two clips keep theirs.

    Raises:
      ConfigError: All classes are as small as that.
    """
    kept_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 2:
            kept_out[rows[::FOLDS]] = True
    if not kept_out.any():
        raise ConfigError(
            "--data: found no class of 3 training clips, of which one could be kept out to choose "
            "a temperature by; give --as-published"
        )
    return kept_out


def subset(data: Dataset, chosen: np.ndarray) -> Dataset:
    """A data set of some of its training clips, which all classes have one of."""
    rows = np.flatnonzero(chosen)
    return dataclasses.replace(
        data,
        train=data.train.take(rows),
        train_clips=[data.train_clips[row] for row in rows],
        labels=data.labels[rows],
    )


def measure(
    args: argparse.Namespace, objectives: Mapping[str, MakeObjective], console: Console
) -> dict[str, Any]:
    """Makes the cells that are missing, and collects all that are there."""
    use_compilation_cache()
    devices = use_devices()
    system = override(get_config(args.preset), args.overrides)
    check_same_run(args.workdir, {"system": to_dict(system)})
    write_config(args.workdir, {"system": to_dict(system)})
    together = devices.local[0].platform != "cpu" if args.together is None else args.together
    for root in args.data:
        folder = args.workdir / "cells" / root.name
        features = (args.features or args.workdir / "features") / root.name
        store = features_of(root, features, system.features, console)
        data = prepare(store, system.encoder.crop)
        one = Comparison(folder, system, data, devices, together)
        for loss in args.loss or objectives:
            published = published_temperature(loss)
            one.fill(loss, objectives[loss], published, args.seeds)
            if published is not None and not args.as_published:
                best = one.best(loss, objectives[loss], published)
                one.fill(loss, objectives[loss], best, args.seeds)
            console.print(f"{root.name}: {loss} is there", highlight=False)
            if args.out is not None:  # what is measured stays, whatever comes
                write_json(args.out, collect(args.workdir, args.preset))
    return collect(args.workdir, args.preset)


def collect(workdir: Path, preset: str) -> dict[str, Any]:
    """Every cell of a work folder, by data set, loss and setting (``published``, ``best``).

    ``best`` is left out where its temperature was not chosen. Of seeds, each figure has its values,
    mean and standard deviation; beside them stand the paired differences to attribute softmax over
    the seeds that both have, with their standard error.
    """
    result: dict[str, Any] = {
        "part": "quality",
        "preset": preset,
        "device": jax.devices()[0].device_kind,
        "sets": {},
    }
    for folder in sorted((workdir / "cells").iterdir()):
        cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        choices = [json.loads(path.read_text()) for path in sorted(folder.glob("choice/*.json"))]
        settings: dict[str, dict[str, Any]] = {"published": {}, "best": {}}
        for loss in dict.fromkeys(cell["loss"] for cell in cells):
            published = published_temperature(loss)
            ratios = {c["temperature"]: c["ratio"] for c in choices if c["loss"] == loss}
            chosen = {"published": published}
            if len(ratios) == len(TRIED):
                chosen["best"] = min(ratios, key=lambda temperature: ratios[temperature])
            elif published is None:
                chosen["best"] = None
            for setting, temperature in chosen.items():
                own = [c for c in cells if (c["loss"], c["temperature"]) == (loss, temperature)]
                if own:
                    settings[setting][loss] = summary(own)
        for by_loss in settings.values():
            if BASE in by_loss:
                for one in by_loss.values():
                    compare(one, by_loss[BASE])
        result["sets"][folder.name] = {**settings, "kept_out": choices}
    return result


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a loss reaches over seeds, in [0, 1], and the mean seconds of a training."""
    cells = sorted(cells, key=lambda cell: cell["seed"])
    found: dict[str, Any] = {
        "temperature": cells[0]["temperature"],
        "seeds": [cell["seed"] for cell in cells],
        "train_seconds": round(float(np.mean([cell["train_seconds"] for cell in cells])), 1),
    }
    for backend in BACKENDS:
        found[backend] = {}
        for name in HEADLINE:
            values = np.array([cell[backend][name] for cell in cells])
            found[backend][name] = {
                "values": values.round(4).tolist(),
                "mean": round(float(values.mean()), 4),
                "std": round(float(values.std(ddof=1)), 4) if len(values) > 1 else 0.0,
            }
    return found


def compare(one: dict[str, Any], base: Mapping[str, Any]) -> None:
    """Enters the paired differences of overall figures to those of softmax."""
    for backend in BACKENDS:
        theirs = dict(zip(base["seeds"], base[backend]["overall"]["values"], strict=True))
        ours = zip(one["seeds"], one[backend]["overall"]["values"], strict=True)
        paired = np.array([value - theirs[seed] for seed, value in ours if seed in theirs])
        if len(paired):
            error = paired.std(ddof=1) / np.sqrt(len(paired)) if len(paired) > 1 else 0.0
            one[backend]["to_softmax"] = {
                "mean": round(float(paired.mean()), 4),
                "standard_error": round(float(error), 4),
                "seeds": len(paired),
            }


def _ranked(by_loss: Mapping[str, Any]) -> dict[str, Any]:
    """Losses, best overall figure first."""
    return dict(sorted(by_loss.items(), key=lambda item: -item[1]["nearest"]["overall"]["mean"]))


def report(result: Mapping[str, Any], console: Console) -> None:
    """Prints a table for each data set and setting, of 80 columns at most."""
    for name, settings in result["sets"].items():
        for setting, how in (("published", "as published"), ("best", "best of three")):
            if not settings[setting]:
                continue
            title = f"{name}, preset {result['preset']}, temperatures {how}: overall, %"
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title)
            table.add_column("loss", overflow="fold", max_width=22)
            columns = ("nearest clips", "to softmax", "prototypes", "to softmax")
            for column in columns:
                table.add_column(column, justify="right", no_wrap=True)
            for loss, one in _ranked(settings[setting]).items():
                cells = [_cell(one[backend]) for backend in BACKENDS]
                table.add_row(loss, *(text for pair in cells for text in pair))
            console.print(table, highlight=False)


def _cell(figures: Mapping[str, Any]) -> tuple[str, str]:
    """Mean and standard deviation, and the difference to softmax with its standard error."""
    overall = figures["overall"]
    text = f"{100 * overall['mean']:.1f}±{100 * overall['std']:.1f}"
    if "to_softmax" not in figures:
        return text, ""
    difference = figures["to_softmax"]
    error = 100 * difference["standard_error"]
    return text, f"{100 * difference['mean']:+.1f}±{error:.1f}"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draws differences to softmax with their standard errors, a panel a data set and back-end."""
    shown = [(name, backend) for name in result["sets"] for backend in BACKENDS]
    names = list(_ranked(next(iter(result["sets"].values()))["published"]))
    with panels(path, names, len(shown), width=3.2 * len(shown) + 2) as (_, axes):
        for axis, (data, backend) in zip(axes, shown, strict=True):
            for setting, mark in (("published", "o"), ("best", "x")):
                by_loss = result["sets"][data][setting]
                found = {n: by_loss[n][backend].get("to_softmax") for n in names if n in by_loss}
                found = {n: difference for n, difference in found.items() if difference}
                axis.errorbar(
                    [100 * one["mean"] for one in found.values()],
                    [names.index(name) for name in found],
                    xerr=[100 * one["standard_error"] for one in found.values()],
                    fmt=mark,
                    capsize=3,
                    label=setting,
                )
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_title(f"{data}, {backend}", fontsize=9)
            axis.set_xlabel("points to softmax")
        axes[0].legend()


def as_function(
    make: MakeObjective, classes: int, dim: int
) -> tuple[Callable[..., jax.Array], dict[str, np.ndarray]]:
    """A loss of training as the speed part takes it: ``(embeddings, *parameters, labels)``.

    Args:
      make: The loss.
      classes: Number of classes.
      dim: Of embeddings.

    Returns:
      The function, which brings embeddings to unit length first, and its parameters by name.
    """
    stage = get_config("small").pretrain
    objective = make(stage)
    init: Any = objective.init or (lambda *_: ({}, {}))
    params, carried = init(jax.random.key(0), classes, dim)
    leaves, tree = jax.tree.flatten(params)
    vectors = np.random.default_rng(2).standard_normal((classes, 1 + objective.sub_prototypes, dim))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    prototypes = jnp.asarray(vectors, jnp.float32)
    state = types.SimpleNamespace(loss_state=carried, prototypes=prototypes)

    def loss(embeddings: jax.Array, *rest: Any) -> jax.Array:
        *own, labels = rest
        batch = types.SimpleNamespace(labels=labels, where=None)
        return objective.loss(
            jax.tree.unflatten(tree, own),
            state,
            l2_normalize(embeddings),
            batch,
            key=jax.random.key(1),
            hyper=stage.hyper(),
            num_classes=classes,
            axis_name=None,
        )[0]

    return loss, {f"parameter {i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
