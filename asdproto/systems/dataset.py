"""A feature store as the systems see it: training and test clips, attribute classes, statistics."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from asdproto.data.dcase import Clip, DataError, assign_classes
from asdproto.data.store import FeatureStore
from asdproto.training.loop import TrainingData
from asdproto.training.source import ClipArrays
from asdproto.training.state import make_table


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A feature store as training and scoring see it.

    Attributes:
      train: Features of the training clips.
      test: Features of the test clips.
      train_clips: The training clips.
      test_clips: The test clips.
      labels: int32, attribute class of each training clip.
      classes: The attribute classes.
      mean: float64, shape ``[mels]``, over training frames.
      deviation: float64, shape ``[mels]``.
    """

    train: ClipArrays
    test: ClipArrays
    train_clips: list[Clip]
    test_clips: list[Clip]
    labels: np.ndarray
    classes: list[tuple]
    mean: np.ndarray
    deviation: np.ndarray

    @property
    def scale(self) -> np.ndarray:
        """float32, shape ``[mels]``, what standardised features are multiplied by."""
        table, _ = make_table(
            self.labels, self.train.usable_frames, self.mean, self.deviation, len(self.classes)
        )
        return np.asarray(table.scale)

    def training_data(self, resident: bool | None = None) -> TrainingData:
        """What the training loop takes."""
        return TrainingData(
            self.train, self.labels, len(self.classes), self.mean, self.deviation, resident
        )


def prepare(store: FeatureStore, crop: int, machines: Sequence[str] | None = None) -> Dataset:
    """Splits a store into training and test clips and assigns attribute classes.

    Args:
      store: The features.
      crop: Frames of a crop.
      machines: Machine types to keep; all when ``None``.

    Returns:
      The data set.

    Raises:
      DataError: There are no training clips, one is an anomaly, or they are of one class only.
    """
    kept = [
        index
        for index, clip in enumerate(store.clips)
        if machines is None or clip.machine_type in machines
    ]
    train = [index for index in kept if store.clips[index].split == "train"]
    test = [index for index in kept if store.clips[index].split == "test"]
    if not train:
        raise DataError(
            store.root,
            f"no training clips among {len(kept)}",
            "normal clips with split 'train'",
            "Check the collection with: python -m asdproto validate",
        )
    for index in train:
        if store.clips[index].state == "anomaly":
            raise DataError(
                store.clips[index].path,
                "an anomaly in the training split",
                "normal clips only",
                "Move it to the test split, or correct its state.",
            )
    train_clips = [store.clips[index] for index in train]
    labels, classes = assign_classes(train_clips)
    if len(classes) < 2:
        raise DataError(
            store.root,
            f"{len(classes)} attribute class among {len(train)} training clips",
            "at least 2, since prototypes are learned by telling classes apart",
            "Add clips of other sections, operating conditions or machine types.",
        )

    def arrays(rows: list[int]) -> ClipArrays:
        chosen = np.asarray(rows, np.int64)
        return ClipArrays(store.features, chosen, store.frames[chosen], crop)

    data = arrays(train)
    mean, deviation = data.statistics()
    return Dataset(
        train=data,
        test=arrays(test),
        train_clips=train_clips,
        test_clips=[store.clips[index] for index in test],
        labels=labels,
        classes=classes,
        mean=mean,
        deviation=deviation,
    )


def section_keys(clips: Sequence[Clip]) -> list[tuple[str, str]]:
    """(machine type, section) of each clip: what is scored together."""
    return [(clip.machine_type, clip.section) for clip in clips]
