"""Building blocks of sound: random streams, curves over frequency, periodic sounds, struck things.

Sounds are float32 arrays of samples at 16 kHz. Filtering is a product of spectra over the whole
clip, so what rings on at the end of a clip comes round at its start: a recording is a cut out of a
machine that runs on.
"""

import functools
import hashlib

import numpy as np

RATE = 16_000
_TABLE = 8192
_HIGHEST = 7600.0  # Hz, below the roll-off of a recorder


def stream(*names: object) -> np.random.Generator:
    """Random generator of a named thing: the same numbers whatever was drawn before."""
    text = "\x1f".join(map(str, names))
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=32).digest(), np.uint32)
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words.tolist())))


def gain(decibels: float) -> np.float32:
    """Amplitude factor of a level difference in dB."""
    return np.float32(10.0 ** (decibels / 20.0))


def at_level(sound: np.ndarray, decibels: float) -> np.ndarray:
    """Samples scaled to a level in dB relative to an effective value of 1; silence stays silent."""
    power = float(np.dot(sound, sound)) / len(sound)
    return sound * (gain(decibels) / np.float32(np.sqrt(max(power, 1e-20))))


@functools.lru_cache(maxsize=4)
def frequencies(samples: int) -> np.ndarray:
    """Frequencies of a clip's spectrum, float32 Hz, shape ``[samples // 2 + 1]``."""
    return np.fft.rfftfreq(samples, 1 / RATE).astype(np.float32)


def curve(
    rng: np.random.Generator, samples: int, decibels: float, octaves: float, shift: float = 1.0
) -> np.ndarray:
    """A random smooth amplitude over frequency, about 1.

    Args:
      rng: Draws it.
      samples: Of the clip.
      decibels: Standard deviation of its level.
      octaves: Between independent values.
      shift: Factor on all frequencies: 1.02 moves every peak up by 2 %.

    Returns:
      float32, shape ``[samples // 2 + 1]``.
    """
    knots = rng.normal(0, decibels, int(10 / octaves) + 2)
    place = np.log2(np.maximum(frequencies(samples) / shift, 20.0) / 20.0) / octaves
    return (10 ** (np.interp(place, np.arange(len(knots)), knots) / 20)).astype(np.float32)


def slope(samples: int, decibels: float) -> np.ndarray:
    """An amplitude that falls by so many dB an octave, 1 at 500 Hz, none below 40 Hz."""
    hz = np.maximum(frequencies(samples), 1.0)
    falls = 10 ** (-decibels * np.log2(hz / 500) / 20)
    return np.where(hz < 40, 0, falls).astype(np.float32)


def filtered(sound: np.ndarray, response: np.ndarray) -> np.ndarray:
    """A sound behind an amplitude response over its frequencies."""
    return np.fft.irfft(np.fft.rfft(sound) * response, len(sound)).astype(np.float32)


def noise(rng: np.random.Generator, response: np.ndarray, samples: int) -> np.ndarray:
    """Gaussian noise of an amplitude over frequency, of level 0 dB."""
    white = rng.standard_normal(2 * len(response)).view(np.complex128)
    return at_level(np.fft.irfft(white * response, samples).astype(np.float32), 0)


def rotation(
    rng: np.random.Generator, samples: int, hz: float, wander: float = 0.002
) -> np.ndarray:
    """Turns of a shaft at every sample, float64, from a random angle on.

    Its speed wanders about ``hz`` by a standard deviation of ``wander`` of it.
    """
    seconds = samples / RATE
    knots = int(4 * seconds) + 3
    speed = hz * (1 + wander * rng.standard_normal(knots))
    fine = np.interp(np.arange(samples) / RATE, np.linspace(0, seconds, knots), speed)
    return rng.uniform() + np.cumsum(fine) / RATE


def tones(
    amplitudes: np.ndarray, rng: np.random.Generator, turns: np.ndarray, hz: float
) -> np.ndarray:
    """A periodic sound of random phases, float32, shape of ``turns``.

    Args:
      amplitudes: Of the partials 1, 2, ... of a turn.
      rng: Draws the phases.
      turns: Where the shaft is at every sample.
      hz: Its mean speed: partials beyond the recorder's range are left out.
    """
    amplitudes = np.asarray(amplitudes)[: _TABLE // 2 - 1]
    phases = rng.uniform(0, 2 * np.pi, len(amplitudes))
    heard = hz * np.arange(1, len(amplitudes) + 1) < _HIGHEST
    spectrum = np.zeros(_TABLE // 2 + 1, np.complex128)
    spectrum[1 : len(amplitudes) + 1] = np.where(heard, amplitudes, 0) * np.exp(1j * phases)
    table = np.fft.irfft(spectrum * _TABLE / 2, _TABLE).astype(np.float32)
    return table[(turns * _TABLE).astype(np.int64) & (_TABLE - 1)]


def struck(rng: np.random.Generator, low: float, high: float, seconds: float) -> np.ndarray:
    """The sound of an object when struck: decaying partials, float32, peak 1."""
    time = np.arange(int(seconds * RATE)) / RATE
    sound = rng.standard_normal(len(time)) * np.exp(-time / 0.0015)  # the blow itself
    for hz in low * (high / low) ** rng.uniform(0, 1, 10):
        fall = np.exp(-6.9 * time / (seconds * rng.uniform(0.3, 1.0)))
        sound += rng.uniform(0.3, 1) * fall * np.sin(2 * np.pi * (hz * time + rng.uniform()))
    return (sound / np.max(np.abs(sound))).astype(np.float32)


def blows(
    samples: int, times: np.ndarray, heights: np.ndarray | float, sound: np.ndarray
) -> np.ndarray:
    """A short sound at given seconds; what passes the clip's end comes round at its start."""
    force = np.zeros(samples, np.float32)
    np.add.at(force, (times * RATE).astype(np.int64) % samples, heights)
    padded = np.fft.rfft(sound, samples)
    return np.fft.irfft(np.fft.rfft(force) * padded, samples).astype(np.float32)
