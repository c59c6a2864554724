"""Variants of the paper's system over seeds, each stage trained once, side by side where faster.

Variants that share their pre-training share the very weights. Where runs differ only in what
compiled code takes as arguments (seed, MPE ratio, mixing range), an accelerator trains them as one
program, spread over its devices; a CPU trains them one after the other, which is faster there.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from asdproto.data.dataset import Dataset
from asdproto.scoring.rows import rows_by
from asdproto.systems import prototype
from asdproto.systems.prototype import PrototypeSystem
from asdproto.training.devices import RunOptions, default_loop, use_devices
from asdproto.training.loop import train
from asdproto.training.stage import Finetuning, Pretraining
from asdproto.training.state import TrainState
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


def measure(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    system: PrototypeSystem,
    data: Dataset,
    options: RunOptions,
    together: bool,
) -> None:
    """Trains and scores variants of a system with every seed, into ``WORKDIR/scores/KEY-SEED``.

    Args:
      variants: The variants.
      seeds: Of everything random.
      system: What the variants change.
      data: The data set.
      options: How runs go, in a work folder.
      together: Whether jobs that are one program run side by side.
    """
    workdir = options.workdir
    assert workdir is not None
    jobs, last = plan(variants, seeds)
    groups = {job.label: [job] for job in jobs}
    if together:
        options = dataclasses.replace(options, loop="scan")
        by_program = rows_by([(job.stage, job.program) for job in jobs])
        groups = {}
        for rows in by_program.values():
            labels = ",".join(jobs[row].label for row in rows)
            name = f"{jobs[rows[0]].stage}-{zlib.crc32(labels.encode()):08x}"
            groups[name] = [jobs[row] for row in rows]
    final: dict[Any, TrainState] = {}
    for name, group in groups.items():
        states = train_side_by_side(name, group, system, data, options, final)
        final |= {job.identity: state for job, state in zip(group, states, strict=True)}
    for variant in variants:
        for seed in seeds:
            folder = workdir / "scores" / f"{variant.key}-{seed}"
            score_run(folder, system, data, final[last[variant.key, seed].identity])


def train_side_by_side(
    name: str,
    jobs: Sequence[Job],
    system: PrototypeSystem,
    data: Dataset,
    options: RunOptions,
    final: Mapping[Any, TrainState],
) -> list[TrainState]:
    """Final states of jobs that are one program, each as a run of ``two_stage`` would train it.

    ``final`` has the states that they go on from, by the identity of their job.
    """
    # Runs of a sweep take a device each, one that is alone all of them.
    devices = options.devices if len(jobs) == 1 else use_devices(1)
    loop = options.loop or default_loop(devices.local[0].platform)
    tasks, states, keys = [], [], []
    for job in jobs:
        changed = dataclasses.replace(system, **{job.stage: job.config})  # type: ignore[arg-type]
        task = prototype.make_task(changed, job.stage, data, devices, loop)
        key = jax.random.key(job.seed)
        before = final[job.before.identity] if job.before else None
        tasks.append(task)
        states.append(prototype.start(task, key, data, before))
        keys.append(prototype.stage_key(key, job.stage))
    hypers = [task.stage.hyper() for task in tasks]
    return train(tasks[0], data, options, states, keys, hypers, name=name)
