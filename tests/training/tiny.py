"""A data set and a network small enough that a whole training takes seconds."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asdproto.data.dataset import ClipArrays, Dataset
from asdproto.models.normalization import BatchNorm
from asdproto.prototypes import l2_normalize
from asdproto.systems.prototype import EncoderConfig, PrototypeSystem
from asdproto.training import loop
from asdproto.training.devices import AXIS, Devices, RunOptions
from asdproto.training.objectives import mpe_objective, npe_objective
from asdproto.training.stage import Finetuning, Pretraining
from asdproto.training.task import Task

CROP, MELS, CLASSES = 16, 16, 5


class Encoder(nn.Module):
    """What training asks of an encoder, batch statistics included, and quick to compile."""

    embedding_dim: int = 8
    hidden: int = 12
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, crops, *, train, where=None):
        x = nn.Dense(self.hidden, use_bias=False, dtype=self.dtype)(crops)
        x = nn.relu(BatchNorm(train=train, axis_name=self.axis_name)(x, where))
        return l2_normalize(nn.Dense(self.embedding_dim)(x.mean(axis=1)))


def make_data(seed: int = 0, clips: int = 22) -> Dataset:
    """Noise whose spectrum depends on the class; clips of several lengths, one too short."""
    rng = np.random.default_rng(seed)
    labels = np.sort(
        np.concatenate([np.arange(CLASSES), rng.integers(0, CLASSES, clips - CLASSES)])
    )
    frames = rng.integers(CROP, 24, clips)
    frames[3] = CROP - 5
    shapes = rng.standard_normal((CLASSES, MELS))
    features = rng.standard_normal((clips, 24, MELS)) + 2 * shapes[labels][:, None]
    for clip, count in enumerate(frames):
        features[clip, count:] = 0
    arrays = ClipArrays(features.astype(np.float16), np.arange(clips), frames, CROP)
    none = ClipArrays(features[:0], np.arange(0), np.arange(0), CROP)
    classes = list(range(CLASSES))
    return Dataset(arrays, none, [], [], labels.astype(np.int32), classes, *arrays.statistics())


PRETRAIN = Pretraining(epochs=3, batch_size=8, learning_rates=((0.05, 2), (0.01, 1)))
FINETUNE = Finetuning(epochs=3, ways=3, shots=3, learning_rates=((0.02, 3),))


@dataclasses.dataclass(frozen=True)
class System(PrototypeSystem):
    """The paper's system around the tiny encoder."""

    encoder: EncoderConfig = dataclasses.field(default_factory=lambda: EncoderConfig(crop=CROP))

    kind: ClassVar[str] = "tests.training.tiny:System"

    def network(self, devices, loop="dispatch", score=None):
        return Encoder(axis_name=AXIS if score is None and devices.count > 1 else None)


PRESETS = {name: System() for name in ("quick", "small", "paper")}


def make_task(
    data: Dataset, stage: str = "pretrain", devices: Devices | None = None, **changes
) -> Task:
    config = PRETRAIN if stage == "pretrain" else FINETUNE
    config = dataclasses.replace(config, **changes)
    objective = mpe_objective(config) if stage == "pretrain" else npe_objective(config)
    count = devices.count if devices else 1
    axis = AXIS if count > 1 else None
    return Task.of(
        data,
        model=Encoder(axis_name=axis),
        stage=config,
        objective=objective,
        crop=CROP,
        chunk=4,
        num_devices=count,
    )


def train(task: Task, data: Dataset, options: RunOptions, state, key, **keywords):
    """One run."""
    hypers = [task.stage.hyper()]
    return loop.train(task, data, options, [state], [key], hypers, name="tiny", **keywords)[0]


def same(left, right) -> bool:
    """Whether two trees are equal bit for bit."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
