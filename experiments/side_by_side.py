"""Variants of the paper's system over seeds, each stage trained once, side by side where faster.

Variants that share their pre-training share the very weights. Where runs differ only in what
compiled code takes as arguments (seed, MPE ratio, mixing range), an accelerator trains them as one
program, spread over its devices; a CPU trains them one after the other, which is faster there.
"""

import contextlib
import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from asdproto.data.dataset import Dataset
from asdproto.systems import prototype
from asdproto.systems.prototype import PrototypeSystem
from asdproto.systems.system import open_checkpoints
from asdproto.training.devices import Devices, use_devices
from asdproto.training.epoch import Loop, default_loop
from asdproto.training.loop import StageRun, train
from asdproto.training.stage import Finetuning, Pretraining
from asdproto.training.state import TrainState
from asdproto.training.task import Task
from experiments.comparison import score_run


@dataclasses.dataclass(frozen=True)
class Variant:
    """Stages of a run.

    Attributes:
      key: For files.
      pretrain: Stage 1; ``None`` trains from scratch.
      finetune: Stage 2; ``None`` ends with stage 1.
    """

    key: str
    pretrain: Pretraining | None
    finetune: Finetuning | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """A stage to be trained once.

    Attributes:
      name: For files; of the first variant that needs it.
      stage: ``"pretrain"`` or ``"finetune"``.
      config: The stage.
      seed: Of everything random.
      before: The stage that it goes on from, or ``None``.
    """

    name: str
    stage: str
    config: Pretraining | Finetuning
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
    def program(self) -> Pretraining | Finetuning:
        """The stage without what compiled code takes as arguments."""
        if isinstance(self.config, Pretraining):
            return dataclasses.replace(self.config, temperature=1.0, mpe_ratio=1.0)
        mix = None if self.config.mix_range is None else (0.0, 1.0)
        return dataclasses.replace(self.config, temperature=1.0, mix_range=mix)


def plan(variants: Sequence[Variant], seeds: Sequence[int]) -> tuple[list[Job], dict[Any, Job]]:
    """Every training that variants need, once, pre-training first; and the last of each run."""
    jobs: dict[Any, Job] = {}
    last: dict[Any, Job] = {}
    for seed in seeds:
        for variant in variants:
            job: Job | None = None
            for stage in prototype.STAGES:
                config = getattr(variant, stage)
                if config is not None:
                    job = Job(variant.key, stage, config, seed, job)
                    job = jobs.setdefault(job.identity, job)
            assert job is not None
            last[variant.key, seed] = job
    order = sorted(jobs.values(), key=lambda job: prototype.STAGES.index(job.stage))
    return order, last


@dataclasses.dataclass
class Trainer:
    """Trains jobs, each once, and keeps their final states.

    Attributes:
      system: The system that the jobs change.
      data: The data set.
      workdir: For checkpoints, metrics and scores.
      devices: Where to train.
      together: Whether jobs that are one program run side by side.
      console: Where progress goes; ``None`` for silence.
      final: States by the identity of their job.
    """

    system: PrototypeSystem
    data: Dataset
    workdir: Path
    devices: Devices
    together: bool
    console: Console | None
    final: dict[Any, TrainState] = dataclasses.field(default_factory=dict)

    @property
    def loop(self) -> Loop:
        """Shape of the training loop."""
        return "scan" if self.together else default_loop(self.devices.local[0].platform)

    def task(self, job: Job, alone: bool) -> Task:
        """Static description; runs of a sweep take a device each, one that is alone all of them."""
        system = dataclasses.replace(self.system, **{job.stage: job.config})  # type: ignore[arg-type]
        devices = self.devices if alone else use_devices(1)
        return prototype.make_task(system, job.stage, self.data, devices, self.loop)

    def start(self, job: Job, task: Task) -> tuple[TrainState, jax.Array]:
        """State and key that a run of ``two_stage`` starts the stage with."""
        key = jax.random.key(job.seed)
        before = self.final[job.before.identity] if job.before else None
        state = prototype.start(task, key, self.data, before)
        return state, prototype.stage_key(key, job.stage)

    def train(self, jobs: Sequence[Job]) -> None:
        """Trains all; those that others go on from come first."""
        if not self.together:
            for job in jobs:
                self._train(job.label, [job])
            return
        groups: dict[Any, list[Job]] = {}
        for job in jobs:
            groups.setdefault((job.stage, job.program), []).append(job)
        for group in groups.values():
            labels = ",".join(job.label for job in group)
            self._train(f"{group[0].stage}-{zlib.crc32(labels.encode()):08x}", group)

    @contextlib.contextmanager
    def _run(self, name: str) -> Iterator[StageRun]:
        with open_checkpoints(self.workdir, name) as checkpoints:
            yield StageRun(
                name=name,
                checkpoints=checkpoints,
                metrics=self.workdir / "metrics.jsonl",
                console=self.console,
                loop=self.loop,
            )

    def _train(self, name: str, jobs: Sequence[Job]) -> None:
        """Trains jobs of one program side by side."""
        tasks = [self.task(job, len(jobs) == 1) for job in jobs]
        states, keys = zip(*map(self.start, jobs, tasks), strict=True)
        hypers = [task.stage.hyper() for task in tasks]
        with self._run(name) as run:
            trained = train(tasks[0], self.data, self.devices, states, keys, hypers, run)
        self.final |= {job.identity: state for job, state in zip(jobs, trained, strict=True)}

    def measure(self, variants: Sequence[Variant], seeds: Sequence[int]) -> None:
        """Trains and scores variants with every seed, into ``WORKDIR/scores/KEY-SEED``."""
        jobs, last = plan(variants, seeds)
        self.train(jobs)
        for variant in variants:
            for seed in seeds:
                state = self.final[last[variant.key, seed].identity]
                folder = self.workdir / "scores" / f"{variant.key}-{seed}"
                score_run(folder, self.system, self.data, state)
