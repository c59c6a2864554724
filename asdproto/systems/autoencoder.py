"""The AutoEncoder row of Table 1: the baseline of DCASE 2022 Task 2.

Plain log-mel -> stacks of 5 frames -> autoencoder, one per machine type over all its sections ->
mean squared error of a clip's stacks. Features go to the device once; the stacks are gathered
inside the compiled epoch. Machine types whose data have one shape are trained side by side, as one
program.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich.console import Console

from asdproto.models.autoencoder import AutoEncoder
from asdproto.training.loop import Meter

_MODEL = AutoEncoder()
_EPSILON = 1e-7  # of Adam, in the baseline's framework


@dataclasses.dataclass(frozen=True)
class AutoEncoderConfig:
    """The system; the defaults are the official baseline's.

    Attributes:
      epochs: Passes over all stacks of frames.
      batch: Stacks in a batch.
      learning_rate: Of Adam.
      context: Frames in a stack; stacks begin at every frame.
      held_out: Share of the training clips, the last ones, that are only looked at. The official
        program takes the tail of the list sorted by path, which is section 02.
      standardize: Give the network every mel band with zero mean and unit variance (of the trained
        clips). The official program leaves it in dB, which takes tens of thousands of steps to
        learn the mean. Errors are in dB^2 either way.
    """

    epochs: int = 100
    batch: int = 512
    learning_rate: float = 1e-3
    context: int = 5
    held_out: float = 0.1
    standardize: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), found {self.held_out}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, found {self.learning_rate}")


# For a few hundred clips, in seconds on a CPU.
QUICK = AutoEncoderConfig(epochs=10, held_out=0.0, standardize=True)


@dataclasses.dataclass(frozen=True)
class MachineFeatures:
    """Features of one machine type, on the host.

    Attributes:
      train: Floating, shape ``[clips, max_frames, mels]``, dB; normal clips sorted by path.
      train_frames: Integer, shape ``[clips]``.
      test: Floating, shape ``[test_clips, max_test_frames, mels]``.
      test_frames: Integer, shape ``[test_clips]``.
    """

    train: np.ndarray
    train_frames: np.ndarray
    test: np.ndarray
    test_frames: np.ndarray


@dataclasses.dataclass(frozen=True)
class AutoEncoderResult:
    """What came out of one machine type.

    Attributes:
      train_scores: float64, shape ``[clips]``: mean squared error in dB^2; higher is odder.
      test_scores: float64, shape ``[test_clips]``.
      losses: float32, shape ``[epochs]``: mean of the batches' losses, in the network's units.
      held_out_losses: float32, shape ``[epochs]``: likewise over the held-out clips, with running
        statistics; empty where none are held out.
      variables: The network's parameters and running statistics, NumPy arrays.
    """

    train_scores: np.ndarray
    test_scores: np.ndarray
    losses: np.ndarray
    held_out_losses: np.ndarray
    variables: Any


def fit_score(
    train: np.ndarray,
    train_frames: np.ndarray,
    test: np.ndarray,
    test_frames: np.ndarray,
    *,
    config: AutoEncoderConfig = AutoEncoderConfig(),
    seed: int,
    console: Console | None = None,
) -> AutoEncoderResult:
    """Trains one autoencoder and scores all clips. See :class:`MachineFeatures` for the arrays.

    Args:
      train: Training features.
      train_frames: Their lengths.
      test: Test features.
      test_frames: Their lengths.
      config: The system.
      seed: Of parameters and order; the same seed gives the same result on the same machine.
      console: Where progress goes; ``None`` for silence.

    Returns:
      Scores and losses.

    Raises:
      ValueError: The arrays do not fit together, or a clip is shorter than a stack.
    """
    data = MachineFeatures(train, train_frames, test, test_frames)
    return fit_score_machines({"": data}, config=config, seed=seed, console=console)[""]


def fit_score_machines(
    machines: Mapping[str, MachineFeatures],
    *,
    config: AutoEncoderConfig = AutoEncoderConfig(),
    seed: int,
    console: Console | None = None,
) -> dict[str, AutoEncoderResult]:
    """Trains an autoencoder for every machine type, those of one shape of data side by side.

    A machine type's random numbers depend on the seed and its name, not on its company.

    Args:
      machines: Machine type -> features.
      config: The system.
      seed: Of parameters and order.
      console: Where progress goes; ``None`` for silence.

    Returns:
      Machine type -> scores and losses, in the order given.

    Raises:
      ValueError: Arrays do not fit together, or a clip is shorter than a stack; the message names
        the machine type.
    """
    groups: dict[tuple, list[str]] = {}
    origins = {}
    for name, data in machines.items():
        _check(name, data, config)
        origins[name] = [
            _origins(frames, features.shape[1], config.context)
            for frames, features in _parts(data, config)
        ]
        shape = (data.train.shape, data.train.dtype, *(len(part) for part in origins[name]))
        groups.setdefault(shape, []).append(name)
    results: dict[str, AutoEncoderResult] = {}
    for names in groups.values():
        together = _fit_group(names, machines, origins, config, seed, console)
        results.update(zip(names, together, strict=True))
    return {name: results[name] for name in machines}


# --- data


def _check(name: str, data: MachineFeatures, config: AutoEncoderConfig) -> None:
    where = f"{name}: " if name else ""
    for part in ("train", "test"):
        features, frames = getattr(data, part), np.asarray(getattr(data, f"{part}_frames"))
        if features.ndim != 3 or frames.shape != features.shape[:1]:
            raise ValueError(
                f"{where}{part} features have shape {features.shape} and {part}_frames "
                f"{frames.shape}; expected [clips, frames, mels] and [clips]"
            )
        if len(frames) and (frames.min() < config.context or frames.max() > features.shape[1]):
            bad = int(np.argmin(frames) if frames.min() < config.context else np.argmax(frames))
            raise ValueError(
                f"{where}{part} clip {bad} has {frames[bad]} frames; expected "
                f"{config.context} (one stack) to {features.shape[1]} (the array)"
            )
    if data.train.shape[2] != data.test.shape[2]:
        raise ValueError(
            f"{where}train has {data.train.shape[2]} mel bands and test {data.test.shape[2]}"
        )
    if len(data.train) == 0 or len(data.train) == _held_out(len(data.train), config):
        raise ValueError(f"{where}no training clip is left of {len(data.train)}")


def _held_out(clips: int, config: AutoEncoderConfig) -> int:
    return round(config.held_out * clips)


def _parts(data: MachineFeatures, config: AutoEncoderConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames and features of the trained clips and of the held-out ones."""
    cut = len(data.train) - _held_out(len(data.train), config)
    frames = np.asarray(data.train_frames)
    return [(frames[:cut], data.train[:cut]), (frames[cut:], data.train[cut:])]


def _origins(frames: np.ndarray, longest: int, context: int) -> np.ndarray:
    """Row of every stack's first frame in features flattened to ``[clips * longest, mels]``."""
    starts = [clip * longest + np.arange(count - context + 1) for clip, count in enumerate(frames)]
    return np.concatenate([*starts, np.zeros(0)]).astype(np.int32)


class _Data(NamedTuple):
    """One machine type on the device; a leading axis counts machine types."""

    rows: jax.Array  # [clips * frames, mels], trained clips first, then the held-out
    origins: jax.Array  # int32 [stacks], trained
    held_out: jax.Array  # int32 [stacks]
    mean: jax.Array  # float32 [mels]
    deviation: jax.Array  # float32 [mels]


class _Shape(NamedTuple):
    """All of the settings that a compiled program depends on."""

    batch: int
    context: int


class _State(NamedTuple):
    params: Any
    batch_stats: Any
    adam: Any


def _statistics(data: MachineFeatures, config: AutoEncoderConfig) -> tuple[np.ndarray, np.ndarray]:
    mels = data.train.shape[2]
    if not config.standardize:
        return np.zeros(mels, np.float32), np.ones(mels, np.float32)
    (frames, features), _ = _parts(data, config)
    count, total, squares = 0, np.zeros(mels), np.zeros(mels)
    for length, clip in zip(frames, features, strict=True):
        values = np.asarray(clip[:length], np.float64)
        count += length
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 1e-6)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


# --- compiled


def _stacks(data: _Data, origins: jax.Array, context: int) -> jax.Array:
    """Stacks that begin at given rows, float32, shape ``[batch, context * mels]``."""
    rows = data.rows[origins[:, None] + jnp.arange(context)].astype(jnp.float32)
    return ((rows - data.mean) / data.deviation).reshape(len(origins), -1)


def _epoch(
    shape: _Shape, state: _State, data: _Data, key: jax.Array, learning_rate: jax.Array
) -> tuple[_State, jax.Array, jax.Array]:
    """One pass over all stacks in random order; what does not fill a batch waits for the next."""
    optimizer = optax.adam(learning_rate, eps=_EPSILON)
    total = len(data.origins)
    batch = min(shape.batch, total)
    steps = total // batch
    order = jax.random.permutation(key, data.origins)[: steps * batch].reshape(steps, batch)

    def loss_of(params: Any, batch_stats: Any, stacks: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        found, updates = _MODEL.apply(variables, stacks, train=True, mutable=["batch_stats"])
        return jnp.mean(jnp.square(found - stacks)), updates["batch_stats"]

    def step(state: _State, origins: jax.Array) -> tuple[_State, jax.Array]:
        stacks = _stacks(data, origins, shape.context)
        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, stacks
        )
        updates, adam = optimizer.update(grads, state.adam)
        return _State(optax.apply_updates(state.params, updates), batch_stats, adam), loss

    state, losses = lax.scan(step, state, order)
    held_out = _held_out_loss(shape, state, data)
    return state, losses.mean(), held_out


def _held_out_loss(shape: _Shape, state: _State, data: _Data) -> jax.Array:
    total = len(data.held_out)
    if not total:
        return jnp.float32(0)
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    def error(origin: jax.Array) -> jax.Array:
        stack = _stacks(data, origin[None], shape.context)
        found = jnp.asarray(_MODEL.apply(variables, stack, train=False))
        return jnp.mean(jnp.square(found - stack))

    return lax.map(error, data.held_out, batch_size=min(total, 4096)).mean()


def _score_clip(
    shape: _Shape, state: _State, data: _Data, clip: jax.Array, frames: jax.Array
) -> jax.Array:
    """Mean squared error of a clip's stacks in dB^2; ``clip`` is ``[max_frames, mels]``."""
    x = (clip.astype(jnp.float32) - data.mean) / data.deviation
    count = len(clip) - shape.context + 1
    stacks = jnp.concatenate([x[first : first + count] for first in range(shape.context)], axis=1)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    found = jnp.asarray(_MODEL.apply(variables, stacks, train=False))
    wrong = (found - stacks) * jnp.tile(data.deviation, shape.context)
    errors = jnp.mean(jnp.square(wrong), axis=1)
    valid = jnp.arange(count) <= frames - shape.context
    return jnp.sum(jnp.where(valid, errors, 0)) / jnp.sum(valid)


@jax.jit
def _start(size: jax.Array, keys: jax.Array) -> _State:
    def start(key: jax.Array) -> _State:
        variables = _MODEL.init(key, jnp.zeros((1, len(size))), train=False)
        adam = optax.adam(1.0).init(variables["params"])
        return _State(variables["params"], variables["batch_stats"], adam)

    return jax.vmap(start)(keys)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _run_epoch(
    shape: _Shape, state: _State, data: _Data, keys: jax.Array, learning_rate: jax.Array
) -> tuple[_State, jax.Array, jax.Array]:
    epoch = functools.partial(_epoch, shape, learning_rate=learning_rate)
    return jax.vmap(epoch)(state, data, keys)


@functools.partial(jax.jit, static_argnums=0)
def _score(
    shape: _Shape, state: _State, data: _Data, features: jax.Array, frames: jax.Array
) -> jax.Array:
    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _score_clip(shape, state, data, *pair)

    return lax.map(one, (features, frames), batch_size=16)


# --- a group of machine types


def _fit_group(
    names: list[str],
    machines: Mapping[str, MachineFeatures],
    origins: Mapping[str, list[np.ndarray]],
    config: AutoEncoderConfig,
    seed: int,
    console: Console | None,
) -> list[AutoEncoderResult]:
    members = [machines[name] for name in names]
    mels = members[0].train.shape[2]
    moments = [_statistics(data, config) for data in members]
    clips, longest, _ = members[0].train.shape
    cut = clips - _held_out(clips, config)
    data = _Data(
        rows=jnp.stack([jnp.asarray(d.train).reshape(-1, mels) for d in members]),
        origins=jnp.stack([origins[name][0] for name in names]),
        held_out=jnp.stack([origins[name][1] + cut * longest for name in names]).astype(jnp.int32),
        mean=jnp.stack([mean for mean, _ in moments]),
        deviation=jnp.stack([deviation for _, deviation in moments]),
    )
    shape = _Shape(config.batch, config.context)
    root = jax.random.key(seed)
    own = jnp.stack([jax.random.fold_in(root, zlib.crc32(name.encode())) for name in names])
    state = _start(jnp.zeros(config.context * mels), _fold(own, 0))
    meter = Meter(f"AutoEncoder {', '.join(names)}".rstrip(), config.epochs, 0, console)
    losses, held_out = [], []
    with meter.running():
        for epoch in range(config.epochs):
            keys = _fold(own, 1 + epoch)
            state, loss, other = _run_epoch(shape, state, data, keys, config.learning_rate)
            losses.append(np.asarray(loss))
            held_out.append(np.asarray(other))
            if not np.all(np.isfinite(losses[-1])):
                bad = names[int(np.argmin(np.isfinite(losses[-1])))]
                raise FloatingPointError(
                    f"{bad or 'autoencoder'}: the loss of epoch {epoch + 1} is {losses[-1]}; "
                    f"expected finite numbers. Check the features for nan and inf."
                )
            meter.epoch(epoch + 1, f"loss {losses[-1].mean():.4f}")

    results = []
    for index, member in enumerate(members):
        mine, stay = jax.tree.map(lambda leaf, i=index: leaf[i], (state, data))
        scores = [
            np.asarray(
                _score(shape, mine, stay, jnp.asarray(features), jnp.asarray(frames)),
                np.float64,
            )
            for features, frames in (
                (member.train, member.train_frames),
                (member.test, member.test_frames),
            )
        ]
        variables = {"params": mine.params, "batch_stats": mine.batch_stats}
        results.append(
            AutoEncoderResult(
                train_scores=scores[0],
                test_scores=scores[1],
                losses=np.array([loss[index] for loss in losses], np.float32),
                held_out_losses=np.array(
                    [loss[index] for loss in held_out] if cut < clips else [], np.float32
                ),
                variables=jax.tree.map(np.asarray, variables),
            )
        )
    return results


def _fold(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
