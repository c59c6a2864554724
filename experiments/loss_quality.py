"""The quality part of the loss benchmark: one encoder, one schedule, one data set, every loss.

A loss of one's own joins with a function from the stage's numbers to an
:class:`asdproto.training.objectives.Objective`, and an argument::

    from experiments.benchmarks import losses

    losses.main(["--part", "quality", "--data", "ROOT"], own={"mine": my_objective})
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from asdproto.config import override, to_dict
from asdproto.data.dataset import Dataset, prepare
from asdproto.results.run_folder import read_figures, write_config
from asdproto.results.tables import HEADLINE, TITLES, percent
from asdproto.systems import prototype
from asdproto.systems.members import RunOptions
from asdproto.systems.prototype import PrototypeSystem, ScoreConfig
from asdproto.systems.run import check_same_run, features_of
from asdproto.training.devices import use_compilation_cache, use_devices
from asdproto.training.objectives import Objective, mpe_objective
from asdproto.training.stage import EpisodePrototypes, Episodes, EpochPrototypes, Stage
from asdproto.training.state import TrainState
from experiments import two_stage
from experiments.common import write_json
from experiments.comparison import plot_rows, score_run

# The quickstart's machines: a DCASE-layout set that everybody can make.
SYNTHETIC: dict[str, Any] = {
    "machines": ("fan", "gearbox"),
    "sections": ("00", "01"),
    "clips": 50,
    "target_clips": 10,
    "test_clips": 15,
    "seconds": 6.0,
    "seed": 0,
}


@dataclasses.dataclass(frozen=True)
class LossStage(Episodes, EpochPrototypes, EpisodePrototypes, Stage):
    """Episodes, and what any of the losses reads."""


def get_config(preset: str) -> PrototypeSystem:
    """The pre-training of a preset, on balanced episodes of 8 classes and 4 clips of each.

    Losses within a batch need several clips of a class in it, so that all get the same episodes;
    32 clips are the batch of the paper's pre-training.
    """
    system = two_stage.get_config(preset)
    stage = LossStage(epochs=system.pretrain.epochs, ways=8, shots=4)
    # Windows and running statistics: nothing between the loss and its scores but the covariance.
    return PrototypeSystem(
        **{**vars(system), "pretrain": stage, "score": ScoreConfig(shrinkage=0.03)}
    )


MakeObjective = Callable[[Any], Objective]


@dataclasses.dataclass(frozen=True)
class OneStage(PrototypeSystem):
    """The first stage of the paper's system, and a loss in the place of its own.

    Attributes:
      make_objective: The loss, from the stage's numbers.
    """

    make_objective: MakeObjective = mpe_objective

    def objective(self, stage: str, classes: Sequence[tuple] = ()) -> Objective:
        """The loss."""
        del stage, classes
        return self.make_objective(self.pretrain)


def train(
    system: PrototypeSystem,
    make_objective: MakeObjective,
    seeds: Sequence[int],
    data: Dataset,
    options: RunOptions,
    together: bool,
) -> list[TrainState]:
    """Final states of several seeds; as one program (``together``) or one after the other."""
    fields = {**vars(system), "stages": ("pretrain",), "make_objective": make_objective}
    one = OneStage(**fields)
    if together:
        finals = prototype.train(one, data, options, seeds)
    else:
        finals = [
            prototype.train(one, data, options, [seed], label=f"-{seed}")[0] for seed in seeds
        ]
    return [final["pretrain"] for final in finals]


def measure(
    args: argparse.Namespace, objectives: Mapping[str, MakeObjective], console: Console
) -> dict[str, Any]:
    """Trains, scores and evaluates losses with every seed; finished runs are read back."""
    use_compilation_cache()
    devices = use_devices()
    system = override(get_config(args.preset), args.overrides)
    folder = args.workdir
    # Losses and seeds may be added to a work folder; whatever else differs is another folder's.
    about = {"system": to_dict(system), "machines": None}
    check_same_run(folder, about)
    data_root = args.data
    if data_root is None:
        from experiments.synthetic import synthesize  # needs an audio library

        data_root = synthesize(folder / "data", **SYNTHETIC)
    store = features_of(data_root, args.features or folder / "features", system.features, console)
    data = prepare(store, system.encoder.crop)
    write_config(folder, about)
    together = devices.local[0].platform != "cpu" if args.together is None else args.together
    result: dict[str, Any] = {
        "part": "quality",
        "data": "synthetic" if args.data is None else args.data.parent.name + "/" + args.data.name,
        "clips": {"train": len(data.train_clips), "test": len(data.test_clips)},
        "classes": len(data.classes),
        "preset": args.preset,
        "overrides": args.overrides,
        "seeds": args.seeds,
        "device": jax.devices()[0].device_kind,
        "losses": {},
    }
    for loss in args.loss or objectives:
        scores = {seed: folder / "scores" / f"{loss}-{seed}" for seed in args.seeds}
        missing = [seed for seed in args.seeds if not (scores[seed] / "seconds.json").exists()]
        if missing:
            began = time.monotonic()
            # A folder for these seeds of this loss: more of them are another program.
            run = folder / "runs" / "-".join([loss, *map(str, missing)])
            run.mkdir(parents=True, exist_ok=True)
            options = RunOptions(run, devices, console)
            states = train(system, objectives[loss], missing, data, options, together)
            seconds = (time.monotonic() - began) / len(missing)
            for seed, state in zip(missing, states, strict=True):
                score_run(scores[seed], system, data, state)
                write_json(scores[seed] / "seconds.json", round(seconds, 1))
        one = result["losses"][loss] = summary(list(scores.values()))
        console.print(
            f"{loss}: " + "  ".join(f"{n} {percent(one[n], 1)}" for n in HEADLINE),
            soft_wrap=True,
            highlight=False,
        )
        if args.out is not None:  # what is measured stays, whatever comes
            write_json(args.out, result)
    return result


def summary(folders: Sequence[Path]) -> dict[str, Any]:
    """What a loss reaches over seeds, and the mean seconds of a training.

    Args:
      folders: Where :func:`measure` keeps the scores of each seed.

    Returns:
      ``{figure: {"values", "mean", "std"}}`` of the headline figures, in [0, 1], with the sample
      standard deviation (0 for one seed), and ``"train_seconds"``.
    """
    runs = [read_figures(folder / "results.json") for folder in folders]
    found: dict[str, Any] = {}
    for name in HEADLINE:
        values = [run[name] for run in runs]
        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
        found[name] = {
            "values": [round(float(value), 4) for value in values],
            "mean": round(float(np.mean(values)), 4),
            "std": round(float(spread), 4),
        }
    seconds = [json.loads((folder / "seconds.json").read_text()) for folder in folders]
    return {**found, "train_seconds": round(float(np.mean(seconds)), 1)}


def _ranked(result: dict[str, Any]) -> dict[str, Any]:
    """Losses, best overall figure first."""
    return dict(sorted(result["losses"].items(), key=lambda item: -item[1]["overall"]["mean"]))


def report(result: dict[str, Any], console: Console) -> None:
    """Prints the table, best overall figure first."""
    seeds = len(result["seeds"])
    title = f"{result['data']}, preset {result['preset']}, {seeds} seeds, mean ± std, %"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title)
    table.add_column("loss", overflow="fold")
    for name in (*(TITLES[figure] for figure in HEADLINE), "train s"):
        table.add_column(name, justify="right", no_wrap=True)
    for loss, one in _ranked(result).items():
        figures = [percent(one[figure], 1) for figure in HEADLINE]
        table.add_row(loss, *figures, f"{one['train_seconds']:.0f}")
    console.print(table)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws every seed's figures, losses in the order of their mean overall figure."""
    title = f"{result['data']}, preset {result['preset']}: points are seeds, bars mean ± std"
    plot_rows(path, title, _ranked(result), paper={})
