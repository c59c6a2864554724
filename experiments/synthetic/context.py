"""What a machine model is given: a clip's attributes, its fault, its random streams."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from experiments.synthetic.physics import Grid, gain, stream


@dataclasses.dataclass(frozen=True, eq=False)
class ClipContext:
    """One clip to make.

    Attributes:
      machine: Machine type.
      section: Section; every section holds another individual of the machine type: one product,
        whose individuals differ in the response of their bodies (:mod:`.rooms`).
      domain: ``"source"`` or ``"target"``.
      attributes: Attribute key -> value, as in the file name.
      grid: Times and frequencies.
      key: What the clip's random numbers depend on; see :meth:`rng`.
      fault: Name of its fault; ``""`` for a normal clip.
      severity: Level of the fault in dB, relative to the machine type's full fault.
    """

    machine: str
    section: str
    domain: str
    attributes: Mapping[str, str]
    grid: Grid
    key: tuple[object, ...]
    fault: str = ""
    severity: float = 0.0

    def rng(self, name: str) -> np.random.Generator:
        """Random generator of a named part of this clip.

        A fault draws from a stream of its own, so the same clip can be made with and without it.
        """
        return stream(*self.key, name)

    def unit(self, name: str = "") -> np.random.Generator:
        """Random generator of the product: the same in all clips of the machine type."""
        return stream("unit", self.machine, name)

    def body(self, name: str) -> str:
        """Name of a part of the product, for fixed responses."""
        return f"{self.machine}/{name}"

    def amount(self, fault: str) -> float:
        """Amplitude of a fault: 0 where this clip does not have it, about 1 for a severe one."""
        return gain(self.severity) if self.fault == fault else 0.0

    def value(self, key: str, default: float) -> float:
        """Numeric attribute, its unit left out; ``default`` where the section does not vary it."""
        return float(self.attributes.get(key, default))
