"""Table 1 of the paper: every system on a data set, per machine type and overall.

    python -m experiments.table1 --data DCASE2022_ROOT --workdir runs/table1 --seeds 0 1 2

``--systems`` takes some of them. Beside the paper's rows stand sub-cluster AdaCos, TWFR-GMM and the
nearest mean spectrum. Each system's numbers are its preset's; overrides begin with its name here
(the paper's three rows are one system, ``prototype``):

    ... --systems mobilenet finetune mobilenet.stage.epochs=100 prototype.encoder.dtype=bfloat16

The grid is resumable and shared by processes, see :mod:`experiments.grid`. Each run of a system is
a run folder in ``WORKDIR/runs`` that scores recordings and has a report. The paper's own rows are
trained side by side on accelerators, see :mod:`experiments.side_by_side`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asdproto.config import ConfigError
from asdproto.results.run_folder import write_results
from asdproto.results.tables import HEADLINE
from asdproto.systems import preset
from asdproto.systems.prototype import PrototypeSystem
from asdproto.systems.run import train_run
from asdproto.systems.system import prepare_for
from asdproto.training.devices import RunOptions
from experiments import common, grid
from experiments.side_by_side import Variants, measure

FIGURES = ("toycar", "toytrain", "bearing", "fan", "gearbox", "slider", "valve", *HEADLINE)
# Rows, by kind of system or variant of the paper's own, as the paper writes them.
NAMES = {
    "autoencoder": "AutoEncoder",
    "mobilenet": "MobileNetV2",
    "baseline": "Baseline",
    "stgram": "STgram-MFN",
    "dgmix": "DG-mix",
    "disentangled": "Disent_Wt",
    "pretrain": "Pre-train",
    "scratch": "Fine-tune (w/o pre-train)",
    "finetune": "Fine-tune (w/ pre-train)",
    "adacos": "Sub-cluster AdaCos",
    "gmm": "TWFR-GMM",
    "spectral-knn": "k-NN on mean spectra",
}
# What it reports, in percent.
PAPER = {
    "autoencoder": (51.30, 39.77, 60.64, 58.50, 63.07, 58.00, 50.60, 70.55, 42.27, 54.51, 53.40),
    "mobilenet": (54.40, 51.55, 60.64, 57.53, 60.17, 51.68, 62.13, 64.61, 50.98, 55.77, 56.58),
    "baseline": (74.67, 58.68, 67.84, 57.20, 74.30, 80.12, 90.45, 78.78, 69.45, 64.04, 70.25),
    "stgram": (68.38, 62.25, 59.54, 63.36, 62.75, 73.84, 60.44, 71.21, 64.32, 57.97, 64.05),
    "dgmix": (79.80, 53.70, 70.70, 76.60, 80.28, 75.11, 79.13, 77.55, 74.08, 66.34, 72.35),
    "disentangled": (76.95, 59.74, 72.07, 63.91, 81.38, 85.14, 94.50, 86.09, 71.65, 68.21, 74.57),
    "pretrain": (74.81, 62.03, 71.32, 58.16, 74.25, 82.69, 92.23, 84.75, 69.70, 64.64, 72.09),
    "scratch": (77.40, 59.71, 67.19, 57.75, 70.80, 83.24, 76.02, 74.52, 71.74, 62.52, 69.20),
    "finetune": (79.08, 62.95, 78.53, 61.34, 76.50, 85.34, 93.71, 85.41, 76.03, 66.63, 75.25),
}
VARIANTS = ("pretrain", "scratch", "finetune")
# Names of systems, as overrides begin -> kinds.
KINDS = {
    "prototype": "prototype",
    "autoencoder": "autoencoder",
    "mobilenet": "experiments.rivals.mobilenet:MobileNetSystem",
    "baseline": "baseline",
    "stgram": "experiments.rivals.stgram:STgramSystem",
    "dgmix": "experiments.rivals.dgmix:DGMixSystem",
    "disentangled": "experiments.rivals.disentangled:DisentangledSystem",
    "adacos": "experiments.rivals.adacos:AdaCosSystem",
    "gmm": "gmm",
    "spectral-knn": "spectral-knn",
}


def variants(system: PrototypeSystem) -> Variants:
    """The paper's own rows."""
    first, second = {"pretrain": system.pretrain}, {"finetune": system.finetune}
    return {"pretrain": first, "scratch": second, "finetune": {**first, **second}}


def train_cell(system: Any, args: Any, folder: Path, seed: int, options: RunOptions) -> None:
    """Trains, scores and evaluates one system with one seed, as a run folder."""
    store = grid.features_of(system, args, options.console)
    options = dataclasses.replace(options, workdir=folder)
    results = train_run(system, store, options, seeds=[seed], machines=args.machines)
    if not results["systems"]:
        raise ConfigError(common.NO_LABELS)
    write_results(folder, results)


def variant_cells(
    system: PrototypeSystem, chosen: Variants, args: Any, options: RunOptions
) -> list[grid.Cell]:
    """Cells of variants of the paper's system: one a seed, or one of all that run side by side."""
    together = args.together
    if together is None:
        together = options.devices.local[0].platform != "cpu"

    def files(seeds: Sequence[int]) -> tuple[Path, ...]:
        return tuple(scores_of(args.workdir, key, seed) for key in chosen for seed in seeds)

    def run(seeds: Sequence[int]) -> None:
        data = prepare_for(system, grid.features_of(system, args, options.console), args.machines)
        missing = [seed for seed in seeds if not all(path.exists() for path in files([seed]))]
        measure(chosen, missing, system, data, options, together)

    groups = {"paper": args.seeds} if together else {f"paper-{seed}": [seed] for seed in args.seeds}
    return [
        grid.Cell(name, files(seeds), functools.partial(run, seeds))
        for name, seeds in groups.items()
    ]


def scores_of(workdir: Path, key: str, seed: int) -> Path:
    """Figures of a variant's run."""
    return workdir / "scores" / f"{key}-{seed}" / "results.json"


def run_of(workdir: Path, key: str, seed: int) -> Path:
    """Figures of a system's run."""
    name = preset(KINDS[key], "quick").names[-1]
    return workdir / "runs" / f"{key}-{seed}" / "scores" / name / "results.json"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = grid.make_parser("table1", __doc__, KINDS)
    parser.add_argument(
        "--systems", nargs="+", choices=tuple(NAMES), default=list(NAMES), metavar="SYSTEM",
        help=f"rows, of {', '.join(NAMES)} (default: all)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    names = ["prototype" if key in VARIANTS else key for key in args.systems]
    systems = grid.get_systems(KINDS, names, args)
    options = grid.start(args, argv, table=1)
    rows, cells = [], []
    for key in args.systems:
        paper = dict(zip(FIGURES, PAPER[key], strict=True)) if key in PAPER else {}
        path_of = scores_of if key in VARIANTS else run_of
        rows.append(grid.Row(key, NAMES[key], functools.partial(path_of, args.workdir, key), paper))
        if key in VARIANTS:
            continue
        for seed in args.seeds:
            folder = args.workdir / "runs" / f"{key}-{seed}"
            run = functools.partial(train_cell, systems[key], args, folder, seed, options)
            cells.append(grid.Cell(f"{key}-{seed}", (folder / "results.json",), run))
    if "prototype" in systems:
        own = variants(systems["prototype"])
        chosen = {key: own[key] for key in args.systems if key in own}
        cells += variant_cells(systems["prototype"], chosen, args, options)
    return grid.finish(1, rows, cells, args, options)


if __name__ == "__main__":
    common.run_main(main)
