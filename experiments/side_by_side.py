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

from asdproto.config import ConfigError
from asdproto.data.dataset import Dataset
from asdproto.scoring.rows import rows_by
from asdproto.systems import prototype
from asdproto.systems.detector import Detector
from asdproto.systems.prototype import PrototypeSystem
from asdproto.systems.run import score_detector
from asdproto.training.devices import RunOptions, default_loop, use_devices
from asdproto.training.loop import train
from asdproto.training.stage import Finetuning, Pretraining
from asdproto.training.state import TrainState
from experiments.common import NO_LABELS

# Key for files -> stage -> its numbers. Stages that are missing are left out: without the first,
# the second trains from scratch.
Variants = Mapping[str, Mapping[str, Pretraining | Finetuning]]


@dataclasses.dataclass(frozen=True)
class Job:
    """A stage to be trained once. Jobs that are equal are the same training.

    Attributes:
      name: For files; of the first variant that needs it.
      stage: ``"pretrain"`` or ``"finetune"``.
      config: The stage.
      seed: Of everything random.
      before: The stage that it goes on from, or ``None``.
    """

    name: str = dataclasses.field(compare=False)
    stage: str
    config: Pretraining | Finetuning
    seed: int
    before: "Job | None" = None

    @property
    def label(self) -> str:
        """Name of its files."""
        return f"{self.name}-{self.stage}-{self.seed}"

    @property
    def program(self) -> Pretraining | Finetuning:
        """The stage without what compiled code takes as arguments."""
        if isinstance(self.config, Pretraining):
            return dataclasses.replace(self.config, temperature=1.0, mpe_ratio=1.0)
        mix = None if self.config.mix_range is None else (0.0, 1.0)
        return dataclasses.replace(self.config, temperature=1.0, mix_range=mix)


def plan(variants: Variants, seeds: Sequence[int]) -> tuple[list[Job], dict[Any, Job]]:
    """Every training that variants need, once, pre-training first; and the last of each run."""
    jobs: dict[Job, Job] = {}
    last: dict[Any, Job] = {}
    for seed in seeds:
        for key, stages in variants.items():
            before = None
            for stage in prototype.STAGES:
                if stage in stages:
                    job = Job(key, stage, stages[stage], seed, before)
                    before = last[key, seed] = jobs.setdefault(job, job)
    return sorted(jobs, key=lambda job: prototype.STAGES.index(job.stage)), last


def measure(
    variants: Variants,
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

    Raises:
      ConfigError: The test clips carry no labels.
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
    final: dict[Job, TrainState] = {}
    for name, group in groups.items():
        states = train_side_by_side(name, group, system, data, options, final)
        final |= dict(zip(group, states, strict=True))
    for (key, seed), job in last.items():
        member = prototype.fit(system, data, final[job], seed=0)
        detector = Detector.trained(f"{key}-{seed}", system, data, [member])
        figures, _ = score_detector(workdir / "scores" / f"{key}-{seed}", detector, data)
        if figures is None:
            raise ConfigError(NO_LABELS)


def train_side_by_side(
    name: str,
    jobs: Sequence[Job],
    system: PrototypeSystem,
    data: Dataset,
    options: RunOptions,
    final: Mapping[Job, TrainState],
) -> list[TrainState]:
    """Final states of jobs that are one program, each as a run of ``two_stage`` would train it.

    ``final`` has the states that they go on from.
    """
    # Runs of a sweep take a device each, one that is alone all of them.
    devices = options.devices if len(jobs) == 1 else use_devices(1)
    loop = options.loop or default_loop(devices.local[0].platform)
    tasks, states, keys = [], [], []
    for job in jobs:
        changed = dataclasses.replace(system, **{job.stage: job.config})  # type: ignore[arg-type]
        task = prototype.make_task(changed, job.stage, data, devices, loop)
        key = jax.random.key(job.seed)
        before = final[job.before] if job.before else None
        tasks.append(task)
        states.append(prototype.start(task, key, data, before))
        keys.append(prototype.stage_key(key, job.stage))
    hypers = [task.stage.hyper() for task in tasks]
    return train(tasks[0], data, options, states, keys, hypers, name=name)
