"""One channel of a wav or flac file, and what there is to say of it.

Nothing that a decoder forgives is taken in silence: a file is whole, or refused.
"""

import atexit
import io
import os
import shutil
import stat
import tempfile
from typing import Any, BinaryIO, Literal

import numpy as np

from asdproto.audio_info import AudioInfo, describe_samples
from asdproto.errors import DataError

# What a recording can be.
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC")
# How files begin that are decoded, and those that libsndfile would read, but we do not.
_WAVS = (b"RIFF", b"RIFX", b"RF64")
_TAKEN = (*_WAVS, b"fLaC", b"ID3")
_OTHERS = {b"OggS": "OGG", b"FORM": "AIFF", b".snd": "AU", b"dns.": "AU", b"riff": "W64"}
RATES = 4_000, 384_000
_LOUDEST = 2.0**32
_MOST_SAMPLES = 2**28
_MOST_CHUNKS = 1000  # that a wav file may have before its samples
_STREAMED = 0x7FFF0000  # bytes of samples that no file of this size was meant to hold
_PIECE = 2**20  # samples of a stream that are read at a time
_UNKNOWN = 2**63 - 1  # samples, of a flac file whose writer did not know


def decode(path: str | os.PathLike) -> tuple[np.ndarray, AudioInfo]:
    """Read one channel of an audio file as it was recorded, and see that it is whole.

    The channel is the first that is not 60 dB below the loudest: a dead one is passed over.

    Args:
      path: A wav or flac file.

    Returns:
      Samples, full scale 1, float32, shape ``[samples]``; and what there is to say of them.

    Raises:
      DataError: The file is missing, unreadable, no wav or flac file, empty, truncated, damaged, or
        holds what no microphone records: rates outside 4 to 384 kHz, values that are not finite or
        beyond every sample format.
    """
    import soundfile

    mended = _check_file(path)
    try:
        # Names need not be UTF-8.
        with soundfile.SoundFile(mended or os.fsencode(path)) as file:
            rate, channels, expected = file.samplerate, file.channels, file.frames
            # int16 gives the same numbers as float32, three times as fast.
            dtype = "int16" if file.subtype == "PCM_16" else "float32"
            audio = _read(path, file, dtype)
    # A suffix such as .raw makes a TypeError.
    except (OSError, TypeError, soundfile.SoundFileError) as error:
        raise _undecodable(path, _reason(error)) from None
    if not len(audio):
        raise DataError(path, "no samples", "a recording", "Replace or remove the file.")
    if expected not in (len(audio), _UNKNOWN):
        raise _truncated(path, f"{len(audio)} samples", f"{expected} samples")
    channel = 0 if channels == 1 else _loud_channel(audio)
    if dtype == "int16":
        taken = np.multiply(audio[:, channel], np.float32(2**-15), dtype=np.float32)
    else:
        taken = np.ascontiguousarray(audio[:, channel])
        if not np.abs(taken).max() < _LOUDEST:  # also where it is not a number
            found = "samples that are not finite, or far beyond full scale"
            raise DataError(path, found, "finite samples", "Replace or repair the file.")
    return taken, describe_samples(taken, rate, channels=channels, channel=channel)


def _loud_channel(audio: np.ndarray) -> int:
    """First channel of ``[samples, channels]`` within 60 dB of the loudest."""
    with np.errstate(over="ignore", invalid="ignore"):
        power = np.var(audio, axis=0, dtype=np.float64)
    return int(np.argmax(power >= 1e-6 * np.max(power)))


def _check_file(path: str | os.PathLike) -> io.BytesIO | None:
    """Refuse what is no regular file, and wav files that end before their samples do.

    Opening a pipe would wait for a writer; libsndfile forgives a cut wav file in silence.

    Returns:
      The file with a header that libsndfile understands, ``None`` where its own is such.
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
            return _check_wav(path, stream, head) if head in _WAVS else None
    except OSError as error:
        found = f"no readable file ({error.strerror})"
        remedy = "Check the path and its permissions."
        raise DataError(path, found, "a wav or flac file", remedy) from None


def _check_wav(path: str | os.PathLike, stream: BinaryIO, magic: bytes) -> io.BytesIO | None:
    """As :func:`_check_file`, of a wav file whose first four bytes were read."""
    size = os.fstat(stream.fileno()).st_size
    order: Literal["little", "big"] = "big" if magic == b"RIFX" else "little"
    whole = 8 + int.from_bytes(stream.read(4), order)
    position, long_length = 12, 0
    for _ in range(_MOST_CHUNKS):
        stream.seek(position)
        name, length = stream.read(4), int.from_bytes(stream.read(4), order)
        position += 8
        if name == b"data" or position >= size:
            break
        if name == b"ds64":
            long_length = int.from_bytes(stream.read(16)[8:], "little")
        position += length + length % 2
    if name != b"data":
        return None
    if magic == b"RF64" and length == 0xFFFFFFFF:
        length = long_length
    left = size - position
    # A writer that streams leaves 0 or a very large number; one that counts wrongly may still
    # know where the file ends.
    if left < length < _STREAMED and not 8 < whole <= size:
        found = f"{left} bytes of audio"
        raise _truncated(path, found, f"{length} bytes as its header says")
    if length == 0 and left > 8:
        follows = stream.read(8)
        if 8 + int.from_bytes(follows[4:], order) not in (left, left - 1):  # no other chunk
            stream.seek(0)
            content = bytearray(stream.read())
            content[position - 4 : position] = left.to_bytes(4, order)
            return io.BytesIO(content)
    return None


def _read(path: str | os.PathLike, file: Any, dtype: str) -> np.ndarray:
    """Read an open file whose header is that of a recording, ``[samples, channels]``."""
    import soundfile

    if file.format not in _FORMATS:
        raise _foreign(path, file.format)
    if not RATES[0] <= file.samplerate <= RATES[1]:
        found, expected = f"{file.samplerate} Hz", f"{RATES[0]} to {RATES[1]} Hz"
        raise DataError(path, found, expected, "Correct the header, or convert the file.")
    most = _MOST_SAMPLES // file.channels
    if file.frames != _UNKNOWN and file.frames > most:
        raise _too_long(path, f"{file.frames} samples", most)
    try:
        if file.frames != _UNKNOWN:  # the count is said, as some codings cannot be sought in
            return file.read(file.frames, dtype=dtype, always_2d=True)
        file.seekable = lambda: False  # libsndfile fails to seek to an end that it does not know
        pieces: list[np.ndarray] = []
        while not pieces or len(pieces[-1]) == _PIECE:
            pieces.append(file.read(_PIECE, dtype=dtype, always_2d=True))
            if len(pieces) * _PIECE > most:
                raise _too_long(path, f"more than {most} samples", most)
        return np.concatenate(pieces)
    except soundfile.SoundFileError as error:
        found = f"decoding ends early ({_reason(error)})"
        raise _truncated(path, found, "all of its samples") from None


def _too_long(path: str | os.PathLike, found: str, most: int) -> DataError:
    expected = f"at most {most} in each of its channels"
    return DataError(path, found, expected, "Cut it into clips.")


def _foreign(path: str | os.PathLike, kind: str) -> DataError:
    remedy = "Convert it: its name alone does not make it one."
    return DataError(path, f"{kind} audio", "a wav or flac file", remedy)


def _undecodable(path: str | os.PathLike, reason: str) -> DataError:
    found = f"{os.path.getsize(path)} bytes that do not decode ({reason})"
    remedy = "Copy or download it again, or convert it."
    return DataError(path, found, "a wav or flac file", remedy)


def _truncated(path: str | os.PathLike, found: str, expected: str) -> DataError:
    remedy = "Copy or download it again."
    return DataError(path, f"a truncated or damaged file, {found}", expected, remedy)


def _reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2].rstrip(".")


def read_audio(path: str | os.PathLike, sample_rate: int = 16000) -> tuple[np.ndarray, AudioInfo]:
    """Read one channel of an audio file at the wanted rate, hertz; otherwise as :func:`decode`."""
    samples, info = decode(path)
    return resample(samples, info.sample_rate, sample_rate), info


def resample(audio: np.ndarray, sample_rate: int, target: int) -> np.ndarray:
    """Convert a waveform ``[samples]`` from one rate to another, both in hertz."""
    if sample_rate == target:
        return audio
    return import_librosa().resample(audio, orig_sr=sample_rate, target_sr=target)


def import_librosa() -> Any:
    """librosa, also where numba, which it compiles with, finds no folder for its cache."""
    import librosa

    try:
        _ = librosa.resample, librosa.filters.mel  # it loads its modules when they are used
    except RuntimeError:
        import numba

        folder = tempfile.mkdtemp(prefix="numba-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]
    return librosa
