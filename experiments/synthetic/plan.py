"""Which clips a synthetic set holds, and the sound of each of them."""

import dataclasses

import numpy as np

from asdproto.data.attributes import attribute_pairs
from asdproto.data.dcase import Clip
from experiments.synthetic import facts, moving, rotating
from experiments.synthetic import physics as ph
from experiments.synthetic.context import ClipContext
from experiments.synthetic.rooms import SETTINGS, record

_MODELS = {
    "ToyCar": (moving.toy_car, moving.TOY_CAR_FAULTS),
    "ToyTrain": (moving.toy_train, moving.TOY_TRAIN_FAULTS),
    "bearing": (rotating.bearing, rotating.BEARING_FAULTS),
    "fan": (rotating.fan, rotating.FAN_FAULTS),
    "gearbox": (rotating.gearbox, rotating.GEARBOX_FAULTS),
    "slider": (moving.slider, moving.SLIDER_FAULTS),
    "valve": (moving.valve, moving.VALVE_FAULTS),
}
FAULTS = {machine: faults for machine, (_, faults) in _MODELS.items()}
# Range of severities, in dB below the most severe one.
_RANGE = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A clip to be made.

    Attributes:
      clip: What its name says; ``path`` is relative to the folder of the machine types.
      index: Its running number within section, domain, split and state.
      seed: Seed of the set.
      fault: Name of its fault; ``""`` for a normal clip.
      severity: Level of the fault in dB relative to the machine type's full fault.
    """

    clip: Clip
    index: int
    seed: int
    fault: str
    severity: float

    @property
    def key(self) -> tuple[object, ...]:
        """What its random numbers depend on, and nothing else."""
        clip = self.clip
        place = clip.machine_type, clip.section, clip.domain, clip.split, clip.state
        return ("clip", self.seed, *place, self.index)


def plan_group(
    machine: str,
    section: str,
    domain: str,
    split: str,
    state: str,
    count: int,
    seed: int,
    most_severe: float = 0.0,
) -> list[Order]:
    """Orders of one section's clips of a domain, split and state.

    Attributes go round, so classes are even; clip ``i`` is the same whatever ``count`` is. Faults
    are of ``most_severe`` dB and up to 10 dB less.
    """
    strings = facts.attribute_strings(machine, section, domain)
    # A handful of clips should meet the far ends of the attributes too.
    turn = ph.stream("attributes", machine, section, domain).permutation(len(strings))
    orders = []
    for index in range(count):
        attributes = strings[turn[index % len(strings)]]
        name = f"section_{section}_{domain}_{split}_{state}_{index:04d}_{attributes}.wav"
        path = f"{machine}/{split}/{name}"
        clip = Clip(path, machine, section, domain, split, state, attributes)
        order = Order(clip, index, seed, "", 0.0)
        if state == "anomaly":
            rng = ph.stream(*order.key, "which fault")
            fault = str(rng.choice(FAULTS[machine]))
            severity = most_severe + round(float(rng.uniform(-_RANGE, 0)), 2)
            order = dataclasses.replace(order, fault=fault, severity=severity)
        orders.append(order)
    return orders


def make_context(order: Order, seconds: float) -> ClipContext:
    """What the models need to know of a clip."""
    clip = order.clip
    return ClipContext(
        clip.machine_type,
        clip.section,
        clip.domain,
        dict(attribute_pairs(clip.attributes)),
        ph.make_grid(round(seconds * ph.RATE)),
        order.key,
        order.fault,
        order.severity + SETTINGS[clip.machine_type].fault,
    )


def dry_machine(context: ClipContext) -> np.ndarray:
    """Spectrum of a clip's machine without room and noise, complex64."""
    model, _ = _MODELS[context.machine]
    return model(context)


def render(order: Order, seconds: float) -> np.ndarray:
    """Makes one clip.

    Args:
      order: Which.
      seconds: Its duration.

    Returns:
      int16, shape ``[round(seconds * 16000)]``.
    """
    context = make_context(order, seconds)
    sound = record(context, dry_machine(context))
    return np.clip(np.round(sound * 32768), -32768, 32767).astype("<i2")
