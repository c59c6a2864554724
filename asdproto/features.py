"""From an audio file to a log-mel spectrogram, inverted or plain.

Audio is read once, offline; nothing here runs inside training.
"""

import dataclasses
import functools
import os
from dataclasses import dataclass

import numpy as np

from asdproto.data.dcase import DataError

SCALES = ("inverted", "mel")


@dataclass(frozen=True)
class FeatureSettings:
    """What defines a feature. Two stores with different settings never mix.

    Attributes:
      sample_rate: Hertz; audio at another rate is resampled to it.
      window: Samples of a frame and of its Hann window.
      hop: Samples from one frame to the next.
      mels: Number of filters.
      fmin: Lowest frequency of the filterbank, hertz.
      fmax: Highest frequency, hertz; None for half the sample rate.
      scale: ``"inverted"``: mel filters mirrored in frequency, narrowest at the top (Sahidullah
        and Saha, IEEE Signal Processing Letters, 2009; Sahidullah et al., Interspeech, 2015);
        ``"mel"``: as librosa has them.
      power: Exponent of the magnitude; 2 is power.
      floor: Smallest filter output before the logarithm.
    """

    sample_rate: int = 16000
    window: int = 1024
    hop: int = 512
    mels: int = 128
    fmin: float = 0.0
    fmax: float | None = None
    scale: str = "inverted"
    power: float = 2.0
    floor: float = float(np.finfo(np.float64).eps)

    def __post_init__(self):
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, found {self.scale!r}")
        for field in ("sample_rate", "window", "hop", "mels"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field} must be a positive whole number, found {value!r}")
        if self.window % 2 or self.hop > self.window:
            raise ValueError(
                f"window must be even and at least hop, found window={self.window}, hop={self.hop}"
            )
        if not 0 <= self.fmin < self.top <= self.sample_rate / 2:
            raise ValueError(
                f"need 0 <= fmin < fmax <= {self.sample_rate / 2:g} Hz, "
                f"found fmin={self.fmin}, fmax={self.fmax}"
            )
        if self.power <= 0 or self.floor <= 0:
            raise ValueError(
                f"power and floor must be positive, found {self.power} and {self.floor}"
            )

    @property
    def top(self) -> float:
        """Highest frequency of the filterbank, hertz."""
        return self.sample_rate / 2 if self.fmax is None else self.fmax

    def frames(self, samples: int) -> int:
        """Number of frames of a clip of so many samples: one centred on every hop."""
        return 1 + samples // self.hop

    def as_dict(self) -> dict:
        """The settings as a plain dictionary, as a feature store keeps them."""
        return dataclasses.asdict(self)


def read_audio(path: str | os.PathLike, sample_rate: int = 16000) -> tuple[np.ndarray, tuple]:
    """Read one channel of an audio file at the wanted rate.

    Args:
      path: A wav or flac file.
      sample_rate: Hertz.

    Returns:
      Samples in [-1, 1], float32, shape ``[samples]``, and notes on what was done to them
      (channel taken, rate converted), each a sentence.

    Raises:
      DataError: The file is missing, unreadable, empty, or holds samples that are not finite.
    """
    import soundfile

    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise DataError(path, str(error), "readable audio", "Replace the file.") from None
    notes = []
    if audio.shape[1] > 1:
        notes.append(f"has {audio.shape[1]} channels: channel 0 taken")
    samples = np.ascontiguousarray(audio[:, 0])
    if not samples.size:
        raise DataError(path, "no samples", "a recording", "Replace or remove the file.")
    if not np.isfinite(samples).all():
        raise DataError(path, "samples that are not finite", "finite samples", "Replace the file.")
    if rate != sample_rate:
        import librosa

        samples = librosa.resample(samples, orig_sr=rate, target_sr=sample_rate)
        notes.append(f"has {rate} Hz: resampled to {sample_rate} Hz")
    return samples, tuple(notes)


@functools.lru_cache(maxsize=8)
def filterbank(settings: FeatureSettings) -> np.ndarray:
    """The mel filters, mirrored in frequency where the scale is inverted.

    The mirror image of frequency ``f`` is ``sample_rate / 2 - f``, which is the inverted mel scale
    of the references and maps the bins of the transform onto themselves.

    Args:
      settings: Rate, window, number of filters, band and scale count.

    Returns:
      float32, shape ``[mels, window // 2 + 1]``; filters in order of rising frequency, each of
      unit area (Slaney's normalisation). Read-only.
    """
    import librosa

    nyquist = settings.sample_rate / 2
    inverted = settings.scale == "inverted"
    bank = librosa.filters.mel(
        sr=settings.sample_rate,
        n_fft=settings.window,
        n_mels=settings.mels,
        fmin=nyquist - settings.top if inverted else settings.fmin,
        fmax=nyquist - settings.fmin if inverted else settings.top,
    )
    if inverted:
        bank = np.ascontiguousarray(bank[::-1, ::-1])
    bank.flags.writeable = False
    return bank


def log_mel(audio: np.ndarray, settings: FeatureSettings | None = None) -> np.ndarray:
    """Log-mel spectrogram in decibels.

    Args:
      audio: float, shape ``[samples]``, at the settings' sample rate.
      settings: Defaults to :class:`FeatureSettings`.

    Returns:
      ``10 log10(max(filters @ |STFT|^power, floor))``, float32, shape ``[frames, mels]``.

    Raises:
      ValueError: The audio is not one-dimensional or shorter than one window.
    """
    from scipy import fft

    settings = FeatureSettings() if settings is None else settings
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim != 1:
        raise ValueError(f"audio must have shape [samples], found {audio.shape}")
    if audio.size < settings.window:
        raise ValueError(
            f"audio must hold at least one window of {settings.window} samples, found {audio.size}"
        )
    half = settings.window // 2
    padded = np.pad(audio, half)
    frames = np.lib.stride_tricks.sliding_window_view(padded, settings.window)[:: settings.hop]
    spectrum = fft.rfft(frames * _window(settings.window), axis=-1)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    if settings.power != 2.0:
        power = power ** np.float32(settings.power / 2)
    mel = power @ filterbank(settings).T
    return 10 * np.log10(np.maximum(mel, np.float32(settings.floor)))


@functools.lru_cache(maxsize=8)
def _window(length: int) -> np.ndarray:
    from scipy.signal import get_window

    return get_window("hann", length, fftbins=True).astype(np.float32)
