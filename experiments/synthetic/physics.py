"""Building blocks of sound: random streams, spectra, rotation, impulses, resonances, rooms.

Sounds are float32 arrays of samples at 16 kHz; spectra are complex64 arrays, the real-input FFT of
such an array. Filtering is a product of spectra over the whole clip, so what rings on at the end of
a clip comes round at its start: a recording is a cut out of a machine that runs on.
"""

import dataclasses
import functools
import hashlib

import numpy as np
import scipy.fft

RATE = 16_000
TABLE_SIZE = 8192
_NYQUIST = 7600.0  # highest partial, below the roll-off of the recorder


def stream(*names: object) -> np.random.Generator:
    """Random generator of a named thing; other names, other numbers, whatever was drawn before."""
    text = "\x1f".join(str(name) for name in names)
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=32).digest(), np.uint32)
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words.tolist())))


def gain(decibels: float) -> float:
    """Amplitude factor of a level difference in dB."""
    return float(10.0 ** (decibels / 20.0))


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Times and frequencies of a clip.

    Attributes:
      samples: Length of the clip.
      seconds: Its duration.
      time: float64, shape ``[samples]``, seconds.
      hz: float32, shape ``[samples // 2 + 1]``.
      octave: float32, same shape, log2 of ``hz``, at least that of 20 Hz.
    """

    samples: int
    seconds: float
    time: np.ndarray
    hz: np.ndarray
    octave: np.ndarray


@functools.lru_cache(maxsize=2)
def make_grid(samples: int) -> Grid:
    """Grid of clips of a length; made once in every process."""
    hz = scipy.fft.rfftfreq(samples, 1 / RATE).astype(np.float32)
    return Grid(
        samples,
        samples / RATE,
        np.arange(samples) / RATE,
        hz,
        np.log2(np.maximum(hz, 20.0)).astype(np.float32),
    )


def to_spectrum(sound: np.ndarray) -> np.ndarray:
    """Samples to spectrum."""
    return scipy.fft.rfft(sound.astype(np.float32, copy=False))


def to_sound(spectrum: np.ndarray, grid: Grid) -> np.ndarray:
    """Spectrum to samples."""
    return scipy.fft.irfft(spectrum, grid.samples)


def level_of(sound: np.ndarray) -> float:
    """Level of samples in dB relative to an effective value of 1."""
    return float(10 * np.log10(max(float(np.dot(sound, sound)) / len(sound), 1e-20)))


def at_level(sound: np.ndarray, decibels: float) -> np.ndarray:
    """Samples scaled to a level in dB; silence stays silent."""
    return sound * np.float32(gain(decibels - level_of(sound)))


# --- noise and fixed curves of frequency


def noise_spectrum(rng: np.random.Generator, grid: Grid, curve: np.ndarray) -> np.ndarray:
    """Spectrum of Gaussian noise of a float32 amplitude over ``grid.hz``; all ones give 0 dB."""
    parts = rng.standard_normal(2 * len(grid.hz), dtype=np.float32)
    return parts.view(np.complex64) * (curve * np.float32(np.sqrt(grid.samples / 2)))


def noise(rng: np.random.Generator, grid: Grid, curve: np.ndarray) -> np.ndarray:
    """Samples of :func:`noise_spectrum`."""
    return to_sound(noise_spectrum(rng, grid, curve), grid)


@functools.lru_cache(maxsize=128)
def noise_curve(samples: int, points: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Amplitude curve through ``(Hz, dB)`` points, straight over octaves, of level 0 dB."""
    grid = make_grid(samples)
    octaves = [np.log2(hz) for hz, _ in points]
    curve = 10 ** (np.interp(grid.octave, octaves, [level for _, level in points]) / 20)
    curve[grid.hz < 30] = 0
    return (curve / np.sqrt(np.mean(curve**2))).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _knots(samples: int, width: float) -> tuple[int, np.ndarray, np.ndarray]:
    """Evenly spaced knots over octaves: how many, and the left one and the way to the next."""
    place = (make_grid(samples).octave - 4) / width
    left = place.astype(np.int32)
    return int(left.max()) + 2, left, (place - left).astype(np.float32)


def tilt(grid: Grid, hz: list[float], decibels: list[float], amount: float) -> np.ndarray:
    """Amplitude curve, float32: ``amount`` times the levels in dB, straight between ``hz``."""
    return np.exp2(np.interp(grid.hz, hz, decibels) * amount / 6.02).astype(np.float32)


def wavy_curve(rng: np.random.Generator, grid: Grid, decibels: float, width: float) -> np.ndarray:
    """Random smooth amplitude curve about 1, float32.

    Its level has a standard deviation of ``decibels`` and independent values ``width`` octaves
    apart.
    """
    count, left, way = _knots(grid.samples, width)
    levels = rng.normal(0, decibels / 6.02, count).astype(np.float32)
    return np.exp2(levels[left] + np.diff(levels, append=0)[left] * way)


@functools.lru_cache(maxsize=256)
def fixed_wavy_curve(samples: int, name: str, decibels: float, width: float) -> np.ndarray:
    """:func:`wavy_curve` of a named thing."""
    return wavy_curve(stream("curve", name), make_grid(samples), decibels, width)


@functools.lru_cache(maxsize=256)
def resonances(samples: int, modes: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Response of a body to a force, complex64, scaled so that white force gives 0 dB.

    ``modes`` holds ``(Hz, quality, dB)`` of every mode.
    """
    hz = make_grid(samples).hz.astype(np.float64)
    total = np.zeros(len(hz), np.complex128)
    for center, quality, level in modes:
        ratio = hz / center
        total += gain(level) * 1j * ratio / quality / (1 - ratio**2 + 1j * ratio / quality)
    return (total / np.sqrt(np.mean(np.abs(total) ** 2))).astype(np.complex64)


def random_modes(
    name: str, count: int, low: float, high: float, quality: tuple[float, float] = (8, 30)
) -> tuple[tuple[float, float, float], ...]:
    """Modes of a named body, spread evenly over octaves between two frequencies."""
    rng = stream("modes", name)
    places = (np.arange(count) + rng.uniform(0.2, 0.8, count)) / count
    return tuple(
        (float(low * (high / low) ** place), float(rng.uniform(*quality)), float(rng.normal(0, 3)))
        for place in places
    )


@functools.lru_cache(maxsize=64)
def room_response(samples: int, name: str, decay: float, reverberant: float) -> np.ndarray:
    """Response of a named room, complex64: direct sound and an exponentially decaying tail.

    Args:
      samples: Length of the clip.
      name: The room, and the place of the microphone in it.
      decay: Reverberation time (60 dB) at low frequencies, in seconds; half of it at high ones.
      reverberant: Energy of the tail relative to the direct sound, in dB.
    """
    rng = stream("room", name)
    grid = make_grid(samples)
    time = grid.time[: min(samples, int(1.2 * decay * RATE) + 1)]
    tail = np.zeros(samples, np.float32)
    white = rng.standard_normal((2, len(time)))
    smooth = np.convolve(white[0], np.full(8, 0.35), "same")  # below about 2 kHz
    bright = np.diff(white[1], prepend=0.0)
    for part, length in ((smooth, decay), (bright, 0.5 * decay)):
        tail[: len(time)] += part * np.exp(-6.9 * time / length)
    tail[: int(0.004 * RATE)] = 0
    tail *= gain(reverberant) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return to_spectrum(tail)


# --- rotation


@dataclasses.dataclass(frozen=True, eq=False)
class Rotation:
    """A shaft's angle over the clip, straight between knots.

    Attributes:
      time: float64, shape ``[knots]``, increasing seconds.
      turns: float64, shape ``[knots]``, increasing turns.
    """

    time: np.ndarray
    turns: np.ndarray

    def sampled(self, grid: Grid) -> np.ndarray:
        """Turns at every sample, float64."""
        return np.interp(grid.time, self.time, self.turns)

    def strikes(self, rng: np.random.Generator, per_turn: float, slip: float) -> np.ndarray:
        """Times at which something happens ``per_turn`` times a turn, which need not be whole.

        ``slip`` is the standard deviation of the places, as a share of their distance.
        """
        first = np.ceil(self.turns[0] * per_turn)
        count = max(0, int(self.turns[-1] * per_turn - first))
        places = (first + np.arange(count) + slip * rng.standard_normal(count)) / per_turn
        return np.interp(places, self.turns, self.time)


def rotation(rng: np.random.Generator, grid: Grid, hz: float, wander: float = 0.002) -> Rotation:
    """A shaft at a nearly constant speed, from a random angle on.

    ``wander`` is the standard deviation of the speed over seconds, relative to its mean ``hz``.
    """
    knots = max(4, int(20 * grid.seconds) + 2)
    time = np.linspace(0, grid.seconds, knots)
    slow = np.convolve(rng.standard_normal(knots + 20), np.ones(21) / np.sqrt(21), "valid")
    return ride(time, hz * (1 + wander * slow), rng.uniform())


def ride(time: np.ndarray, speed: np.ndarray, first: float = 0.0) -> Rotation:
    """Rotation of a given speed (turns a second, at least 0) at the knots of a clip."""
    steps = np.maximum(0.5 * (speed[1:] + speed[:-1]) * np.diff(time), 1e-9)
    return Rotation(time, first + np.concatenate([[0.0], np.cumsum(steps)]))


def tones(
    amplitudes: np.ndarray, rng: np.random.Generator, turns: np.ndarray, hz: float | None = None
) -> np.ndarray:
    """A periodic sound of random phases, float32, shape of ``turns``.

    Args:
      amplitudes: Effective value of the partials 1, 2, ... of a turn.
      rng: Draws the phases.
      turns: Where the shaft is at every sample, float64.
      hz: Its mean speed: partials beyond the recorder's range are left out.
    """
    amplitudes = np.asarray(amplitudes)[: TABLE_SIZE // 2 - 1]
    phases = rng.uniform(0, 2 * np.pi, len(amplitudes))
    if hz is not None:
        amplitudes = np.where(hz * np.arange(1, len(amplitudes) + 1) < _NYQUIST, amplitudes, 0)
    spectrum = np.zeros(TABLE_SIZE // 2 + 1, np.complex128)
    spectrum[1 : len(amplitudes) + 1] = amplitudes * np.exp(1j * phases) * TABLE_SIZE / np.sqrt(2)
    table = scipy.fft.irfft(spectrum, TABLE_SIZE).astype(np.float32)
    return table[(turns * TABLE_SIZE).astype(np.int64) & (TABLE_SIZE - 1)]


def swell(
    amplitudes: list[float], rng: np.random.Generator, turns: np.ndarray, depth: float = 1.0
) -> np.ndarray:
    """An amplitude about 1 that swells alike in every turn, and at least 0.1."""
    return np.maximum(1 + depth * tones(np.array(amplitudes), rng, turns), 0.1)


# --- things that happen


def impulses(grid: Grid, times: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """Unit-area pulses between samples at given times; those outside the clip are left out."""
    places = times * RATE
    inside = (places >= 0) & (places < grid.samples - 1)
    places, heights = places[inside], np.broadcast_to(amplitudes, times.shape)[inside]
    whole = places.astype(np.int64)
    part = places - whole
    sound = np.bincount(whole, heights * (1 - part), grid.samples)
    sound += np.bincount(whole + 1, heights * part, grid.samples)
    return sound.astype(np.float32)


def add_bursts(
    sound: np.ndarray,
    times: np.ndarray | float,
    amplitudes: np.ndarray | float,
    burst: np.ndarray,
) -> None:
    """Adds a short sound at given times, in place; what passes the clip's end is cut off."""
    for time, amplitude in zip(np.atleast_1d(times), np.atleast_1d(amplitudes), strict=True):
        first = int(time * RATE)
        if 0 <= first < len(sound):
            part = burst[: len(sound) - first]
            sound[first : first + len(part)] += np.float32(amplitude) * part


def puff(rng: np.random.Generator, seconds: float, attack: float, tone: float) -> np.ndarray:
    """A burst of air or friction: noise that swells and dies away, float32.

    Args:
      rng: Draws the noise.
      seconds: Time to fall by 60 dB.
      attack: Time to rise, in seconds.
      tone: -1 for dull, 0 for white, 1 for hissing.
    """
    time = np.arange(max(8, int(seconds * RATE))) / RATE
    white = rng.standard_normal(len(time) + 1).astype(np.float32)
    colored = white[1:] - np.float32(np.clip(tone, -0.95, 0.95)) * white[:-1]
    envelope = (1 - np.exp(-time / attack)) * np.exp(-6.9 * time / seconds)
    return colored * envelope.astype(np.float32)


@functools.lru_cache(maxsize=128)
def ring(name: str, count: int, low: float, high: float, seconds: float) -> np.ndarray:
    """The sound of a named object when struck: decaying partials, float32, peak about 1."""
    rng = stream("ring", name)
    time = np.arange(int(seconds * RATE)) / RATE
    # The blow itself lasts a few milliseconds and holds all frequencies.
    sound = rng.standard_normal(len(time)) * np.exp(-time / 0.0015)
    for hz in low * (high / low) ** rng.uniform(0, 1, count):
        fall = np.exp(-6.9 * time / (seconds * rng.uniform(0.3, 1.0)))
        sound += rng.uniform(0.3, 1) * fall * np.sin(2 * np.pi * (hz * time + rng.uniform()))
    return (sound / np.max(np.abs(sound))).astype(np.float32)


def slow_wave(rng: np.random.Generator, grid: Grid, decibels: float, hz: float) -> np.ndarray:
    """A wandering amplitude about 1, float32, shape ``[samples]``.

    Its level has a standard deviation of ``decibels`` and ``hz`` independent values a second.
    """
    knots = max(3, int(hz * grid.seconds) + 2)
    levels = rng.normal(0, decibels / 6.02, knots)
    fine = np.linspace(0, knots - 1, max(64, 4 * knots))
    curve = np.exp2(np.interp(fine, np.arange(knots), levels))
    return np.interp(grid.time, np.linspace(0, grid.seconds, len(fine)), curve).astype(np.float32)
