"""What the benchmark of training is made of: data, counts, compiled pieces of a step, timing."""

import argparse
import collections
import dataclasses
import functools
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asdproto.config import ConfigError, override, to_dict
from asdproto.data import store
from asdproto.data.dataset import ClipArrays, Dataset
from asdproto.models.convolution import compiler_options
from asdproto.prototypes import l2_normalize
from asdproto.systems.prototype import STAGES, PrototypeSystem, make_task
from asdproto.training import step as steps
from asdproto.training.devices import Devices, Loop, default_loop, use_devices
from asdproto.training.loop import Programs
from asdproto.training.stage import Hyper
from asdproto.training.state import Batch, ClipIndex, TrainState, clip_index
from asdproto.training.task import Task
from experiments.benchmarks.timing import interleave, rounded, spread
from experiments.common import processor
from experiments.two_stage import get_config

PACKAGES = ("asdproto", "jax", "jaxlib", "flax", "optax", "numpy", "torch")
CLIPS = {"paper": 21_000, "small": 2_100}
FRAMES, MELS, SECTIONS, CLASSES = 313, 128, 21, 147
PIECES = ("sampling", "forward", "loss", "backward", "step")  # each contains those before it


def imbalanced_labels(clips: int, classes: int = CLASSES, sections: int = SECTIONS) -> np.ndarray:
    """Classes of clips as in DCASE 2022 Task 2: many of a section's source, few of its target.

    Each section has four source classes of seven, which share 99 % of its clips, and three target
    classes, which share 1 %; every class has a clip.
    """
    source = np.arange(classes) % (classes // sections) < 4
    share = np.where(source, 0.99 / source.sum(), 0.01 / max(1, (~source).sum()))
    counts = np.maximum(1, np.floor(share * clips)).astype(int)
    if counts.sum() > clips:
        counts = np.maximum(1, counts - 1)
    if counts.sum() > clips:
        raise ValueError(f"{clips} clips cannot hold {classes} classes; ask for more --clips")
    labels = np.repeat(np.arange(classes), counts)
    rest = np.resize(np.flatnonzero(source), clips - len(labels))
    return np.random.default_rng(0).permutation(np.concatenate([labels, rest])).astype(np.int32)


def make_data(clips: int, classes: int, crop: int) -> Dataset:
    """Random features; 256 different clips, repeated."""
    noise = np.random.default_rng(0).standard_normal((min(clips, 256), FRAMES, MELS), np.float32)
    features = (10 * noise - 40).astype(np.float16)
    rows, none = np.arange(clips) % len(features), np.arange(0)
    labels = imbalanced_labels(clips, classes, max(1, classes // (CLASSES // SECTIONS)))
    return Dataset(
        train=ClipArrays(features, rows, np.full(clips, FRAMES, np.int32), crop),
        test=ClipArrays(features, none, none, crop),
        train_clips=[],
        test_clips=[],
        labels=labels,
        classes=[("noise", str(index)) for index in range(classes)],
        mean=np.full(MELS, -40.0),
        std=np.full(MELS, 10.0),
    )


def forward_flops(width: int, stages: Sequence[int], frames: int, mels: int) -> tuple[int, int]:
    """Operations of one crop's convolutions forward, and the first layer's part of them."""

    def conv(size: int, channels: int, features: int) -> int:
        return 2 * size**2 * channels * features * rows * columns

    rows, columns = -(-frames // 2), -(-mels // 2)
    total = stem = conv(7, 1, width)
    rows, columns, channels = -(-rows // 2), -(-columns // 2), width
    for stage, blocks in enumerate(stages):
        features = width * 2**stage
        for block in range(blocks):
            if stage and not block:
                rows, columns = -(-rows // 2), -(-columns // 2)
                total += conv(1, channels, features)
            total += conv(3, channels, features) + conv(3, features, features)
            channels = features
    return total, stem


@dataclasses.dataclass
class Compiled:
    """A program and what compiling it took."""

    call: Any
    seconds: float
    memory: int

    @classmethod
    def of(cls, program: Any, *args: Any) -> "Compiled":
        started = time.perf_counter()
        call = program.lower(*args).compile()
        seconds = time.perf_counter() - started
        sizes = call.memory_analysis()
        memory = 0
        if sizes is not None:
            memory = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
            memory += sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
        return cls(call, round(seconds, 2), memory)


def without_update(task: Task) -> Task:
    """A task whose optimizer keeps the gradient and changes nothing."""
    stage: Any = type(task.stage)

    class GradientStage(stage):
        def update_rule(self, learning_rate: Any = 0.0) -> optax.GradientTransformation:
            return optax.GradientTransformation(lambda params: params, lambda g, s, p=None: (g, g))

    return dataclasses.replace(task, stage=GradientStage(**vars(task.stage)))


def piece(task: Task, name: str) -> Callable[..., Any]:
    """Part of a step: what is not returned, the compiler leaves out."""
    bare = without_update(task)

    def run(state: TrainState, index: ClipIndex, plan: steps.EpochPlan, hyper: Hyper) -> Any:
        turn = state.step % task.steps_per_epoch
        batch = steps.take_batch(task, index, plan.steps, turn, None)
        if name == "sampling":
            return batch.crops, batch.labels
        if name == "forward":
            params = state.params["encoder"]
            variables = {"params": params, "batch_stats": state.batch_stats}
            return task.model.apply(variables, batch.crops, train=True, mutable=["batch_stats"])
        after, loss = steps.train_step(
            task if name == "step" else bare, state, batch, plan.key, hyper
        )
        if name == "step":
            return after
        without_gradient = loss, after.batch_stats
        return without_gradient if name == "loss" else (*without_gradient, after.optimizer)

    return run


class Bench:
    """What all parts share: arguments, system, features on the device, results."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.devices: Devices = use_devices(1)
        self.platform = self.devices.local[0].platform
        changes = [*args.overrides, f"encoder.dtype={args.dtype}"]
        if args.width:
            changes.append(f"encoder.width={args.width}")
        if args.batch:
            changes.append(f"pretrain.batch_size={args.batch}")
        self.system: PrototypeSystem = override(get_config(args.preset), changes)
        encoder = self.system.encoder
        on_cpu = self.platform == "cpu"
        self.clips = args.clips or (min(1024, CLIPS[args.preset]) if on_cpu else CLIPS[args.preset])
        self.loop: Loop = args.loop or default_loop(self.platform)
        self.count = args.steps or (4 if on_cpu else 200)
        self._encoders: dict[int, Any] = {}
        self._plans: dict[Any, Any] = {}
        self._steppers: dict[Any, tuple[Callable[[], None], Compiled]] = {}
        self.largest_program = 0
        self.widths = args.widths or [encoder.width]
        self.data = make_data(self.clips, args.classes, encoder.crop)
        self.index = self.place(self.data)

    def place(self, data: Dataset) -> ClipIndex:
        """A data set's training clips, on the device."""
        return self.devices.replicate(clip_index(data, resident=True))

    def short(self) -> tuple[Dataset, ClipIndex]:
        """Data whose epoch of pre-training is K steps, so that the pass has its usual share."""
        clips = min(self.clips, self.count * self.system.pretrain.batch_size)
        data = make_data(clips, min(self.args.classes, clips // 4), self.system.encoder.crop)
        return data, self.place(data)

    def task(
        self, stage: str, loop: Loop, count: int = 0, data: Dataset | None = None, **encoder: Any
    ) -> Task:
        """Task of a stage as training makes it, with ``count`` steps an epoch where given."""
        system = dataclasses.replace(
            self.system, encoder=dataclasses.replace(self.system.encoder, **encoder)
        )
        task = make_task(system, stage, data or self.data, self.devices, loop)
        if count:
            stage_config = dataclasses.replace(task.stage, steps_per_epoch=count)
            task = dataclasses.replace(task, stage=stage_config)
        return task

    def state(self, task: Task) -> TrainState:
        """State at step 0; prototypes are random directions."""
        key, width = jax.random.key(0), task.model.embedding_dim
        if width not in self._encoders:  # the same for all stages, dtypes and lowerings
            fresh = task.init(key, MELS)
            self._encoders[width] = jax.device_get((fresh.params["encoder"], fresh.batch_stats))
        encoder, batch_stats = self._encoders[width]
        state = task.start(encoder, batch_stats, key)
        if state.prototypes is not None:
            noise = jax.random.normal(key, state.prototypes.shape)
            state = state._replace(prototypes=l2_normalize(noise))
        return self.devices.replicate(state)

    def inputs(self, task: Task) -> tuple[ClipIndex, steps.EpochPlan, Hyper]:
        """Training clips, plan of an epoch and hyper-parameters, on the device."""
        hyper = self.devices.replicate(task.stage.hyper())
        known = task.stage, task.pass_shape
        if known not in self._plans:
            self._plans[known] = jax.jit(functools.partial(steps.plan_epoch, task))(
                jnp.int32(0), self.index, jax.random.key(1), hyper
            )
        return self.index, self._plans[known], hyper

    def first_batch(self, task: Task) -> tuple[TrainState, Batch]:
        """State at step 0, and what it trains on next."""
        state, (index, plan, _) = self.state(task), self.inputs(task)
        return state, steps.take_batch(task, index, plan.steps, state.step, None)

    def runner(
        self,
        task: Task,
        index: ClipIndex,
        key: jax.Array,
        gather: Callable[..., Any] | None = None,
        state: TrainState | None = None,
    ) -> Callable[[], TrainState]:
        """Runs an epoch a call, each from where the one before ended, and waits for it."""
        programs = Programs(task, self.devices)
        held = self.state(task) if state is None else self.devices.replicate(state)
        inputs = index, *self.devices.replicate((key, task.stage.hyper()))

        def run() -> TrainState:
            nonlocal held
            walk = programs.train_epoch(held, *inputs, loop=self.loop, gather=gather)
            held = jax.block_until_ready(collections.deque(walk, maxlen=1)[0][0])
            return held

        return run

    def peak_memory(self) -> dict[str, Any]:
        """Most bytes taken so far, as the device says, or else by one program, as compiled."""
        stats = self.devices.local[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            return {"bytes": stats["peak_bytes_in_use"], "source": "device"}
        return {"bytes": self.largest_program, "source": "largest compiled step, features included"}

    def stepper(
        self, task: Task, loop: Loop, name: str = "step", suited: bool = True
    ) -> tuple[Callable[[], None], Compiled]:
        """Runs ``task.steps_per_epoch`` steps, or as often a part of one, and waits for them.

        Compiled once, with the options that suit the backend, or (not ``suited``) its defaults.
        """
        known = task.stage, task.model, loop, name, suited
        if known in self._steppers:
            return self._steppers[known]
        run, whole, count = piece(task, name), name == "step", task.steps_per_epoch
        state, inputs = self.state(task), self.inputs(task)

        def scan_piece(state: TrainState, *inputs: Any) -> Any:
            # The result is carried, so that it is written; the barrier keeps what does not change
            # from being computed once before the loop.
            def body(step: jax.Array, _: Any) -> Any:
                held, here = lax.optimization_barrier((state.params, step))
                return run(state._replace(params=held, step=here), *inputs)

            shape = jax.eval_shape(run, state, *inputs)
            start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
            return lax.fori_loop(0, count, body, start)

        function, calls = run, count
        if loop == "scan":
            function = functools.partial(steps.scan_steps, task) if whole else scan_piece
            calls = 1
        compiled = jax.jit(
            function,
            donate_argnums=(0,) if whole else (),
            compiler_options=compiler_options(self.platform) if suited else None,
        )
        program = Compiled.of(compiled, state, *inputs)
        self.largest_program = max(self.largest_program, program.memory)
        held = [state]

        def turn() -> None:
            for _ in range(calls):
                out = program.call(held[0], *inputs)
                if whole:
                    held[0] = out
            jax.block_until_ready(out)

        self._steppers[known] = turn, program
        return turn, program


def per_step(seconds: Sequence[float], count: int) -> dict[str, float]:
    """Spread of a step's milliseconds."""
    return spread([1e3 * value / count for value in seconds])


def measure_peak(bench: Bench) -> float:
    """TFLOP/s of a large matrix product in the dtype of the run."""
    size = bench.args.matrix or (2048 if bench.platform == "cpu" else 8192)
    dtype = jnp.dtype(bench.system.encoder.dtype)
    left, right = (jax.random.normal(jax.random.key(k), (size, size), dtype) for k in (0, 1))
    product = jax.jit(jnp.matmul)
    times = 2 if bench.platform == "cpu" else 20

    def run() -> None:
        for _ in range(times):
            out = product(left, right)
        out.block_until_ready()

    seconds = interleave({"product": run}, max(5, bench.args.rounds))[0]["product"]
    return rounded(2e-12 * size**3 * times / statistics.median(seconds))


def project(bench: Bench, result: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the preset's whole schedule from the times of its steps and of the pass."""
    clips = CLIPS[bench.args.preset]
    projection: dict[str, Any] = {"clips": clips}
    for stage in STAGES:
        config = getattr(bench.system, stage)
        seconds = config.steps(clips) * result["steps"][stage]["milliseconds"]["median"] / 1e3
        if bench.system.objective(stage).epoch_prototypes:
            seconds += clips / result["pass"]["crops_per_second"]["median"]
        projection[stage] = round(config.total_epochs * seconds, 1)
    projection["seconds"] = round(sum(projection[stage] for stage in STAGES), 1)
    return projection


def versions() -> dict[str, str]:
    """Versions of what the benchmarks run on."""
    return {"python": platform.python_version(), **store.versions(PACKAGES)}


def describe(bench: Bench, module: str, words: Sequence[str] | None) -> dict[str, Any]:
    """Where and with what the figures are measured; ``words`` are the process's if ``None``."""
    device = bench.devices.local[0]
    words = sys.argv[1:] if words is None else words
    return {
        "device": processor() if bench.platform == "cpu" else device.device_kind,
        "platform": bench.platform,
        "runtime": device.client.platform_version.splitlines(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions(),
        "command": ["python", "-m", f"experiments.benchmarks.{module}", *words],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "compilation_cache": jax.config.values.get("jax_compilation_cache_dir"),
        "preset": bench.args.preset,
        "system": {
            name: to_dict(getattr(bench.system, name))
            for name in ("encoder", "pretrain", "finetune")
        },
        "clips": bench.clips,
        "classes": bench.args.classes,
        "loop": bench.loop,
        "steps_per_turn": bench.count,
        "rounds": bench.args.rounds,
    }


def start(
    args: argparse.Namespace, module: str, words: Sequence[str] | None, *, torch: bool
) -> tuple[Bench, dict[str, Any], Path | None]:
    """What a command measures with, the description of it, and the json file that it writes.

    ``torch`` leaves PyTorch room on the same GPU.

    Raises:
      ConfigError: jax runs on other devices than ``--expect`` names.
    """
    # Both are read when jax first looks for devices, which is below.
    if args.xla_flags:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {args.xla_flags}".strip()
    if torch:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
    if args.expect and jax.default_backend() != args.expect:
        raise ConfigError(
            f"--expect {args.expect}, but jax runs on {jax.default_backend()}; install the extra "
            "for the device (pip install -e '.[bench,cuda12]'), or name another interpreter "
            "(make bench-gpu BENCH_PYTHON=python3)"
        )
    bench = Bench(args)
    result, out = describe(bench, module, words), args.out
    if out is not None and out.suffix != ".json":
        parts = (module, result["device"], args.dtype, args.tag)
        plain = (re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_") for part in parts)
        out = out / ("_".join(filter(None, plain)) + ".json")
    return bench, result, out
