"""Autoencoders over stacks of frames: training, and the errors of clips.

Features go to the device once; the stacks are gathered inside the compiled epoch. Machine types
whose data have one shape are trained side by side, as one program.
"""

import contextlib
import dataclasses
import functools
import time
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asdproto import signals
from asdproto.config import at_least, between, check_fields, positive
from asdproto.data.dataset import ClipArrays
from asdproto.models.autoencoder import AutoEncoder
from asdproto.systems.system import RunOptions, open_checkpoints
from asdproto.training.loop import Meter

_MODEL = AutoEncoder()
_EPSILON = 1e-7  # of Adam, in the baseline's framework
_PIECE = 2048  # stacks scored in one call


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig:
    """How networks are trained; the defaults are the official baseline's.

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
        check_fields(
            self,
            epochs=between(1, 1000000),
            batch=between(1, 1000000),
            learning_rate=positive(1000),
            context=between(1, 10000),
            held_out=at_least(0, below=1),
        )


class Network(NamedTuple):
    """A trained network of one machine type, NumPy arrays.

    Attributes:
      variables: Parameters and running statistics.
      mean: float32, shape ``[mels]``, subtracted from every frame.
      std: float32, shape ``[mels]``, divides every frame then.
      losses: float32, shape ``[epochs]``: mean of the batches' losses, in the network's units.
      held_out_losses: float32, shape ``[epochs]``: likewise over the held-out clips, with running
        statistics; empty where none are held out.
    """

    variables: Any
    mean: np.ndarray
    std: np.ndarray
    losses: np.ndarray = np.zeros(0, np.float32)
    held_out_losses: np.ndarray = np.zeros(0, np.float32)


def fit_machines(
    machines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    config: ReconstructionConfig,
    seed: int,
    options: RunOptions | None = None,
) -> dict[str, Network]:
    """Trains an autoencoder for every machine type, those of one shape of data side by side.

    A machine type's random numbers depend on the seed and its name, not on its company.

    Args:
      machines: Machine type -> features of its normal clips in dB, floating, shape
        ``[clips, max_frames, mels]``, sorted by path; and their frames, integer ``[clips]``.
      config: The system.
      seed: Of parameters and order; the same seed gives the same result on the same machine.
      options: How the run goes: its console, checkpoints and metrics; none of them when ``None``.

    Returns:
      Machine type -> network, in the order given.

    Raises:
      ValueError: Arrays do not fit together, or a clip is shorter than a stack; the message names
        the machine type.
    """
    groups: dict[tuple, list[str]] = {}
    origins = {}
    for name, data in machines.items():
        features, frames = data
        _check(name, features, frames, config)
        parts = np.split(np.asarray(frames), [_cut(len(features), config)])
        origins[name] = [_origins(part, features.shape[1], config.context) for part in parts]
        shape = (features.shape, features.dtype, *map(len, origins[name]))
        groups.setdefault(shape, []).append(name)
    results: dict[str, Network] = {}
    for names in groups.values():
        together = _fit_group(names, machines, origins, config, seed, options)
        results.update(zip(names, together, strict=True))
    return {name: results[name] for name in machines}


def score_clips(
    network: Network, config: ReconstructionConfig, features: np.ndarray, frames: np.ndarray
) -> np.ndarray:
    """Mean squared error of every clip's stacks.

    Args:
      network: Of the clips' machine type.
      config: Its system.
      features: Floating, shape ``[clips, max_frames, mels]``, dB.
      frames: Integer, shape ``[clips]``.

    Returns:
      float64, shape ``[clips]``, dB^2; higher is odder.

    Raises:
      ValueError: A clip is shorter than a stack, or there are other mel bands than in training.
    """
    errors = stack_errors(network, config, features, frames)
    counts = np.asarray(frames) - config.context + 1
    ends = np.cumsum(counts)
    return np.array([errors[end - n : end].mean() for end, n in zip(ends, counts, strict=True)])


def stack_errors(
    network: Network, config: ReconstructionConfig, features: np.ndarray, frames: np.ndarray
) -> np.ndarray:
    """As :func:`score_clips`, for every stack of every clip: float64, shape ``[stacks]``."""
    _check("", features, frames, config, mels=len(network.mean))
    longest, mels = features.shape[1:]
    rows = np.asarray(features).reshape(-1, mels)
    origins = _origins(np.asarray(frames), longest, config.context)
    errors = np.zeros(len(origins))
    # Pieces of one size, the last one padded: a clip scores to the same bits in any company.
    for first in range(0, len(origins), _PIECE):
        part = origins[first : first + _PIECE]
        stacks = rows[part[:, None] + np.arange(config.context)]
        stacks = np.pad(stacks, ((0, _PIECE - len(part)), (0, 0), (0, 0)))
        part_errors = _errors(network.variables, network.mean, network.std, stacks)
        errors[first : first + _PIECE] = np.asarray(part_errors)[: len(part)]
    return errors


# --- data


def _check(
    name: str,
    features: np.ndarray,
    frames: np.ndarray,
    config: ReconstructionConfig,
    mels: int | None = None,
) -> None:
    where = f"{name}: " if name else ""
    frames = np.asarray(frames)
    if features.ndim != 3 or frames.shape != features.shape[:1]:
        raise ValueError(
            f"{where}features have shape {features.shape} and frames {frames.shape}; expected "
            "[clips, frames, mels] and [clips]"
        )
    if len(frames) and (frames.min() < config.context or frames.max() > features.shape[1]):
        bad = int(np.argmin(frames) if frames.min() < config.context else np.argmax(frames))
        raise ValueError(
            f"{where}clip {bad} has {frames[bad]} frames; expected {config.context} (one stack) "
            f"to {features.shape[1]} (the array)"
        )
    if mels is not None:
        if features.shape[2] != mels:
            raise ValueError(
                f"{where}found {features.shape[2]} mel bands; expected {mels}, as in training"
            )
    elif _cut(len(features), config) == 0:
        raise ValueError(f"{where}no training clip is left of {len(features)}")


def _cut(clips: int, config: ReconstructionConfig) -> int:
    """How many clips are trained on; those after them are held out."""
    return clips - round(config.held_out * clips)


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
    std: jax.Array  # float32 [mels]


class _Shape(NamedTuple):
    """All of the settings that a compiled program depends on."""

    batch: int
    context: int


class _State(NamedTuple):
    params: Any
    batch_stats: Any
    adam: Any


def _statistics(
    features: np.ndarray, frames: np.ndarray, config: ReconstructionConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every mel band over the trained clips, float32 ``[mels]``."""
    mels = features.shape[2]
    if not config.standardize:
        return np.zeros(mels, np.float32), np.ones(mels, np.float32)
    rows = np.arange(_cut(len(features), config))
    mean, std = ClipArrays(features, rows, np.asarray(frames)[rows], config.context).statistics()
    return mean.astype(np.float32), np.maximum(std, 1e-3).astype(np.float32)


# --- compiled


def _stacks(data: _Data, origins: jax.Array, context: int) -> jax.Array:
    """Stacks that begin at given rows, float32, shape ``[batch, context * mels]``."""
    rows = data.rows[origins[:, None] + jnp.arange(context)].astype(jnp.float32)
    return ((rows - data.mean) / data.std).reshape(len(origins), -1)


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
        rebuilt, updates = _MODEL.apply(variables, stacks, train=True, mutable=["batch_stats"])
        return jnp.mean(jnp.square(rebuilt - stacks)), updates["batch_stats"]

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
        rebuilt = jnp.asarray(_MODEL.apply(variables, stack, train=False))
        return jnp.mean(jnp.square(rebuilt - stack))

    return lax.map(error, data.held_out, batch_size=min(total, 4096)).mean()


@jax.jit
def _errors(variables: Any, mean: jax.Array, std: jax.Array, stacks: jax.Array) -> jax.Array:
    """Mean squared error of stacks ``[batch, context, mels]`` in dB^2, float32 ``[batch]``."""
    x = ((stacks.astype(jnp.float32) - mean) / std).reshape(len(stacks), -1)
    rebuilt = jnp.asarray(_MODEL.apply(variables, x, train=False))
    wrong = (rebuilt - x).reshape(stacks.shape) * std
    return jnp.mean(jnp.square(wrong), axis=(1, 2))


@functools.partial(jax.jit, static_argnums=0)
def _start(columns: int, keys: jax.Array) -> _State:
    def start(key: jax.Array) -> _State:
        variables = _MODEL.init(key, jnp.zeros((1, columns)), train=False)
        adam = optax.adam(1.0).init(variables["params"])
        return _State(variables["params"], variables["batch_stats"], adam)

    return jax.vmap(start)(keys)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _run_epoch(
    shape: _Shape, state: _State, data: _Data, keys: jax.Array, learning_rate: jax.Array
) -> tuple[_State, jax.Array, jax.Array]:
    epoch = functools.partial(_epoch, shape, learning_rate=learning_rate)
    return jax.vmap(epoch)(state, data, keys)


# --- a group of machine types


def _fit_group(
    names: list[str],
    machines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    origins: Mapping[str, list[np.ndarray]],
    config: ReconstructionConfig,
    seed: int,
    options: RunOptions | None,
) -> list[Network]:
    members = [machines[name] for name in names]
    moments = [_statistics(*data, config) for data in members]
    clips, longest, mels = members[0][0].shape
    cut = _cut(clips, config)
    data = _Data(
        rows=jnp.stack([jnp.asarray(features).reshape(-1, mels) for features, _ in members]),
        origins=jnp.stack([origins[name][0] for name in names]),
        held_out=jnp.stack([origins[name][1] + cut * longest for name in names]).astype(jnp.int32),
        mean=jnp.stack([mean for mean, _ in moments]),
        std=jnp.stack([std for _, std in moments]),
    )
    shape = _Shape(config.batch, config.context)
    root = jax.random.key(seed)
    own = jnp.stack([jax.random.fold_in(root, zlib.crc32(name.encode())) for name in names])
    state = _start(config.context * mels, _fold(own, 0))
    title = f"AutoEncoder {', '.join(names)}".rstrip()
    console, workdir = (options.console, options.workdir) if options else (None, None)
    losses = np.zeros((config.epochs, len(names)), np.float32)
    held_out = np.zeros_like(losses)
    folder = f"autoencoder-{seed}-{zlib.crc32(title.encode()):08x}"
    with open_checkpoints(workdir, folder) as checkpoints:
        first = 0
        if checkpoints is not None and checkpoints.latest() is not None:
            first = checkpoints.latest()
            host = jax.tree.map(np.asarray, state)
            state, losses, held_out = checkpoints.restore((host, losses, held_out))
        saved = time.monotonic()
        meter = Meter(title, config.epochs, first, console)
        kept = contextlib.nullcontext(lambda: False) if checkpoints is None else signals.deferred()
        with meter.running(), kept as asked:
            for epoch in range(first, config.epochs):
                keys = _fold(own, 1 + epoch)
                state, loss, held_out_loss = _run_epoch(
                    shape, state, data, keys, config.learning_rate
                )
                losses[epoch], held_out[epoch] = np.asarray(loss), np.asarray(held_out_loss)
                if not np.all(np.isfinite(losses[epoch])):
                    bad = names[int(np.argmin(np.isfinite(losses[epoch])))]
                    raise FloatingPointError(
                        f"{bad or 'autoencoder'}: the loss of epoch {epoch + 1} is "
                        f"{losses[epoch]}; expected finite numbers. Check the features for nan "
                        "and inf."
                    )
                meter.epoch(epoch + 1, f"loss {losses[epoch].mean():.4f}")
                last = epoch + 1 == config.epochs
                due = options is not None and time.monotonic() - saved > options.save_seconds
                stop = asked()
                if checkpoints is not None and (last or due or stop):
                    on_host = jax.tree.map(np.asarray, state)
                    # The saving goes on in the background, and the arrays are written into.
                    checkpoints.save(epoch + 1, (on_host, losses.copy(), held_out.copy()))
                    saved = time.monotonic()
                if stop:
                    checkpoints.wait()
                    signals.stop(f"epoch {epoch + 1} of {title} is saved")

    results = []
    for index in range(len(names)):
        params, batch_stats = jax.tree.map(
            lambda leaf, i=index: np.asarray(leaf[i]), (state.params, state.batch_stats)
        )
        results.append(
            Network(
                {"params": params, "batch_stats": batch_stats},
                *moments[index],
                losses[:, index],
                held_out[:, index] if cut < clips else held_out[:0, index],
            )
        )
    return results


def _fold(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
