"""What every system's training begins and ends with: how a run goes, and what scores clips."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console

from asdproto.data.dataset import CLASS_KEYS, ClipArrays, Dataset, prepare
from asdproto.data.store import FeatureStore
from asdproto.errors import DataError
from asdproto.training.devices import Devices
from asdproto.training.epoch import Loop

Section = tuple[str, str]  # machine type, section


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run goes, apart from what it computes.

    Attributes:
      workdir: Folder for checkpoints, metrics and scores; ``None`` keeps nothing.
      devices: Where to train.
      console: Where progress goes; ``None`` for silence.
      loop: Shape of the training loop; what suits the backend when ``None``.
      resident: Whether features live on the devices; by their memory when ``None``.
      save_seconds: Time between checkpoints.
    """

    workdir: Path | None
    devices: Devices
    console: Console | None = None
    loop: Loop | None = None
    resident: bool | None = None
    save_seconds: float = 60.0


def prepare_for(system: Any, store: FeatureStore, machines: Sequence[str] | None = None) -> Dataset:
    """A store as a system sees it: clips as long as its crop, labeled by the classes it learns."""
    if system.features.waveform and not getattr(system, "reads_waveforms", False):
        raise DataError(
            store.root,
            "features with waveforms",
            f"log-mel features, which is all that {system.kind} reads",
            "Leave features.waveform=True out.",
        )
    key = CLASS_KEYS[getattr(system, "classes", "attributes")]
    return prepare(store, system.crop, machines, key=key)


@contextlib.contextmanager
def open_checkpoints(workdir: Path | None, stage: str) -> Iterator[Any]:
    """Checkpoints of a stage in a work folder, closed in the end; ``None`` without a folder."""
    if workdir is None:
        yield None
        return
    # A library of its own, which scoring never needs.
    from asdproto.training.checkpoint import Checkpoints

    with contextlib.closing(Checkpoints(workdir / "checkpoints" / stage)) as checkpoints:
        yield checkpoints


class Comparison(NamedTuple):
    """What a member finds in clips.

    Attributes:
      scores: float64, shape ``[clips]``; higher is more anomalous.
      nearest: int64, shape ``[clips]``, nearest attribute class; ``None`` for systems without.
      embeddings: float32, shape ``[clips, dim]``; ``None`` for systems without.
    """

    scores: np.ndarray
    nearest: np.ndarray | None = None
    embeddings: np.ndarray | None = None


class Member(Protocol):
    """A trained model, ready to score clips; a detector has one for each seed or fused system."""

    @property
    def system(self) -> Any:
        """The system that it was trained as."""

    def compare(self, clips: ClipArrays, sections: Sequence[Section]) -> Comparison:
        """Compares clips with the normal ones of their sections.

        A clip's score must not depend, to the last bit, on the clips that it is scored with.

        Args:
          clips: Features of ``system.features``.
          sections: Machine type and section of each clip, all met in training.
        """
        ...

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything that ``system.restore`` needs, by name; numbers and strings only."""
        ...


class Fitted(NamedTuple):
    """A member and what it found in its own training clips.

    Attributes:
      member: The member.
      held_out: float64, shape ``[training clips]``: their scores, each as if the clip were new as
        far as the system can tell. Thresholds and the combination of members rest on them.
      embeddings: float32, shape ``[training clips, dim]``; ``None`` for systems without.
    """

    member: Member
    held_out: np.ndarray
    embeddings: np.ndarray | None = None
