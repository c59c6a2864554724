"""Where the machines stand: rooms, factory noise, and the recorder."""

import dataclasses
import functools

import numpy as np

from experiments.synthetic import physics as ph
from experiments.synthetic.context import ClipContext


@dataclasses.dataclass(frozen=True)
class Noise:
    """One kind of background noise.

    Attributes:
      points: Spectrum of its steady part, ``(Hz, dB)``.
      tones: Harmonic series ``(Hz, partials, dB of the series relative to the steady part)``.
      pulse: Rhythm of the steady part, ``(Hz, depth from 0 to 1)``.
      swing: Standard deviation of its slow level, in dB.
      blows: Struck metal: events a second, and their level relative to the steady part, in dB.
      puffs: Bursts of air: likewise.
    """

    points: tuple[tuple[float, float], ...]
    tones: tuple[tuple[float, int, float], ...] = ()
    pulse: tuple[float, float] = (0.0, 0.0)
    swing: float = 0.6
    blows: tuple[float, float] = (0.0, 0.0)
    puffs: tuple[float, float] = (0.0, 0.0)


_PINK = ((40, 0.0), (250, -3.0), (1000, -12.0), (4000, -24.0), (8000, -36.0))
_FLAT = ((40, -6.0), (250, 0.0), (1000, -6.0), (4000, -15.0), (8000, -25.0))
_DULL = ((40, 2.0), (250, 0.0), (1000, -17.0), (4000, -33.0), (8000, -44.0))

KINDS = {
    "conveyor": Noise(_FLAT, ((37.0, 30, -9.0),), (5.3, 0.35), 0.8, (0.5, 8.0)),
    "press": Noise(_PINK, ((50.0, 12, -10.0),), (0.0, 0.0), 0.8, (1.1, 13.0)),
    "pneumatics": Noise(_DULL, ((49.0, 20, -8.0),), (0.0, 0.0), 1.0, (0.0, 0.0), (0.45, 2.0)),
    "compressor": Noise(_DULL, ((24.3, 60, -3.0),), (12.2, 0.5), 0.6),
    "spindles": Noise(_PINK, ((211.0, 34, -3.0), (287.0, 26, -6.0)), (0.0, 0.0), 0.6),
    "pumps": Noise(_FLAT, ((29.2, 70, -5.0), (146.0, 20, -8.0)), (4.9, 0.25), 0.6),
    "mill": Noise(_PINK, ((83.0, 60, -6.0),), (2.1, 0.4), 0.8, (0.8, 6.0)),
    "hall": Noise(_PINK, ((50.0, 20, -12.0),), (0.0, 0.0), 0.8, (0.2, 6.0), (0.1, -2.0)),
    "bay": Noise(_PINK, ((99.0, 24, -9.0),), (0.0, 0.0), 0.8, (0.3, 7.0), (0.1, -2.0)),
    "laboratory": Noise(_DULL, ((50.0, 30, -4.0),), (0.0, 0.0), 0.5),
    "workshop": Noise(_PINK, ((118.0, 24, -7.0),), (1.7, 0.2), 0.8, (0.2, 5.0)),
}
# Attribute -> kind of noise, and its level in dB relative to the setting's.
_BY_ATTRIBUTE = {
    ("m-n", "W"): ("compressor", 0.0),
    ("m-n", "X"): ("spindles", 0.0),
    ("m-n", "Y"): ("pumps", 0.0),
    ("m-n", "Z"): ("mill", 0.0),
    ("f-n", "A"): ("conveyor", 0.0),
    ("f-n", "B"): ("press", 0.0),
    ("f-n", "C"): ("pneumatics", 0.0),
    ("noise", "1"): ("laboratory", 0.0),
    ("noise", "2"): ("workshop", 0.0),
    ("n-lv", "L1"): ("hall", -5.0),
    ("n-lv", "L2"): ("hall", -1.0),
    ("n-lv", "L3"): ("hall", 2.0),
    ("n-lv", "L4"): ("hall", 5.0),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """How one machine type stands in its factory.

    Attributes:
      level: Level of the machine in the recording, dB below full scale.
      noise: Level of the noise relative to the normal machine, source and target, in dB.
      fault: Level of its faults relative to severe ones, in dB.
      damping: Share of what is its individual's own that a severe fault takes away.
      day: How far source and target domain differ beside their attributes: standard deviation of
        the difference of their spectra, in dB.
    """

    level: float
    noise: tuple[float, float]
    fault: float
    damping: float
    day: float


SETTINGS = {
    "ToyCar": Setting(-30, (-8.0, -6.0), -6.0, 0.5, 2.4),
    "ToyTrain": Setting(-38, (-7.0, -6.0), -6.0, 0.85, 2.4),
    "bearing": Setting(-38, (-3.0, -2.0), -4.0, 0.85, 2.2),
    "fan": Setting(-38, (-3.0, -2.0), -3.5, 0.85, 2.4),
    "gearbox": Setting(-35, (-3.0, -3.0), -7.0, 0.85, 1.6),
    "slider": Setting(-40, (-6.0, -5.0), -2.0, 0.85, 2.4),
    "valve": Setting(-46, (-3.0, -3.0), -7.0, 0.85, 1.3),
}


# Standard deviations in dB of the difference between spectra of individuals of one product, which
# the sections are, and of clips of one condition. With SETTINGS they fix the difficulty of the set;
# see experiments.synthetic.
INDIVIDUAL = 2.0
CLIP = 1.2
_OCTAVES = 0.6  # between independent values


def record(context: ClipContext, machine: np.ndarray) -> np.ndarray:
    """Puts a machine into its room and its noise and records it.

    Args:
      context: The clip.
      machine: Spectrum of the machine's dry sound.

    Returns:
      float32, shape ``[samples]``, full scale 1.
    """
    grid, setting, rng = context.grid, SETTINGS[context.machine], context.rng("place")
    # Things near the machine are moved about between recordings.
    moved = ph.wavy_curve(rng, grid, CLIP, _OCTAVES)
    spectrum = machine * body(context) * stand(context) * moved
    loudness = setting.level + rng.normal(0, 0.5)
    noise = background(context) * np.float32(ph.gain(setting.noise[context.domain == "target"]))
    spectrum += ph.to_spectrum(noise)
    spectrum *= _recorder(grid.samples) * np.float32(ph.gain(loudness))
    return ph.to_sound(spectrum, grid)


def body(context: ClipContext) -> np.ndarray:
    """Response of the individual machine; a faulty one is damped and loses what is its own.

    What is loose, worn or dirty no longer rings as it did, whatever else a fault is heard by.
    """
    name = f"{context.machine}/{context.section} body"
    own = ph.fixed_wavy_curve(context.grid.samples, name, INDIVIDUAL, _OCTAVES)
    if not context.fault:
        return own
    setting = SETTINGS[context.machine]
    lost = min(1.0, setting.damping * ph.gain(context.severity - setting.fault))
    return own ** np.float32(1 - lost)


def stand(context: ClipContext) -> np.ndarray:
    """Response from the machine to the microphone on the days of this section and domain."""
    samples, machine = context.grid.samples, context.machine
    rng = ph.stream("stand", machine)
    decay, reverberant = float(rng.uniform(0.25, 0.7)), float(rng.uniform(-9, -4))
    room = ph.room_response(samples, machine, decay, reverberant)
    day = f"{machine}/{context.section}/{context.domain} stand"
    return room * ph.fixed_wavy_curve(samples, day, SETTINGS[machine].day, _OCTAVES)


def background(context: ClipContext) -> np.ndarray:
    """Noise of a clip, float32 samples; about 0 dB between events."""
    known = (_BY_ATTRIBUTE[pair] for pair in context.attributes.items() if pair in _BY_ATTRIBUTE)
    name, extra = next(known, ("bay", 0.0))
    kind, grid, rng = KINDS[name], context.grid, context.rng("noise")
    curve = ph.noise_curve(grid.samples, kind.points) * ph.wavy_curve(rng, grid, 0.7, 1.0)
    curve = curve * ph.fixed_wavy_curve(grid.samples, f"noise {name}", 2.0, 0.5)
    sound = ph.noise(rng, grid, curve)
    for number, (hz, count, level) in enumerate(kind.tones):
        made = ph.stream("noise", name, number)
        partials = made.lognormal(0, 0.8, count) / (1 + np.arange(count) * hz / 1500)
        partials *= rng.lognormal(0, 0.2, count)
        partials *= ph.gain(level) / np.sqrt(np.sum(partials**2))
        speed = hz * (1 + 0.004 * rng.standard_normal())
        turns = ph.rotation(rng, grid, speed, 0.001).sampled(grid)
        sound += ph.tones(partials, made, turns, speed)
    swing = ph.slow_wave(rng, grid, kind.swing, 0.7)
    if kind.pulse[1]:
        speed = kind.pulse[0] * (1 + 0.02 * rng.standard_normal())
        beat = ph.rotation(rng, grid, speed, 0.01).sampled(grid)
        pulse = ph.stream("noise", name, "pulse")
        swing = swing * ph.swell([0.7, 0.3], pulse, beat, kind.pulse[1])
    sound *= swing
    rate, level = kind.blows
    struck = ph.ring(f"noise {name}", 12, 200, 4500, 0.35)
    times = rng.uniform(0, grid.seconds, rng.poisson(rate * grid.seconds))
    ph.add_bursts(sound, times, ph.gain(level) * rng.lognormal(0, 0.6, len(times)), struck)
    rate, level = kind.puffs
    for time in rng.uniform(0, grid.seconds, rng.poisson(rate * grid.seconds)):
        air = ph.puff(rng, float(rng.uniform(0.3, 1.5)), 0.02, 0.6)
        ph.add_bursts(sound, time, ph.gain(level) * rng.lognormal(0, 0.4), air)
    return sound * np.float32(ph.gain(extra + rng.normal(0, 0.8)))


@functools.lru_cache(maxsize=2)
def _recorder(samples: int) -> np.ndarray:
    """Amplitude response of microphone and converter, and no sound beyond it."""
    hz = np.maximum(ph.make_grid(samples).hz, 1.0)
    low = 1 / np.sqrt(1 + (45.0 / hz) ** 4)
    high = 1 / np.sqrt(1 + (hz / 7750.0) ** 48)
    return (low * high).astype(np.float32)
