"""What the machines, their faults and their surroundings sound like.

A machine turns: a shaft, gears or blades on it, blows that come round with it, and hiss; some work
in strokes. Each section is another individual of its machine type, with a body of its own. Every
operating condition (the attributes of a clip) changes the speed and how strong the partials are.
Numbers are chosen by ear; they describe no particular product.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from experiments.synthetic import sound as so
from experiments.synthetic.facts import values_of

FAULTS = ("sidebands", "wear", "looseness", "defect", "slip")
# Attributes of the surroundings, not of the machine.
AROUND = ("m-n", "f-n", "n-lv", "noise", "mic")


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine type.

    Attributes:
      hz: Turns a second at the middle of its conditions.
      octaves: Between its slowest and its fastest condition.
      meshes: Teeth or blades: orders of the shaft with the strongest partials.
      hiss: Level of flow and friction relative to the tones, dB.
      knock: Level of the blows of each turn relative to the tones, dB.
      stroke: Seconds of a stroke and the rest after it; 0 for a machine that runs on.
    """

    hz: float
    octaves: float
    meshes: tuple[int, ...]
    hiss: float
    knock: float
    stroke: float = 0.0


MACHINES = {
    "ToyCar": Machine(14.0, 0.9, (37, 60), -4.0, -9.0, 2.4),
    "ToyTrain": Machine(11.0, 0.9, (43, 72), -3.0, -6.0, 2.9),
    "bearing": Machine(22.0, 1.2, (23, 61), -3.0, -5.0),
    "fan": Machine(27.0, 0.7, (7, 24), -1.0, -14.0),
    "gearbox": Machine(25.0, 1.0, (29, 47), -5.0, -9.0),
    "slider": Machine(30.0, 1.1, (24, 55), -3.0, -6.0, 1.3),
    "valve": Machine(18.0, 0.7, (31, 52), -2.0, 0.0, 0.7),
}

# How loud things are, in dB. The machine stands at 0.
NOISE = 0.0  # the surroundings, in the mean over clips
NOISE_SPREAD = 4.0  # standard deviation of their level from clip to clip
NOISE_COLOR = 6.0  # and of their spectrum
FAULT = 3.0  # the worst fault of every kind; others are up to 6 dB less
LEVEL = -32.0  # of a recording below full scale


def condition(machine: str, attributes: Mapping[str, str], orders: int) -> tuple[float, np.ndarray]:
    """Factors that a condition puts on a machine's speed and on its partials, ``[orders]``."""
    speed, partials = 0.0, np.ones(orders)
    for key, value in attributes.items():
        if key in AROUND:
            continue
        made = so.stream("condition", machine, key, value)
        values = values_of(machine, key)
        place = values.index(value) / max(len(values) - 1, 1) - 0.5
        speed += MACHINES[machine].octaves * place
        partials *= made.lognormal(0, 0.5, orders)
    return 2.0**speed, partials


def machine_sound(
    machine: str,
    section: str,
    attributes: Mapping[str, str],
    samples: int,
    rng: np.random.Generator,
    *,
    fault: str = "",
    amount: float = 0.0,
) -> np.ndarray:
    """A machine without its surroundings, of level 0 dB.

    Args:
      machine: Machine type.
      section: Which individual.
      attributes: Operating condition.
      samples: Length of the clip.
      rng: What differs from clip to clip.
      fault: One of :data:`FAULTS`, or ``""``.
      amount: Amplitude of the fault; 1 for the worst.

    Returns:
      float32, shape ``[samples]``.
    """
    kind, orders = MACHINES[machine], 500
    amounts = {name: amount if name == fault else 0.0 for name in FAULTS}
    made = so.stream("product", machine)
    speed, factors = condition(machine, attributes, orders)
    hz = kind.hz * speed * (1 + 0.003 * rng.standard_normal() - 0.05 * amounts["slip"])
    turns = so.rotation(rng, samples, hz)

    order = np.arange(1, orders + 1)
    partials = 0.04 * made.lognormal(0, 0.7, orders) / (1 + order * kind.hz / 1500)
    for mesh in kind.meshes:
        heights = made.lognormal(0, 0.5, orders // mesh) / np.arange(1, orders // mesh + 1) ** 0.7
        # What is worn touches twice: the even partials of a mesh grow, the odd ones fall.
        even = np.arange(1, orders // mesh + 1) % 2 == 0
        heights *= np.where(even, so.gain(8 * amounts["wear"]), so.gain(-6 * amounts["wear"]))
        places = mesh * np.arange(1, orders // mesh + 1) - 1
        partials[places] += heights
        for side in (-3, -2, 2, 3):  # what is out of round modulates the mesh
            near = places + side
            partials[near[near < orders]] += 0.7 * amounts["sidebands"] * heights[near < orders]
    partials = partials * factors * rng.lognormal(0, 0.15, orders)
    sound = so.at_level(so.tones(partials, made, turns, hz), rng.normal(0, 0.5))

    # A loose body rings lower.
    shift = 1 - 0.1 * amounts["looseness"]
    body = so.curve(so.stream("body", machine, section), samples, 5.0, 0.15, shift)
    hiss = so.slope(samples, 4.0) * so.curve(made, samples, 4.0, 0.4)
    sound += so.gain(kind.hiss + rng.normal(0, 0.5)) * so.noise(rng, hiss, samples)
    sound += _blows(kind, made, turns, rng, amounts["defect"])
    if kind.stroke:
        sound *= _strokes(kind.stroke, samples, rng)
    return so.at_level(so.filtered(sound, body), 0)


def _blows(
    kind: Machine,
    made: np.random.Generator,
    turns: np.ndarray,
    rng: np.random.Generator,
    defect: float,
) -> np.ndarray:
    """Blows once a turn, and those of a defect, 3.58 times a turn, on another part."""
    seconds = np.arange(len(turns)) / so.RATE
    total = np.zeros(len(turns), np.float32)
    for rate, level, low, high in ((1.0, kind.knock, 300, 3500), (3.58, 0.0, 1500, 7000)):
        part = so.struck(made, low, high, 0.05)
        count = int((turns[-1] - turns[0]) * rate)
        places = turns[0] + (np.arange(count) + rng.uniform() + rng.normal(0, 0.01, count)) / rate
        times = np.interp(places, turns, seconds)
        beats = so.blows(len(turns), times, rng.lognormal(0, 0.2, count), part)
        loud = so.gain(level + rng.normal(0, 0.5)) * (1.0 if rate == 1.0 else defect)
        total += np.float32(loud) * so.at_level(beats, 0)
    return total


def _strokes(period: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """An amplitude that rises and falls with every stroke, float32 ``[samples]``."""
    clock = np.arange(samples) / so.RATE / period + rng.uniform()
    return np.clip(6 * (0.45 - np.abs(clock % 1 - 0.5)), 0.05, 1).astype(np.float32)


def surroundings(
    attributes: Mapping[str, str], samples: int, rng: np.random.Generator
) -> np.ndarray:
    """What else is heard in a clip: noise of a color of its own, a machine nearby, blows."""
    color = so.slope(samples, rng.normal(4.5, 1.5)) * so.curve(rng, samples, NOISE_COLOR, 0.7)
    for key in AROUND:
        if key in attributes:
            color = color * so.curve(so.stream(key, attributes[key]), samples, 2.0, 0.5)
    sound = so.noise(rng, color, samples)
    hz = 60 * 2 ** rng.uniform(0, 2.5)
    hum = so.tones(
        rng.lognormal(0, 0.8, 40) / np.arange(1, 41) ** 0.7, rng, so.rotation(rng, samples, hz), hz
    )
    sound += so.gain(rng.normal(-6, 4)) * so.at_level(hum, 0)
    times = rng.uniform(0, samples / so.RATE, rng.poisson(0.5 * samples / so.RATE))
    if len(times):
        heights = rng.lognormal(0, 0.6, len(times))
        sound += 6 * so.blows(samples, times, heights, so.struck(rng, 200, 4000, 0.3))
    return sound * so.gain(NOISE + rng.normal(0, NOISE_SPREAD))


def recording(
    machine: str,
    section: str,
    domain: str,
    attributes: Mapping[str, str],
    samples: int,
    name: tuple[object, ...],
    *,
    fault: str = "",
) -> np.ndarray:
    """One clip.

    Args:
      machine: Machine type.
      section: Which individual.
      domain: ``"source"`` or ``"target"``, which stand in other places.
      attributes: Operating condition and surroundings.
      samples: Its length.
      name: What its random numbers depend on; the same clip can be made with and without a fault.
      fault: One of :data:`FAULTS`, or ``""``.

    Returns:
      float32, shape ``[samples]``, full scale 1.
    """
    amount = so.gain(FAULT - so.stream("amount", *name).uniform(0, 6))
    rng = so.stream("machine", *name)
    sound = machine_sound(
        machine, section, attributes, samples, rng, fault=fault, amount=float(amount)
    )
    place = so.curve(so.stream("place", machine, section, domain), samples, 1.5, 0.6)
    moved = so.curve(rng, samples, 1.0, 0.6)  # things near the machine are moved about
    sound = so.filtered(sound, place * moved)
    sound = sound + surroundings(attributes, samples, so.stream("surroundings", *name))
    return sound * so.gain(LEVEL + rng.normal(0, 1))
