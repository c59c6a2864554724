"""A feature store as the systems see it: training and test clips, attribute classes, statistics."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal

import numpy as np

from asdproto.data.collection import check_machines
from asdproto.data.dcase import Clip, assign_classes, class_key
from asdproto.data.problems import errors_in, label_problems
from asdproto.data.store import FeatureStore
from asdproto.errors import DataError

Standardization = Literal["global", "band"]


def tile_to(frames: np.ndarray, length: int) -> np.ndarray:
    """Repeats a clip shorter than ``length`` frames until it has as many, axis 0."""
    if len(frames) >= length:
        return frames
    return np.take(frames, np.arange(length) % len(frames), axis=0)


@dataclasses.dataclass(frozen=True)
class ClipArrays:
    """Features of chosen clips on the host, usually a part of a memory map.

    Attributes:
      features: Floating, shape ``[all clips, max_frames, mels]``.
      rows: Integer, shape ``[clips]``, the chosen rows.
      frames: Integer, shape ``[clips]``, frames of the chosen clips.
      crop: Frames of a crop; shorter clips are repeated up to it.
    """

    features: np.ndarray
    rows: np.ndarray
    frames: np.ndarray
    crop: int

    def __post_init__(self) -> None:
        if np.size(self.frames) and np.min(self.frames) < 1:
            clip = int(np.argmin(self.frames))
            raise ValueError(f"clip {clip} has no frames; expected 1 or more")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def usable_frames(self) -> np.ndarray:
        """int32, shape ``[clips]``: frames after short clips are repeated."""
        return np.maximum(self.frames, self.crop).astype(np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of the chosen clips once they are in memory."""
        return math.prod(self._shape()) * self.features.dtype.itemsize

    def _shape(self) -> tuple[int, int, int]:
        longest = int(self.usable_frames.max(initial=self.crop))
        return len(self), longest, self.features.shape[2]

    def take(self, clips: np.ndarray) -> "ClipArrays":
        """Some of the chosen clips, by their index; the features stay where they are."""
        return dataclasses.replace(self, rows=self.rows[clips], frames=self.frames[clips])

    def load(self) -> np.ndarray:
        """All chosen clips, shape ``[clips, longest, mels]``, zeros after a clip's end."""
        out = np.zeros(self._shape(), self.features.dtype)
        for index, (row, frames) in enumerate(zip(self.rows, self.frames, strict=True)):
            clip = tile_to(self.features[row, :frames], self.crop)
            out[index, : len(clip)] = clip
        return out

    def crops(self, clips: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Gathers crops, shape ``[batch, crop, mels]``."""
        if not np.any(self.frames[clips] < self.crop):
            within = np.asarray(starts)[:, None] + np.arange(self.crop)
            return self.features[self.rows[clips][:, None], within]
        out = np.empty((len(clips), self.crop, self.features.shape[2]), self.features.dtype)
        for index, (clip, start) in enumerate(zip(clips, starts, strict=True)):
            frames = self.features[self.rows[clip], : self.frames[clip]]
            out[index] = tile_to(frames, self.crop)[start : start + self.crop]
        return out

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of every mel band over all frames, float64 ``[mels]``."""
        count, total, squares = 0, 0.0, 0.0
        for row, frames in zip(self.rows, self.frames, strict=True):
            clip = np.asarray(self.features[row, :frames], np.float64)
            count += len(clip)
            total = total + clip.sum(axis=0)
            squares = squares + np.square(clip).sum(axis=0)
        mean = np.asarray(total) / max(count, 1)
        return mean, np.sqrt(np.maximum(np.asarray(squares) / max(count, 1) - mean**2, 0))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A feature store as training and scoring see it.

    Attributes:
      train: Features of the training clips.
      test: Features of the test clips.
      train_clips: The training clips.
      test_clips: The test clips.
      labels: int32, shape ``[training clips]``, the attribute class of each, an index of
        ``classes``.
      classes: The attribute classes, sorted.
      mean: float64, shape ``[mels]``, over all training frames.
      std: float64, shape ``[mels]``, their standard deviation.
      audio: Machine type -> what its training recordings have in common, as
        :func:`asdproto.audio_info.audio_statistics` says it; empty where nothing is known.
    """

    train: ClipArrays
    test: ClipArrays
    train_clips: list[Clip]
    test_clips: list[Clip]
    labels: np.ndarray
    classes: list
    mean: np.ndarray
    std: np.ndarray
    audio: Mapping[str, Mapping[str, Sequence[float]]] = dataclasses.field(default_factory=dict)

    def moments(self, standardization: Standardization = "band") -> tuple[np.ndarray, np.ndarray]:
        """What standardizes features: ``(features - mean) * scale``.

        Args:
          standardization: ``"global"``: one mean and one standard deviation for all mel bands, so
            that differences of level between bands stay and empty bands stay quiet. ``"band"``:
            those of every band.

        Returns:
          Mean and scale, float32, shape ``[mels]``; the scale of what never moves is 1.
        """
        mean, std = self.mean, self.std
        if standardization == "global":
            # Every band has as many frames: the variance is that within bands and between them.
            std = np.broadcast_to(np.sqrt(np.mean(std**2) + np.var(mean)), std.shape)
            mean = np.broadcast_to(np.mean(mean), mean.shape)
        moves = std > 1e-6
        scale = np.where(moves, 1 / np.where(moves, std, 1), 1)
        return mean.astype(np.float32), scale.astype(np.float32)

    def take(self, rows: np.ndarray) -> "Dataset":
        """Some of the training clips, by their index; classes and moments stay those of all."""
        clips = [self.train_clips[row] for row in rows]
        train, labels = self.train.take(rows), self.labels[rows]
        return dataclasses.replace(self, train=train, train_clips=clips, labels=labels)


Classes = Literal["attributes", "conditions", "sections"]
# What tells two classes apart. Each key has four parts, as :func:`class_key` does.
CLASS_KEYS: dict[str, Callable[[Clip], Hashable]] = {
    # Machine type, section, domain and attributes, as the paper.
    "attributes": class_key,
    # The same without domain: source and target recordings under equal attributes are one class.
    "conditions": lambda clip: (clip.machine_type, clip.section, "", clip.attributes),
    # Machine type, section and domain.
    "sections": lambda clip: (clip.machine_type, clip.section, clip.domain, ""),
}


def prepare(
    store: FeatureStore,
    crop: int,
    machines: Sequence[str] | None = None,
    *,
    key: Callable[[Clip], Hashable] = class_key,
) -> Dataset:
    """Splits a store into training and test clips and assigns attribute classes.

    Args:
      store: The features.
      crop: Frames of a crop.
      machines: Machine types to keep; all when ``None``.
      key: Maps a clip to its attribute class; keys must sort among themselves.

    Returns:
      The data set; its training clips may be of one class only.

    Raises:
      DataError: There are no training clips, one is an anomaly, or a machine type is unknown.
    """
    check_machines(store.root, store.clips, machines)
    kept = [
        index
        for index, clip in enumerate(store.clips)
        if machines is None or clip.machine_type in machines
    ]
    train = [index for index in kept if store.clips[index].split == "train"]
    test = [index for index in kept if store.clips[index].split == "test"]
    if not train:
        found, expected = f"no training clips among {len(kept)}", "normal clips with split 'train'"
        remedy = "Check the collection with: python -m asdproto validate"
        raise DataError(store.root, found, expected, remedy)
    train_clips = [store.clips[index] for index in train]
    for error in errors_in(label_problems(train_clips)):
        raise error
    labels, classes = assign_classes(train_clips, key)
    every = ClipArrays(store.features, np.arange(len(store)), store.frames, crop)
    features = every.take(np.asarray(train, np.int64))
    mean, std = features.statistics()
    return Dataset(
        train=features,
        test=every.take(np.asarray(test, np.int64)),
        train_clips=train_clips,
        test_clips=[store.clips[index] for index in test],
        labels=labels,
        classes=classes,
        mean=mean,
        std=std,
        audio=store.audio_statistics(),
    )


def section_keys(clips: Sequence[Clip]) -> list[tuple[str, str]]:
    """(machine type, section) of each clip: what is scored together."""
    return [(clip.machine_type, clip.section) for clip in clips]
