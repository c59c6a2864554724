"""Which setting is better, decided without a label: on normal clips kept out and perturbed copies.

    python -m experiments.choose --data ROOT MACHINES --workdir runs/choose --settings base knn

Of every collection's normal training clips a fold is kept out, section by section and domain by
domain; a setting is trained on the others. Its figures for a kind of fault are those of the
challenge, section by section, when the kept-out clips are told from perturbed copies of them
(:mod:`experiments.perturb`): source AUC, target AUC and pAUC. ``mean`` is their mean over sections
and kinds of faults; not the harmonic one, which a single kept-out clip of the target domain would
decide. Test clips are never read. A change of level alone is no fault, since a microphone's gain is
none: it is reported beside, not counted.

Clips that were cut from one recording lie on both sides of a random fold, and a setting that fits
the recording looks better than it is. ``--by conditions`` keeps out all clips of an operating
condition together: such clips are less like the others than new ones will be. A setting is better
that is better both ways.

Settings are compared with the first one within collection, fold and seed: mean difference and its
standard error. ``--settings`` takes names of :data:`SETTINGS` or ``NAME:FIELD=VALUE;FIELD=VALUE``.
Settings that differ in ``score.*`` alone share one training. What is finished is kept: the same
command continues, and more settings, folds or seeds may be added. ``choose.json`` and ``choose.md``
hold the results.
"""

import dataclasses
import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from asdproto.arguments import Parser
from asdproto.config import ConfigError, override, to_dict
from asdproto.data.dataset import section_keys
from asdproto.files import read_json
from asdproto.results.result_files import write_text
from asdproto.results.tables import percent
from asdproto.scoring.fusion import combine
from asdproto.scoring.thresholds import ThresholdWarning
from asdproto.systems import preset
from asdproto.systems.members import Fitted, RunOptions, prepare_for
from asdproto.systems.prototype import PrototypeMember, ScoreConfig, fit_embeddings
from asdproto.training.devices import Devices, use_compilation_cache, use_devices
from experiments import common
from experiments.perturb import COLUMNS, COPIES, STRENGTHS, evaluate, keep_out, perturbed_store


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is compared.

    Attributes:
      kind: Of the system.
      overrides: Of its preset.
      beside: Settings whose scores are combined with its own; equal weights.
    """

    kind: str = "prototype"
    overrides: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def trained_as(self) -> tuple[str, ...]:
        """The overrides that training depends on."""
        return tuple(one for one in self.overrides if not one.startswith("score."))


_PROTOTYPES = ("score.kind=mahalanobis", "score.shrinkage=0.001")
SETTINGS = {
    "base": Setting(),
    "nearest prototype": Setting(overrides=_PROTOTYPES),
    "nearest prototype, shrinkage 0.1": Setting(overrides=(*_PROTOTYPES, "score.shrinkage=0.1")),
    "nearest prototype, Ledoit-Wolf": Setting(
        overrides=(*_PROTOTYPES, "score.covariance=ledoit-wolf")
    ),
    "nearest prototype, covariance within classes": Setting(
        overrides=(*_PROTOTYPES, "score.center=class")
    ),
    "cosine": Setting(overrides=("score.kind=cosine",)),
    "Euclidean": Setting(overrides=("score.kind=knn",)),
    "shrinkage 0.1": Setting(overrides=("score.shrinkage=0.1",)),
    "no density": Setting(overrides=("score.density_neighbors=0",)),
    "density of 4": Setting(overrides=("score.density_neighbors=4",)),
    "density of 16": Setting(overrides=("score.density_neighbors=16",)),
    "last stage alone": Setting(overrides=("score.all_stages=False",)),
    "windows": Setting(overrides=("score.full_clip=False",)),
    "running statistics": Setting(overrides=("score.batch_stats=running",)),
    "5 + 3 epochs": Setting(overrides=("pretrain.epochs=5", "finetune.epochs=3")),
    "20 + 10 epochs": Setting(overrides=("pretrain.epochs=20", "finetune.epochs=10")),
    "40 + 20 epochs": Setting(overrides=("pretrain.epochs=40", "finetune.epochs=20")),
    "untrained": Setting(
        overrides=(
            "stages=('pretrain',)",
            "pretrain.epochs=1",
            "pretrain.learning_rates=((0.0,1),)",
        )
    ),
    "attribute softmax": Setting("baseline"),
    "attribute softmax, NPE": Setting("baseline", ("stages=('pretrain', 'finetune')",)),
    "statistics of each band": Setting(overrides=("encoder.standardization=band",)),
    "first weights by fan-in": Setting(overrides=("encoder.init=fan_in",)),
    "warm-up": Setting(overrides=("pretrain.warmup=3",)),
    "3 sub-prototypes": Setting(overrides=("pretrain.sub_prototypes=3",)),
    "4 crops a prototype": Setting(overrides=("pretrain.prototype_crops=4",)),
    "classes without domain": Setting(overrides=("classes=conditions",)),
    "sections as classes": Setting(overrides=("classes=sections",)),
    "anchor left out": Setting(overrides=("finetune.leave_one_out=True",)),
    "gradient stopped": Setting(overrides=("finetune.stop_gradient=True",)),
    "mixed to unit length": Setting(overrides=("finetune.normalize_mixed=True",)),
    "stem without strides": Setting(overrides=("encoder.stem_strides=1",)),
    "knn": Setting("spectral-knn"),
    "knn, level off": Setting("spectral-knn", ("remove_level=True",)),
    "knn, scaled": Setting("spectral-knn", ("scale_bands=True",)),
    "knn, level off, scaled": Setting("spectral-knn", ("remove_level=True", "scale_bands=True")),
    "knn, density": Setting("spectral-knn", ("density_neighbors=8",)),
    "knn, whitened": Setting("spectral-knn", ("whiten=True",)),
    "knn, whitened, density": Setting("spectral-knn", ("whiten=True", "density_neighbors=8")),
    "knn, whitened, density, scaled": Setting(
        "spectral-knn", ("whiten=True", "density_neighbors=8", "scale_bands=True")
    ),
    "gmm": Setting("gmm"),
    "knn and gmm": Setting("spectral-knn", beside=("gmm",)),
    "base and knn": Setting(beside=("knn",)),
    "base and gmm": Setting(beside=("gmm",)),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training: a collection, a fold, a seed."""

    collection: str
    fold: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Bench:
    """Trains and scores cells, and keeps their scores in a folder.

    Attributes:
      collections: Folders by name.
      workdir: Where features and scores are kept.
      preset: Of every system.
      folds: Parts that the clips are dealt into.
      machines: Machine types that clips are kept out of; all when ``None``.
      by: As for :func:`experiments.perturb.fold_of`.
      devices: Where to train.
    """

    collections: dict[str, Path]
    workdir: Path
    preset: str
    folds: int
    machines: Sequence[str] | None
    by: str
    devices: Devices

    def system(self, setting: Setting) -> Any:
        """The system of a setting."""
        return override(preset(setting.kind, self.preset), setting.overrides)

    def data(self, cell: Cell, system: Any) -> tuple[Any, np.ndarray]:
        """The data set of a cell and the kinds of its test clips."""
        described = repr([system.features, COPIES, STRENGTHS]).encode()
        digest = hashlib.sha256(described).hexdigest()[:8]
        folder = self.workdir / "features" / f"{cell.collection}-{digest}"
        store = perturbed_store(self.collections[cell.collection], folder, system.features)
        here = None
        if self.machines is not None:
            known = {clip.machine_type for clip in store.clips}
            here = [machine for machine in self.machines if machine in known] or None
        part, kinds = keep_out(store, cell.fold, self.folds, here, self.by)
        return prepare_for(system, part), kinds

    def file(self, cell: Cell, setting: Setting) -> Path:
        """Where the scores of a setting are kept."""
        # All fields, not the overrides alone: a default may change.
        system = to_dict(self.system(setting))
        described = [setting.kind, system, self.by, self.folds, self.machines]
        text = json.dumps([*described, COPIES, STRENGTHS])
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.workdir / "cells" / f"{cell.collection}-{cell.fold}-{cell.seed}-{digest}.json"

    def run(self, cell: Cell, settings: Iterable[Setting]) -> None:
        """Trains and scores what is missing of a cell."""
        missing: dict[tuple[str, tuple[str, ...]], list[Setting]] = {}
        for setting in settings:
            if not self.file(cell, setting).exists():
                missing.setdefault((setting.kind, setting.trained_as), []).append(setting)
        for group in missing.values():
            first = self.system(group[0])
            data, kinds = self.data(cell, first)
            with tempfile.TemporaryDirectory() as scratch:
                options = RunOptions(Path(scratch), self.devices)
                trained = first.train(data, options, [cell.seed])
            for setting, scores in self._scores(group, trained, data):
                about = {
                    "setting": dataclasses.asdict(setting),
                    "figures": {
                        name: evaluate(tested, data.test_clips, kinds)
                        for name, (tested, _) in scores.items()
                    },
                    "scores": {
                        name: {"scores": tested.tolist(), "held_out": held_out.tolist()}
                        for name, (tested, held_out) in scores.items()
                    },
                }
                write_text(self.file(cell, setting), json.dumps(about))

    def _scores(
        self, group: Sequence[Setting], trained: dict[str, list[Fitted]], data: Any
    ) -> Iterator[tuple[Setting, dict[str, tuple[np.ndarray, np.ndarray]]]]:
        """By setting and detector, scores of kept-out clips and held-out scores of the others.

        Clips are embedded once for all settings that differ in the back-end alone.
        """
        sections = section_keys(data.test_clips)
        first = self.system(group[0])
        fitted: Any
        embedded: dict[Any, tuple[Any, np.ndarray]] = {}
        for setting in group:
            system, scores = self.system(setting), {}
            for name, (one,) in trained.items():
                if not isinstance(one.member, PrototypeMember):
                    scores[name] = one.member.compare(data.test, sections).scores, one.held_out
                    continue
                key = name, dataclasses.replace(system.score, **ScoreConfig().backend())
                if key not in embedded:
                    fitted = one if system == first else system.refit(one.member, data)
                    embedded[key] = fitted, fitted.member.embed(data.test)
                fitted, tests = embedded[key]
                if system != fitted.member.system:
                    member = dataclasses.replace(fitted.member, system=system)
                    fitted = fit_embeddings(member, data, fitted.embeddings)
                scores[name] = fitted.member.scorer.score(tests, sections), fitted.held_out
            yield setting, scores

    def _kept(self, cell: Cell, setting: Setting) -> dict[str, Any]:
        return read_json(self.file(cell, setting), remedy="Delete it; it is made again.")

    def figures(self, cell: Cell, setting: Setting) -> dict[str, dict[str, float]]:
        """Figures of a finished setting by detector; combined with others where it names some."""
        kept = self._kept(cell, setting)
        if not setting.beside:
            return kept["figures"]
        data, kinds = self.data(cell, self.system(setting))
        beside = [self._kept(cell, SETTINGS[name])["scores"] for name in setting.beside]
        others = [list(by_detector.values())[-1] for by_detector in beside]
        sections = section_keys(data.test_clips), section_keys(data.train_clips)
        figures = {}
        for name, own in kept["scores"].items():
            scores = [np.array(one["scores"]) for one in (own, *others)]
            held_out = [np.array(one["held_out"]) for one in (own, *others)]
            figures[name] = evaluate(combine(scores, held_out, *sections), data.test_clips, kinds)
        return figures


def compare(
    bench: Bench, cells: Sequence[Cell], settings: dict[str, Setting]
) -> dict[str, dict[str, Any]]:
    """Every detector's figures over cells, and its differences from the first setting's result.

    Returns:
      By ``SETTING`` or ``SETTING, DETECTOR``: ``means`` of each column, ``cells`` with every cell's
      ``mean``, and ``difference`` and ``standard_error`` of ``mean``, all in [0, 1].
    """
    by_row: dict[str, list[dict[str, float]]] = {}
    results = []
    for name, setting in settings.items():
        found = [bench.figures(cell, setting) for cell in cells]
        for detector in found[0]:
            row = name if len(found[0]) == 1 else f"{name}, {detector}"
            by_row[row] = [figures[detector] for figures in found]
        results.append(by_row[row])  # the last detector is the result
    first = np.array([one["mean"] for one in results[0]])
    table: dict[str, dict[str, Any]] = {}
    for row, values in by_row.items():
        means = np.array([one["mean"] for one in values])
        gain = means - first
        error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else None
        table[row] = {
            "means": {
                column: float(np.mean([one[column] for one in values if column in one]))
                for column in COLUMNS
                if any(column in one for one in values)
            },
            "difference": float(gain.mean()),
            "standard_error": error,
            "cells": [round(float(value), 4) for value in means],
        }
    return table


def markdown(table: dict[str, dict[str, Any]], heading: str) -> str:
    """The table for people, in percent."""
    columns = [name for name in COLUMNS if any(name in row["means"] for row in table.values())]
    lines = [
        heading,
        "",
        f"| setting | difference ± standard error | {' | '.join(columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, row in table.items():
        difference = {"mean": row["difference"], "std": row["standard_error"]}
        gain = percent(difference, 1, signed=True)
        cells = [percent(row["means"].get(column), 1) for column in columns]
        lines.append(f"| {name} | {gain} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse_settings(texts: Sequence[str]) -> dict[str, Setting]:
    """Settings by name.

    Raises:
      ConfigError: A name is unknown.
    """
    settings = {}
    for text in texts:
        name, given, overrides = text.partition(":")
        if given:
            settings[name] = Setting(overrides=tuple(filter(None, overrides.split(";"))))
        elif name in SETTINGS:
            settings[name] = SETTINGS[name]
        else:
            raise ConfigError(
                f"--settings: {name!r} is unknown; expected NAME:FIELD=VALUE;... or one of "
                f"{', '.join(SETTINGS)}"
            )
    return settings


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="python -m experiments.choose", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="collections")
    add("--workdir", type=Path, required=True, help="folder for all results")
    add(
        "--settings",
        nargs="+",
        default=list(SETTINGS),
        metavar="NAME",
        help="the first is the reference",
    )
    add("--preset", default="small", help="of every system")
    add(
        "--by",
        choices=("clips", "conditions"),
        default="clips",
        help="keep out clips one by one, or all of an operating condition together",
    )
    add("--folds", type=int, default=4, metavar="N", help="parts that the clips are dealt into")
    add("--keep-out", type=int, nargs="+", metavar="I", help="folds to keep out (default: all)")
    add("--seeds", type=int, nargs="+", default=[0, 1], metavar="S", help="of every training")
    add(
        "--machines",
        nargs="+",
        metavar="TYPE",
        help="machine types to keep clips out of; the others are only trained on (default: all)",
    )
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = make_parser().parse_args(argv)
    settings = parse_settings(args.settings)
    needed = dict(settings)
    for setting in settings.values():
        needed |= {name: SETTINGS[name] for name in setting.beside}
    use_compilation_cache()
    collections = {
        path.resolve().parent.name if path.name == "dev_data" else path.name: path
        for path in args.data
    }
    bench = Bench(
        collections, args.workdir, args.preset, args.folds, args.machines, args.by, use_devices(1)
    )
    folds = range(args.folds) if args.keep_out is None else args.keep_out
    cells = [
        Cell(name, fold, seed) for name in collections for fold in folds for seed in args.seeds
    ]
    console = Console()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ThresholdWarning)
        for number, cell in enumerate(cells, start=1):
            bench.run(cell, needed.values())
            console.print(
                f"{number}/{len(cells)}: {cell.collection}, fold {cell.fold}, seed {cell.seed}",
                highlight=False,
            )
    groups = {"all": cells}
    if len(collections) > 1:
        for name in collections:
            groups[name] = [cell for cell in cells if cell.collection == name]
    tables = {name: compare(bench, group, settings) for name, group in groups.items()}
    result = {
        "preset": args.preset,
        "by": args.by,
        "folds": list(folds),
        "seeds": args.seeds,
        "settings": {name: dataclasses.asdict(one) for name, one in settings.items()},
        "tables": tables,
    }
    text = "\n".join(
        markdown(table, f"{name}: {len(next(iter(table.values()))['cells'])} cells, percent")
        for name, table in tables.items()
    )
    common.write_json(args.workdir / "choose.json", result)
    write_text(args.workdir / "choose.md", text)
    console.print(text, highlight=False, soft_wrap=True)
    return result


if __name__ == "__main__":
    common.run_main(main)
