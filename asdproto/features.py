"""From an audio file to a log-mel spectrogram, inverted or plain, or to a summary of its sound.

Audio is read once, offline; nothing here runs inside training.
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from asdproto.audio import RATES, import_librosa, read_audio, resample
from asdproto.audio_info import AudioInfo
from asdproto.config import ConfigError, at_least, between, check_fields, positive
from asdproto.errors import DataError
from asdproto.summary import GROUP, Part, summarize, summary_parts

# Samples transformed at a time, those of 80 frames of 1,024. In threads, 128 such frames take 1.7
# times as long, whole clips of 10 s 2.1 times, as memory is asked of the system for each array; and
# 32 take 1.5 times as long.
_BLOCK = 80 * 1024
# Adjacent filters multiplied at a time: a mel filter is zero nearly everywhere, so a group needs
# a narrow band of the spectrum only (1.4 times as fast as one product with all of them).
_GROUP = 16
# Share of half the lower rate up to which a resampled recording is as it was.
PASSED = 0.9


@dataclass(frozen=True)
class FeatureSettings:
    """What defines a feature. Two stores with different settings never mix.

    Attributes:
      sample_rate: Hertz; audio at another rate is resampled to it.
      n_fft: Samples of a frame and of its Hann window.
      hop_length: Samples from one frame to the next.
      n_mels: Number of filters.
      fmin: Lowest frequency of the filterbank, hertz.
      fmax: Highest frequency, hertz; None for half the sample rate.
      scale: ``"inverted"``: mel filters mirrored in frequency, narrowest at the top (Sahidullah
        and Saha, IEEE Signal Processing Letters, 2009; Sahidullah et al., Interspeech, 2015);
        ``"mel"``: as librosa has them.
      power: Exponent of the magnitude; 2 is power.
      floor: Smallest filter output before the logarithm.
      waveform: Whether every frame holds the samples from its center to the next frame's, after
        its mel bands: what systems need that read waveforms.
      summary: Whether a clip is one row, its :mod:`asdproto.summary`, instead of frames; ``scale``
        then means nothing, and what lies above the frequencies of a recording of a lower rate is
        nan.
    """

    sample_rate: int = 16000
    n_fft: int = 1024
    hop_length: int = 512
    n_mels: int = 128
    fmin: float = 0.0
    fmax: float | None = None
    scale: Literal["inverted", "mel"] = "inverted"
    power: float = 2.0
    floor: float = float(np.finfo(np.float64).eps)
    waveform: bool = False
    summary: bool = False

    def __post_init__(self):
        check_fields(
            self,
            sample_rate=between(1000, 384000),
            n_fft=between(2, 65536),
            hop_length=between(1, 65536),
            n_mels=between(1, 4096),
            fmin=at_least(0, below=192000),
            fmax=positive(192000),
            power=positive(10),
            floor=positive(1),
        )
        if self.n_fft % 2 or self.hop_length > self.n_fft:
            given = f"n_fft={self.n_fft}, hop_length={self.hop_length}"
            raise ConfigError(f"n_fft must be even and at least hop_length, found {given}")
        if self.summary and (self.waveform or self.power != 2 or self.n_mels % GROUP):
            raise ConfigError(
                f"summary=True goes with waveform=False, power=2 and n_mels a multiple of {GROUP}; "
                f"found {self.waveform}, {self.power:g} and {self.n_mels}"
            )
        if not self.fmin < self.top <= self.sample_rate / 2:
            raise ConfigError(
                f"fmin must be below fmax, and that at most {self.sample_rate / 2:g} Hz, "
                f"found fmin={self.fmin}, fmax={self.fmax}"
            )

    @property
    def top(self) -> float:
        """Highest frequency of the filterbank, hertz."""
        return self.sample_rate / 2 if self.fmax is None else self.fmax

    @property
    def columns(self) -> int:
        """Numbers in a frame: its mel bands, and its samples with :attr:`waveform`."""
        if self.summary:
            return self.parts()[-1].columns.stop
        return self.n_mels + self.waveform * self.hop_length

    def frames(self, samples: int) -> int:
        """Number of frames of a clip of so many samples: one centered on every hop."""
        return 1 if self.summary else 1 + samples // self.hop_length

    def parts(self) -> tuple[Part, ...]:
        """The vectors of a :attr:`summary`."""
        return _parts(self)


@functools.lru_cache(maxsize=8)
def filterbank(settings: FeatureSettings) -> np.ndarray:
    """The mel filters, mirrored in frequency where the scale is inverted.

    The mirror image of frequency ``f`` is ``sample_rate / 2 - f``: that is the inverted mel scale
    of the references, and it maps the bins of the transform onto themselves.

    Args:
      settings: Rate, window, number of filters, band and scale count.

    Returns:
      float32, shape ``[n_mels, n_fft // 2 + 1]``; filters in order of rising frequency, each of
      unit area (Slaney's normalization). Read-only.

    Raises:
      ValueError: A filter is narrower than a bin of the transform and so always silent.
    """
    inverted = settings.scale == "inverted"
    nyquist = settings.sample_rate / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said below, as an error
        bank = import_librosa().filters.mel(
            sr=settings.sample_rate,
            n_fft=settings.n_fft,
            n_mels=settings.n_mels,
            fmin=nyquist - settings.top if inverted else settings.fmin,
            fmax=nyquist - settings.fmin if inverted else settings.top,
        )
    silent = int((bank.max(axis=1) == 0).sum())
    if silent:
        raise ValueError(
            f"{silent} of {settings.n_mels} mel filters are narrower than a bin of a window of "
            f"{settings.n_fft} samples; take fewer mels, a longer window or a wider band"
        )
    if inverted:
        bank = bank[::-1, ::-1].copy()
    bank.flags.writeable = False
    return bank


@functools.lru_cache(maxsize=8)
def _parts(settings: FeatureSettings) -> tuple[Part, ...]:
    return summary_parts(settings.sample_rate, settings.n_fft, *_banks(settings))


@functools.lru_cache(maxsize=8)
def _banks(settings: FeatureSettings) -> tuple[np.ndarray, np.ndarray]:
    """Mel and inverted mel filters of a summary."""
    plain = dataclasses.replace(settings, summary=False)
    mel, inverted = (dataclasses.replace(plain, scale=s) for s in ("mel", "inverted"))
    return filterbank(mel), filterbank(inverted)


@functools.lru_cache(maxsize=8)
def _groups(settings: FeatureSettings) -> list[tuple[slice, slice, np.ndarray]]:
    """Groups of filters, with the band of bins outside of which they are zero."""
    bank = filterbank(settings)
    groups = []
    for first in range(0, settings.n_mels, _GROUP):
        filters = slice(first, first + _GROUP)
        used = np.flatnonzero(bank[filters].any(axis=0))
        bins = slice(int(used[0]), int(used[-1]) + 1)
        groups.append((filters, bins, np.ascontiguousarray(bank[filters, bins].T)))
    return groups


@functools.lru_cache(maxsize=8)
def _window(n_fft: int) -> np.ndarray:
    """Periodic, as for every spectrogram; scipy.signal has it too, but takes a second to load."""
    return np.hanning(n_fft + 1)[:-1].astype(np.float32)


def power_spectra(audio: np.ndarray, settings: FeatureSettings) -> Iterator[np.ndarray]:
    """``|STFT|^2``, a few frames at a time, float32 ``[frames, bins]``.

    Frames are centered on multiples of the hop, with zeros beyond both ends, as librosa's default.
    """
    from scipy import fft

    window, size = _window(settings.n_fft), max(1, _BLOCK // settings.n_fft)
    padded = np.pad(audio.astype(np.float32, copy=False), settings.n_fft // 2)
    framed = np.lib.stride_tricks.sliding_window_view(padded, settings.n_fft)
    framed = framed[:: settings.hop_length]
    for start in range(0, len(framed), size):
        spectrum = fft.rfft(framed[start : start + size] * window, overwrite_x=True)
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        yield power


def log_mel(audio: np.ndarray, settings: FeatureSettings | None = None) -> np.ndarray:
    """Log-mel spectrogram in decibels.

    Args:
      audio: float, shape ``[samples]``, at the settings' sample rate; at least one window long.
      settings: Defaults to :class:`FeatureSettings`.

    Returns:
      ``10 log10(max(filters @ |STFT|^power, floor))``, float32, shape ``[frames, n_mels]``
      with ``frames = 1 + samples // hop_length``: centered on multiples of the hop.

    Raises:
      ValueError: The audio is not one-dimensional, too short, or not finite.
    """
    settings = FeatureSettings() if settings is None else settings
    audio = np.asarray(audio)
    if audio.ndim != 1:
        raise ValueError(f"audio must have shape [samples], found {list(audio.shape)}")
    if audio.size < settings.n_fft:
        raise ValueError(
            f"audio must hold at least one window of {settings.n_fft} samples, found {audio.size}"
        )
    mel = np.empty((1 + audio.size // settings.hop_length, settings.n_mels), np.float32)
    groups, end = _groups(settings), 0
    with np.errstate(over="ignore", invalid="ignore"):
        for power in power_spectra(audio, settings):
            if settings.power != 2:
                power **= np.float32(settings.power / 2)
            start, end = end, end + len(power)
            for filters, bins, weights in groups:
                mel[start:end, filters] = power[:, bins] @ weights
    _check_finite(mel)
    np.maximum(mel, np.float32(settings.floor), out=mel)
    np.log10(mel, out=mel)
    mel *= 10
    return mel


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError("audio holds values that are not finite, or too large for float32")


def file_features(
    path: str | os.PathLike, settings: FeatureSettings | None = None
) -> tuple[np.ndarray, AudioInfo]:
    """Read an audio file and compute its features: what a feature store holds of it.

    Args:
      path: A wav or flac file.
      settings: Defaults to :class:`FeatureSettings`.

    Returns:
      As :func:`log_mel`, with samples after the bands where the settings say so, float32, shape
      ``[frames, columns]``; and what the recording was.

    Raises:
      DataError: As :func:`read_audio`; or the clip is shorter than one window.
    """
    settings = FeatureSettings() if settings is None else settings
    audio, info = read_audio(path, settings.sample_rate)
    return _features(audio, info.sample_rate, settings, path), info


def audio_features(
    audio: np.ndarray,
    sample_rate: int,
    settings: FeatureSettings,
    *,
    name: str | os.PathLike = "the waveform",
) -> np.ndarray:
    """Features of a waveform: what a feature store holds of the file with these samples.

    Args:
      audio: Floating, shape ``[samples]``, full scale 1.
      sample_rate: Hertz; converted to the settings' rate.
      settings: Feature settings.
      name: Of the clip, for messages.

    Returns:
      As :func:`file_features`.

    Raises:
      DataError: The clip is shorter than one window, or holds values that are not finite; or the
        sample rate is none.
    """
    if not RATES[0] <= sample_rate <= RATES[1]:  # resampling could take for ever
        found, expected = f"{sample_rate} Hz", f"{RATES[0]} to {RATES[1]} Hz"
        raise DataError(name, found, expected, "Pass the rate at which it was recorded.")
    audio = resample(np.asarray(audio, np.float32), sample_rate, settings.sample_rate)
    return _features(audio, sample_rate, settings, name)


def _features(
    audio: np.ndarray, recorded_at: float, settings: FeatureSettings, name: str | os.PathLike
) -> np.ndarray:
    """Features of samples at the settings' rate that were recorded at another, hertz."""
    if audio.size < settings.n_fft:
        raise too_short(name, audio.size, settings)
    try:
        if settings.summary:
            return _summary(audio, recorded_at, settings)[None]
        frames = log_mel(audio, settings)
        if settings.waveform:
            samples = np.zeros((len(frames), settings.hop_length), np.float32)
            samples.reshape(-1)[: len(audio)] = audio
            frames = np.concatenate([frames, samples], axis=1)
        return frames
    except ValueError as error:
        raise DataError(name, str(error), "usable audio", "Replace the recording.") from None


def _summary(audio: np.ndarray, recorded_at: float, settings: FeatureSettings) -> np.ndarray:
    """float32 ``[columns]``; nan where a column depends on what was not recorded."""
    with np.errstate(over="ignore", invalid="ignore"):
        power = np.concatenate(list(power_spectra(audio, settings)))
    _check_finite(power)
    summary = summarize(power, *_banks(settings), settings.floor)
    if recorded_at != settings.sample_rate:
        # Resampling is faithful up to here.
        top = PASSED * min(recorded_at, settings.sample_rate) / 2
        summary[np.concatenate([part.tops for part in settings.parts()]) > top] = np.nan
    return summary


def too_short(path: str | os.PathLike, samples: int, settings: FeatureSettings) -> DataError:
    """The error for a clip of less than one window."""
    found = f"{samples} samples at {settings.sample_rate} Hz"
    expected = f"at least one window of {settings.n_fft}"
    return DataError(path, found, expected, "Remove the clip, or choose a shorter window.")
