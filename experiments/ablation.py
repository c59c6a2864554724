"""The ablations of the paper on a data set: its own rows of Table 1, Table 2 (MPE), Table 3 (NPE).

    python -m experiments.ablation --table 3 --data DCASE_ROOT --workdir runs/table3 --seeds 0 1 2

Every row is trained with every seed, scored and evaluated as ``two_stage`` would; rows that share
their pre-training share the very weights. Where runs differ only in what compiled code takes as
arguments (seed, MPE ratio, mixing range), an accelerator trains them side by side as one program,
spread over its devices; a CPU trains them one after the other, which is faster there
(``--together`` and ``--no-together`` decide otherwise). One process with all its devices.

The work folder keeps features, checkpoints and scores of every run: the same command goes on where
it stopped, and more seeds may be added. ``results.json`` holds mean and standard deviation (divisor
seeds - 1), ``table.png`` shows every seed. Beside the rows stands the overall figure that the paper
reports on the DCASE 2022 set. Presets and dotted overrides are those of ``two_stage``.
"""

import argparse
import dataclasses
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from asdproto.arguments import Parser
from asdproto.config import ConfigError, override, to_dict
from asdproto.data.dataset import Dataset, prepare
from asdproto.files import write_atomically
from asdproto.results.result_files import write_results
from asdproto.systems import prototype
from asdproto.systems.prototype import PrototypeSystem
from asdproto.training.devices import Devices, use_compilation_cache, use_devices
from asdproto.training.epoch import Loop, default_loop
from asdproto.training.loop import StageRun, train_stage, train_sweep
from asdproto.training.stage import StageConfig
from asdproto.training.state import Task, TrainState
from experiments import common, two_stage
from experiments.comparison import over_runs, plot_rows, print_rows, score_run


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      key: For files.
      name: As the paper writes it.
      paper: Overall figure that the paper reports, in percent.
      pretrain: Stage 1; ``None`` trains from scratch.
      finetune: Stage 2; ``None`` ends with stage 1.
    """

    key: str
    name: str
    paper: float
    pretrain: StageConfig | None
    finetune: StageConfig | None = None


def get_rows(table: int, system: PrototypeSystem) -> list[Row]:
    """Rows of one of the paper's tables.

    Args:
      table: 1 (the paper's own systems), 2 or 3.
      system: What the rows vary.
    """
    pretrain, finetune = system.pretrain, system.finetune

    def mpe(ratio: float) -> StageConfig:
        return dataclasses.replace(pretrain, mpe_ratio=ratio)

    def npe(low: float, high: float) -> StageConfig:
        return dataclasses.replace(finetune, mix_range=(low, high))

    without_mpe = dataclasses.replace(pretrain, sub_prototypes=0)
    without_npe = dataclasses.replace(finetune, mix_range=None)
    return {
        1: [
            Row("pretrain", "Pre-train", 72.09, pretrain),
            Row("scratch", "Fine-tune (w/o pre-train)", 69.20, None, finetune),
            Row("finetune", "Fine-tune (w/ pre-train)", 75.25, pretrain, finetune),
        ],
        2: [
            Row("without", "w/o MPE", 70.94, without_mpe),
            Row("half", "50%", 71.59, mpe(0.5)),
            Row("quarter", "25%", 72.09, mpe(0.25)),
            Row("eighth", "12.5%", 71.44, mpe(0.125)),
        ],
        3: [
            Row("pretrain", "Pre-train", 72.09, pretrain),
            Row("without", "w/o NPE", 73.57, pretrain, without_npe),
            Row("first", "[0, 0.25]", 74.21, pretrain, npe(0, 0.25)),
            Row("second", "[0.25, 0.5]", 75.25, pretrain, npe(0.25, 0.5)),
            Row("third", "[0.5, 0.75]", 72.52, pretrain, npe(0.5, 0.75)),
            Row("fourth", "[0.75, 1.0]", 69.17, pretrain, npe(0.75, 1.0)),
        ],
    }[table]


@dataclasses.dataclass(frozen=True)
class Job:
    """A stage to be trained once.

    Attributes:
      name: For files; of the first row that needs it.
      stage: ``"pretrain"`` or ``"finetune"``.
      config: The stage.
      seed: Of everything random.
      before: The stage that it goes on from, or ``None``.
    """

    name: str
    stage: str
    config: StageConfig
    seed: int
    before: "Job | None" = None

    @property
    def label(self) -> str:
        """Name of its files."""
        return f"{self.name}-{self.stage}-{self.seed}"

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes two jobs the same training."""
        before = self.before and self.before.identity
        return self.stage, self.config, self.seed, before

    @property
    def program(self) -> StageConfig:
        """The stage without what compiled code takes as arguments."""
        mix = None if self.config.mix_range is None else (0.0, 1.0)
        return dataclasses.replace(self.config, temperature=1.0, mpe_ratio=1.0, mix_range=mix)


def plan(rows: Sequence[Row], seeds: Sequence[int]) -> tuple[list[Job], dict[Any, Job]]:
    """Every training that the rows need, once, pre-training first; and the last of each run."""
    jobs: dict[Any, Job] = {}
    last: dict[Any, Job] = {}
    for seed in seeds:
        for row in rows:
            job: Job | None = None
            for stage in prototype.STAGES:
                config = getattr(row, stage)
                if config is not None:
                    job = Job(row.key, stage, config, seed, job)
                    job = jobs.setdefault(job.identity, job)
            assert job is not None
            last[row.key, seed] = job
    order = sorted(jobs.values(), key=lambda job: prototype.STAGES.index(job.stage))
    return order, last


class Trainer:
    """Trains jobs, each once, and keeps their final states."""

    def __init__(
        self,
        system: PrototypeSystem,
        data: Dataset,
        workdir: Path,
        devices: Devices,
        together: bool,
        console: Console | None,
    ):
        self.system, self.data, self.workdir = system, data, workdir
        self.devices, self.together, self.console = devices, together, console
        kind = devices.local[0].platform
        self.loop: Loop = "scan" if together else default_loop(kind)
        self.final: dict[Any, TrainState] = {}

    def task(self, job: Job) -> Task:
        """Static description; runs of a sweep take a device each, a single run all of them."""
        system = dataclasses.replace(self.system, **{job.stage: job.config})  # type: ignore[arg-type]
        devices = use_devices(1) if self.together else self.devices
        return prototype.make_task(system, job.stage, self.data, devices, self.loop)

    def start(self, job: Job, task: Task) -> tuple[TrainState, jax.Array]:
        """State and key that a run of ``two_stage`` starts the stage with."""
        key = jax.random.key(job.seed)
        stage_key = jax.random.fold_in(key, 1 + prototype.STAGES.index(job.stage))
        if job.before is None:
            mels = self.data.train.features.shape[2]
            return task.init(jax.random.fold_in(key, 0), mels), stage_key
        before = self.final[job.before.identity]
        return task.start(before.params["encoder"], before.batch_stats, key), stage_key

    def train(self, jobs: Sequence[Job]) -> None:
        """Trains all; those that others go on from come first."""
        if not self.together:
            for job in jobs:
                self._alone(job)
            return
        groups: dict[Any, list[Job]] = {}
        for job in jobs:
            groups.setdefault((job.stage, job.program), []).append(job)
        for group in groups.values():
            self._side_by_side(group)

    def _run(self, name: str, jobs: Sequence[Job], checkpoints: Any) -> StageRun:
        return StageRun(
            name=name,
            checkpoints=checkpoints,
            metadata={"runs": [job.label for job in jobs]},
            metrics=self.workdir / "metrics.jsonl",
            console=self.console,
            loop=self.loop,
        )

    def _alone(self, job: Job) -> None:
        task = self.task(job)
        state, key = self.start(job, task)
        with prototype.open_checkpoints(self.workdir, job.label) as checkpoints:
            run = self._run(job.label, [job], checkpoints)
            self.final[job.identity] = train_stage(task, self.data, self.devices, state, key, run)

    def _side_by_side(self, jobs: Sequence[Job]) -> None:
        tasks = [self.task(job) for job in jobs]
        states, keys = zip(*map(self.start, jobs, tasks), strict=True)
        labels = ",".join(job.label for job in jobs)
        name = f"{jobs[0].stage}-{zlib.crc32(labels.encode()):08x}"
        with prototype.open_checkpoints(self.workdir, name) as checkpoints:
            found = train_sweep(
                tasks[0],
                self.data,
                self.devices,
                list(states),
                list(keys),
                [task.stage.hyper() for task in tasks],
                self._run(name, jobs, checkpoints),
            )
        self.final |= {job.identity: state for job, state in zip(jobs, found, strict=True)}


def measure(
    rows: Sequence[Row],
    seeds: Sequence[int],
    folder: Callable[[Row, int], Path],
    make_trainer: Callable[[], Trainer],
) -> dict[str, Any]:
    """Trains, scores and evaluates what is missing; summaries by name of the row."""
    missing = [
        seed
        for seed in seeds
        if any(not (folder(row, seed) / "results.json").exists() for row in rows)
    ]
    if missing:
        trainer = make_trainer()
        jobs, last = plan(rows, missing)
        trainer.train(jobs)
        for row in rows:
            for seed in missing:
                state = trainer.final[last[row.key, seed].identity]
                score_run(folder(row, seed), trainer.system, trainer.data, state, trainer.devices)
    return {row.name: over_runs([folder(row, seed) for seed in seeds]) for row in rows}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = Parser(prog="python -m experiments.ablation", description=__doc__)
    add = parser.add_argument
    add("--table", type=int, choices=(1, 2, 3), required=True, help="of the paper")
    add("--data", type=Path, required=True, help="collection, or feature store")
    add("--workdir", type=Path, required=True, help="folder for all results")
    add("--preset", choices=two_stage.PRESETS, default="paper")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S")
    add("--machines", nargs="+", metavar="TYPE", help="machine types to keep")
    add("--features", type=Path, help="where features go; WORKDIR/features")
    add(
        "--together",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="train runs side by side as one program; on accelerators by default",
    )
    parser.add_overrides()
    args = parser.parse_args(argv)
    if len(set(args.seeds)) != len(args.seeds):
        raise ConfigError(f"--seeds: a seed is given twice; found {args.seeds}")

    system = override(two_stage.get_config(args.preset), args.overrides)
    asked = {"system": to_dict(system), "table": args.table, "machines": args.machines}
    common.check_same_run(args.workdir, asked)
    console = Console()
    use_compilation_cache()
    devices = use_devices()
    store = common.features_of(
        args.data, args.features or args.workdir / "features", system.features, console
    )
    args.workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(args.workdir / "config.json", (json.dumps(asked, indent=1) + "\n").encode())
    together = devices.local[0].platform != "cpu" if args.together is None else args.together

    def make_trainer() -> Trainer:
        data = prepare(store, system.encoder.crop, args.machines)
        return Trainer(system, data, args.workdir, devices, together, console)

    rows = get_rows(args.table, system)
    found = measure(
        rows,
        args.seeds,
        lambda row, seed: args.workdir / "scores" / f"{row.key}-{seed}",
        make_trainer,
    )
    result = {
        **{name: asked[name] for name in ("table", "machines")},
        "preset": args.preset,
        "overrides": args.overrides,
        "seeds": args.seeds,
        "device": devices.local[0].device_kind,
        "rows": found,
        "paper_overall": {row.name: row.paper for row in rows},
    }
    out = args.workdir / "results.json"
    write_results(out, result)
    seeds = f"{len(args.seeds)} seed" + "s" * (len(args.seeds) != 1)
    title = f"Table {args.table}, preset {args.preset}, {seeds}, mean ± std, %"
    published = {row.name: f"{row.paper:.2f}" for row in rows}
    print_rows(console, title, found, first="row", more={"paper, overall": published})
    picture = args.workdir / "table.png"
    title = f"Table {args.table}, preset {args.preset}: points are seeds, bars their mean"
    plot_rows(picture, title, found)
    console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)
    console.print(f"Figures: {out}", highlight=False, soft_wrap=True)
    return result


if __name__ == "__main__":
    common.run_main(main)
