"""What a system is, and what its training leaves: the words that all systems share."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from asdproto.data.dataset import CLASS_KEYS, ClipArrays, Dataset, prepare, section_keys
from asdproto.data.dcase import Clip
from asdproto.data.store import FeatureStore
from asdproto.errors import DataError
from asdproto.features import FeatureSettings
from asdproto.scoring.backends import BackendConfig, Scorer, fit_scorer, held_out_scores
from asdproto.training.devices import RunOptions

Section = tuple[str, str]  # machine type, section


class Comparison(NamedTuple):
    """What a model finds in clips.

    Attributes:
      scores: float64, shape ``[clips]``; higher is more anomalous.
      nearest: int64, shape ``[clips]``, nearest attribute class; ``None`` for systems without.
      embeddings: Floating, shape ``[clips, dim]``; ``None`` where nobody needs them.
    """

    scores: np.ndarray
    nearest: np.ndarray | None = None
    embeddings: np.ndarray | None = None


class Model(Protocol):
    """Something fitted that scores clips: an embedding and a back-end, or a reconstruction."""

    @property
    def system(self) -> Any:
        """The :class:`System` that it was trained as."""

    def compare(self, clips: ClipArrays, sections: Sequence[Section]) -> Comparison:
        """Compares clips with the normal ones of their sections.

        A clip's score must not depend, to the last bit, on the clips that it is scored with.

        Args:
          clips: Features of ``system.features``, of at least ``system.crop`` usable frames.
          sections: Machine type and section of each clip, all met in training.
        """

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything that ``system.restore`` needs, by name; numbers and strings only."""


class EqualEmbeddingsWarning(UserWarning):
    """An encoder tells no two clips apart."""


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A model of a detector, and what it found in its own training clips.

    Attributes:
      model: The model.
      seed: That it was trained with.
      classes: Attribute classes that its ``nearest`` counts.
      held_out: float64, shape ``[training clips]``: their scores, each as if the clip were new as
        far as the system can tell. Thresholds and the combination of members rest on them.
      part: Where several score as one: members of one part, such as seeds, are averaged, and the
        part that is furthest out decides.
      embeddings: Floating, shape ``[training clips, dim]``, where there are any; not saved with it.
    """

    model: Model
    seed: int
    classes: Sequence[tuple]
    held_out: np.ndarray
    part: int = 0
    embeddings: np.ndarray | None = None

    def check(self, name: str) -> None:
        """Warns where what differs between embeddings is rounding: a millionth of their length."""
        x = np.zeros(0) if self.embeddings is None else np.asarray(self.embeddings, np.float64)
        if x.size and np.square(x - x.mean(axis=0)).mean() <= 1e-12 * np.square(x).mean():
            warnings.warn(
                f"{name}, seed {self.seed}: all {len(x)} training clips have one embedding, so the "
                "scores mean nothing. Look for features that are constant, or lower the learning "
                "rate",
                EqualEmbeddingsWarning,
                stacklevel=4,
            )


class System(Protocol):
    """Features, model, training and score: a frozen dataclass of numbers.

    Attributes:
      kind: Its name in :data:`asdproto.systems.KINDS` and in ``config.json``.
      features: Its feature settings.
      reads_waveforms: Whether it can read features with waveforms.
      classes: What its labels tell apart, a key of :data:`asdproto.data.dataset.CLASS_KEYS`.
      names: Of the detectors that it makes, the result last.
      crop: The shortest clip that it takes, in frames; shorter ones are repeated.
      quantile: Of held-out scores, for decisions.
      is_fused: Whether ``train`` fuses its result with spectra, as it does with what it learns.
    """

    reads_waveforms: ClassVar[bool]
    is_fused: ClassVar[bool]

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def features(self) -> FeatureSettings: ...  # noqa: D102

    @property
    def classes(self) -> str: ...  # noqa: D102

    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def crop(self) -> int: ...  # noqa: D102

    @property
    def quantile(self) -> float: ...  # noqa: D102

    def plan(self, clips: int) -> str:
        """What training on so many clips does, in a few words."""

    def check_clips(self, clips: Sequence[Clip]) -> None:
        """Refuses training clips that it cannot learn from, before features are extracted.

        Raises:
          DataError: Says what is missing.
        """

    def train(
        self, data: Dataset, options: RunOptions, seeds: Sequence[int]
    ) -> dict[str, list[Member]]:
        """Trains with every seed, on clips that :meth:`check_clips` lets pass.

        Returns:
          Members by detector; the same in all processes, or none in all but the first where the
          others are not needed to score.
        """

    def refit(self, member: Member, data: Dataset) -> Member:
        """This system's back-end on what another one of its kind was trained to.

        Raises:
          ConfigError: It has no back-end that could be fitted without training.
        """

    def restore(self, arrays: Mapping[str, np.ndarray]) -> Model:
        """The model that :meth:`Model.to_arrays` described."""


def prepare_for(
    system: System, store: FeatureStore, machines: Sequence[str] | None = None
) -> Dataset:
    """A store as a system sees it: clips as long as its crop, labeled by the classes it learns.

    Raises:
      DataError: The system cannot read the features, or cannot learn from the training clips.
    """
    if system.features.waveform and not system.reads_waveforms:
        raise DataError(
            store.root,
            "features with waveforms",
            f"log-mel features, which is all that {system.kind} reads",
            "Leave features.waveform=True out.",
        )
    data = prepare(store, system.crop, machines, key=CLASS_KEYS[system.classes])
    system.check_clips(data.train_clips)
    return data


def backend_labels(data: Dataset, config: BackendConfig) -> np.ndarray:
    """What :func:`asdproto.scoring.backends.fit_scorer` takes as labels of the training clips."""
    if config.kind == "mixture":
        return np.array([clip.domain == "target" for clip in data.train_clips], np.int64)
    return data.labels


def fit_backend(
    vectors: np.ndarray, data: Dataset, config: BackendConfig, **options: Any
) -> tuple[Scorer, np.ndarray]:
    """A back-end fitted on vectors ``[training clips, dim]``, and its held-out scores of the clips.

    ``options`` are those of :func:`asdproto.scoring.backends.fit_scorer`.
    """
    fitted_on = vectors, backend_labels(data, config), section_keys(data.train_clips), config
    return fit_scorer(*fitted_on, **options), held_out_scores(*fitted_on, **options)
