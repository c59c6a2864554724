"""From an audio file to a log-mel spectrogram, inverted or plain.

Audio is read once, offline; nothing here runs inside training.
"""

import dataclasses
import functools
import math
import os
import stat
import struct
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np

from asdproto.config import ConfigError, at_least, between, check_fields, positive
from asdproto.errors import DataError

CONSTANT = "one value throughout"  # what is said of such a recording
# Frames transformed at a time: few enough that the intermediate arrays stay in cache (of 16 to 512
# frames the fastest; all at once takes 2.4 times as long).
_BLOCK = 128
# Adjacent filters multiplied at a time: a mel filter is zero nearly everywhere, so a group needs
# a narrow band of the spectrum only (1.4 times as fast as one product with all of them).
_GROUP = 16
# What a recording can be.
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC")
# How files begin that are decoded, and those that libsndfile would read, but we do not.
_TAKEN = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"ID3")
_OTHERS = {b"OggS": "OGG", b"FORM": "AIFF", b".snd": "AU", b"dns.": "AU", b"riff": "W64"}
_RATES = 4_000, 384_000
_LOUDEST = 2.0**32
_MOST_SAMPLES = 2**28
_MOST_CHUNKS = 1000  # that a wav file may have before its samples
_banks: dict["FeatureSettings", np.ndarray] = {}


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
        return self.n_mels + self.waveform * self.hop_length

    def frames(self, samples: int) -> int:
        """Number of frames of a clip of so many samples: one centered on every hop."""
        return 1 + samples // self.hop_length

    def as_dict(self) -> dict:
        """The settings as a plain dictionary, as a feature store keeps them."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes:
      sample_rate: Hertz.
      channels: Number of channels.
      samples: Samples of each channel.
      subtype: Coding of a sample, for example ``"PCM_16"``.
    """

    sample_rate: int
    channels: int
    samples: int
    subtype: str

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.samples / self.sample_rate

    def samples_at(self, sample_rate: int) -> int:
        """Samples of the clip once it is converted to another rate."""
        if sample_rate == self.sample_rate:
            return self.samples
        return math.ceil(self.samples * (float(sample_rate) / self.sample_rate))


def decode(path: str | os.PathLike) -> tuple[np.ndarray, AudioInfo]:
    """Read one channel of an audio file as it was recorded, and see that it is whole.

    Args:
      path: A wav or flac file.

    Returns:
      Samples of channel 0, full scale 1, float32, shape ``[samples]``; and what the header says.

    Raises:
      DataError: The file is missing, unreadable, no wav or flac file, empty, truncated, damaged, or
        holds what no microphone records: rates outside 4 to 384 kHz, values that are not finite or
        beyond every sample format.
    """
    import soundfile

    _check_file(path)
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # names need not be UTF-8
            info = _info(path, file)
            # The same numbers as reading float32, three times as fast.
            dtype = "int16" if info.subtype == "PCM_16" else "float32"
            try:
                # The count is said, as some codings cannot be sought in.
                audio = file.read(info.samples, dtype=dtype, always_2d=True)[:, 0]
            except soundfile.SoundFileError as error:
                found = f"decoding ends early ({_reason(error)})"
                raise _truncated(path, found, f"{info.samples} samples") from None
    # A suffix such as .raw makes a TypeError.
    except (OSError, TypeError, soundfile.SoundFileError) as error:
        raise _undecodable(path, _reason(error)) from None
    if len(audio) != info.samples:
        raise _truncated(path, f"{len(audio)} samples", f"{info.samples} samples")
    if dtype == "int16":
        return np.multiply(audio, np.float32(2**-15), dtype=np.float32), info
    if not np.abs(audio).max() < _LOUDEST:  # also where it is not a number
        found = "samples that are not finite, or far beyond full scale"
        raise DataError(path, found, "finite samples", "Replace or repair the file.")
    return np.ascontiguousarray(audio), info


def _check_file(path: str | os.PathLike) -> None:
    """Refuse what is no regular file, and wav files that end before their samples do.

    Opening a pipe would wait for a writer; libsndfile forgives a cut wav file in silence.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            found = "a folder, pipe, socket or device"
            raise DataError(path, found, "a wav or flac file", "Remove or rename it.")
        with open(path, "rb") as stream:
            head = stream.read(4)
            if head in _OTHERS:
                raise _foreign(path, _OTHERS[head])
            if head[:1] == b"\xff" and head[1:2] >= b"\xe0":
                raise _foreign(path, "MP3")
            if not head.startswith(_TAKEN):
                raise _undecodable(path, f"they begin with {head!r}")
            _check_wav(path, stream)
    except OSError as error:
        found = f"no readable file ({error.strerror})"
        remedy = "Check the path and its permissions."
        raise DataError(path, found, "a wav or flac file", remedy) from None


def _check_wav(path: str | os.PathLike, stream: BinaryIO) -> None:
    size = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    order = {b"RIFF": "<", b"RIFX": ">"}.get(stream.read(4))
    position = 12
    for _ in range(_MOST_CHUNKS if order else 0):
        stream.seek(position)
        head = stream.read(8)
        if len(head) < 8:
            return
        name, length = struct.unpack(f"{order}4sI", head)
        if name == b"data":
            # Streamed files leave the size 0 or the largest number.
            if length < 0xFFFFFF00 and position + 8 + length > size:
                found = f"{size - position - 8} bytes of audio"
                raise _truncated(path, found, f"{length} bytes as its header says")
            return
        position += 8 + length + length % 2


def _info(path: str | os.PathLike, file: Any) -> AudioInfo:
    info = AudioInfo(file.samplerate, file.channels, file.frames, file.subtype)
    if file.format not in _FORMATS:
        raise _foreign(path, file.format)
    if not info.samples:
        raise DataError(path, "no samples", "a recording", "Replace or remove the file.")
    if not _RATES[0] <= info.sample_rate <= _RATES[1]:
        found, expected = f"{info.sample_rate} Hz", f"{_RATES[0]} to {_RATES[1]} Hz"
        raise DataError(path, found, expected, "Correct the header, or convert the file.")
    if info.samples * info.channels > _MOST_SAMPLES:
        found = f"{info.samples} samples in each of {info.channels} channels"
        expected = f"at most {_MOST_SAMPLES} together"
        raise DataError(path, found, expected, "Cut it into clips.")
    return info


def _foreign(path: str | os.PathLike, kind: str) -> DataError:
    remedy = "Convert it: its name alone does not make it one."
    return DataError(path, f"{kind} audio", "a wav or flac file", remedy)


def _undecodable(path: str | os.PathLike, reason: str) -> DataError:
    found = f"{os.path.getsize(path)} bytes that do not decode ({reason})"
    remedy = "Copy or download it again, or convert it."
    return DataError(path, found, "a wav or flac file", remedy)


def _truncated(path: str | os.PathLike, found: str, expected: str) -> DataError:
    found = f"a truncated or damaged file, {found}"
    return DataError(path, found, expected, "Copy or download it again.")


def _reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2].rstrip(".")


def is_constant(samples: np.ndarray) -> bool:
    """Whether a recording holds one value throughout: silence, or a broken microphone."""
    few = samples[:: 1 + len(samples) // 256]  # tells nearly all others at once
    return bool((few == samples[0]).all() and (samples == samples[0]).all())


def read_audio(
    path: str | os.PathLike, sample_rate: int = 16000
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read one channel of an audio file at the wanted rate.

    Args:
      path: A wav or flac file.
      sample_rate: Hertz.

    Returns:
      Samples, full scale 1, float32, shape ``[samples]``, and notes on them (channel taken, rate
      converted, one value throughout).

    Raises:
      DataError: As :func:`decode`.
    """
    samples, info = decode(path)
    notes = []
    if is_constant(samples):
        notes.append(CONSTANT)
    if info.channels > 1:
        notes.append(f"{info.channels} channels, channel 0 taken")
    if info.sample_rate != sample_rate:
        samples = resample(samples, info.sample_rate, sample_rate)
        notes.append(f"{info.sample_rate} Hz, resampled to {sample_rate} Hz")
    return samples, tuple(notes)


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
    if settings in _banks:
        return _banks[settings]
    import librosa

    nyquist = settings.sample_rate / 2
    inverted = settings.scale == "inverted"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said below, as an error
        bank = librosa.filters.mel(
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
        bank = bank[::-1, ::-1]
    return share_filterbank(settings, bank)


def share_filterbank(settings: FeatureSettings, bank: np.ndarray) -> np.ndarray:
    """Take a filterbank that another process computed: loading librosa costs two seconds.

    Args:
      settings: What it was computed for.
      bank: What :func:`filterbank` gave there.

    Returns:
      The filterbank that this process uses from now on.
    """
    bank = np.array(bank, dtype=np.float32)
    bank.flags.writeable = False
    _banks[settings] = bank
    return bank


@functools.lru_cache(maxsize=8)
def _plan(settings: FeatureSettings) -> tuple[np.ndarray, list[tuple[slice, slice, np.ndarray]]]:
    """The window, and groups of filters with the band of bins outside of which they are zero."""
    # glibc gives memory back to the system when more than twice the largest block freed so far is
    # unused at once; a clip's arrays sum up to that, and beside other work, such as librosa's, they
    # are faulted in anew for every clip: 1.4 times librosa's speed instead of 2.6. One large block,
    # never touched, raises the limit to 32 MiB.
    np.empty(2**24, np.uint8)
    # Periodic, as for every spectrogram; scipy.signal has it too, but takes a second to load.
    window = np.hanning(settings.n_fft + 1)[:-1].astype(np.float32)
    bank = filterbank(settings)
    groups = []
    for first in range(0, settings.n_mels, _GROUP):
        filters = slice(first, first + _GROUP)
        used = np.flatnonzero(bank[filters].any(axis=0))
        bins = slice(int(used[0]), int(used[-1]) + 1)
        groups.append((filters, bins, np.ascontiguousarray(bank[filters, bins].T)))
    return window, groups


def log_mel(audio: np.ndarray, settings: FeatureSettings | None = None) -> np.ndarray:
    """Log-mel spectrogram in decibels.

    Frames are centered on multiples of the hop, with zeros beyond both ends, as librosa's default.

    Args:
      audio: float, shape ``[samples]``, at the settings' sample rate; at least one window long.
      settings: Defaults to :class:`FeatureSettings`.

    Returns:
      ``10 log10(max(filters @ |STFT|^power, floor))``, float32, shape ``[frames, n_mels]``
      with ``frames = 1 + samples // hop_length``.

    Raises:
      ValueError: The audio is not one-dimensional, too short, or not finite.
    """
    from scipy import fft

    settings = FeatureSettings() if settings is None else settings
    audio = np.asarray(audio)
    if audio.ndim != 1:
        raise ValueError(f"audio must have shape [samples], found {list(audio.shape)}")
    if audio.size < settings.n_fft:
        raise ValueError(
            f"audio must hold at least one window of {settings.n_fft} samples, found {audio.size}"
        )
    half = settings.n_fft // 2
    padded = np.pad(audio.astype(np.float32, copy=False), half)
    windows = np.lib.stride_tricks.sliding_window_view(padded, settings.n_fft)
    framed = windows[:: settings.hop_length]
    window, groups = _plan(settings)
    mel = np.empty((len(framed), settings.n_mels), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(framed), _BLOCK):
            block = slice(start, start + _BLOCK)
            spectrum = fft.rfft(framed[block] * window, axis=-1, overwrite_x=True)
            power = np.square(spectrum.real)
            power += np.square(spectrum.imag)
            if settings.power != 2:
                power **= np.float32(settings.power / 2)
            for filters, bins, weights in groups:
                mel[block, filters] = power[:, bins] @ weights
        if not np.isfinite(mel).all():
            raise ValueError("audio holds values that are not finite, or too large for float32")
    np.maximum(mel, np.float32(settings.floor), out=mel)
    np.log10(mel, out=mel)
    mel *= 10
    return mel


def file_features(
    path: str | os.PathLike, settings: FeatureSettings | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read an audio file and compute its features: what a feature store holds of it.

    Args:
      path: A wav or flac file.
      settings: Defaults to :class:`FeatureSettings`.

    Returns:
      As :func:`log_mel`, with samples after the bands where the settings say so, float32, shape
      ``[frames, columns]``; and the notes of :func:`read_audio`.

    Raises:
      DataError: As :func:`read_audio`; or the clip is shorter than one window.
    """
    settings = FeatureSettings() if settings is None else settings
    audio, notes = read_audio(path, settings.sample_rate)
    return audio_features(audio, settings.sample_rate, settings, name=path), notes


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
      DataError: The clip is shorter than one window, or holds values that are not finite.
    """
    audio = resample(np.asarray(audio, np.float32), sample_rate, settings.sample_rate)
    if audio.size < settings.n_fft:
        raise too_short(name, audio.size, settings)
    try:
        frames = log_mel(audio, settings)
        if settings.waveform:
            frames = np.concatenate([frames, waveform_frames(audio, settings)], axis=1)
        return frames
    except ValueError as error:
        raise DataError(name, str(error), "usable audio", "Replace the recording.") from None


def resample(audio: np.ndarray, sample_rate: int, target: int) -> np.ndarray:
    """Converts a waveform ``[samples]`` from one rate to another, both in hertz."""
    if sample_rate == target:
        return audio
    import librosa

    return librosa.resample(audio, orig_sr=sample_rate, target_sr=target)


def waveform_frames(audio: np.ndarray, settings: FeatureSettings) -> np.ndarray:
    """Samples ``[samples]`` of every frame, from its center to the next one's.

    Returns:
      float32, shape ``[frames, hop_length]``, zeros after the last sample.
    """
    hops = np.zeros((settings.frames(len(audio)), settings.hop_length), np.float32)
    hops.reshape(-1)[: len(audio)] = audio
    return hops


def too_short(path: str | os.PathLike, samples: int, settings: FeatureSettings) -> DataError:
    """The error for a clip of less than one window."""
    found = f"{samples} samples at {settings.sample_rate} Hz"
    expected = f"at least one window of {settings.n_fft}"
    return DataError(path, found, expected, "Remove the clip, or choose a shorter window.")
