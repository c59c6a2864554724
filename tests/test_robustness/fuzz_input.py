"""Random damage to recordings and tables: refused in one line, or taken with sane content.

    python -m tests.test_robustness.fuzz_input --seconds 600

Every input follows from its number, so a finding is repeated with ``--first N --count 1``. Inputs
are read in a child process of little memory and time: a crash or a hang of a library is a finding
too, with the number of the input that it happened at.
"""

import argparse
import io
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import soundfile

from asdproto.audio import decode, resample
from asdproto.data.attributes import read_attributes
from asdproto.data.dcase import name_fault, path_fault
from asdproto.data.table import read_table
from asdproto.errors import DataError
from asdproto.features import FeatureSettings, file_features, log_mel

SETTINGS = FeatureSettings(n_mels=4, n_fft=256, hop_length=256)
BATCH = 500  # inputs of a child process
SECONDS = 10  # that one input may take
MEMORY = 6 << 30  # bytes of address space; libraries map a few GB of it
_NUMBERS = (
    0,
    1,
    2,
    3,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
)
_TABLE = (
    "file,machine_type,section,domain,split,state,attributes\n"
    "a/1.wav,fan,00,source,train,normal,v_1\n"
    '"b, 2.wav","pump",01,target,test,anomaly,"v_""2"""\n'
)
_ATTRIBUTES = "file_name,d1p,d1v,d2p,d2v\nfan/train/a.wav,v,1,w,2\n'=b.wav,v,2\nc.wav,noAttribute\n"
_PIECES = (
    b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"\0", b"..", b"/", b"\\", b"=", b"'", b"@", b"\t",
    b";", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\x1b[2J", b"file",
    b"train", b".wav", b"d9p", b"a" * 200_000, b"9" * 5000, "²".encode(), "٣".encode(),
    "\u202e".encode(),
)  # fmt: skip


def _sound(rng: np.random.Generator, **how: object) -> bytes:
    channels = how.pop("channels", 1)
    stream = io.BytesIO()
    samples = rng.uniform(-0.5, 0.5, (600, channels))
    soundfile.write(stream, samples, how.pop("rate", 16000), **how)
    return stream.getvalue()


def sounds() -> list[bytes]:
    """Recordings without fault, of many kinds."""
    rng = np.random.default_rng(0)
    kinds = [
        *({"format": "WAV", "subtype": s} for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")),
        *({"format": "WAV", "subtype": s} for s in ("FLOAT", "DOUBLE", "ULAW", "ALAW")),
        *({"format": "WAV", "subtype": s} for s in ("IMA_ADPCM", "MS_ADPCM", "GSM610")),
        {"format": "WAV", "channels": 3, "rate": 44100},
        {"format": "WAV", "endian": "BIG"},
        {"format": "WAVEX", "channels": 2},
        {"format": "RF64"},
        {"format": "FLAC"},
        {"format": "FLAC", "subtype": "PCM_24", "channels": 2},
        {"format": "AIFF"},
        {"format": "OGG"},
        {"format": "MP3"},
    ]
    return [_sound(rng, **kind) for kind in kinds]


def damaged(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A copy with one to four random changes, most of them near the beginning."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(len(data) * rng.random() ** rng.integers(1, 9)) if data else 0
        kind = rng.integers(8)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.integers(8)
        elif kind == 1:
            data[at : at + 4] = struct.pack("<I", int(rng.choice(_NUMBERS)))
        elif kind == 2:
            data[at : at + 2] = rng.bytes(2)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 50))]
        elif kind == 5:
            data[at:at] = rng.bytes(int(rng.integers(1, 50)))
        elif kind == 6:
            data[at:at] = data[: int(rng.integers(1, 100))]
        else:
            other = others[rng.integers(len(others))]
            data[at:] = other[int(rng.integers(len(other))) :]
    return bytes(data)


def rewritten(content: bytes, rng: np.random.Generator) -> bytes:
    """A table with one to four pieces put into it, over it or taken out of it."""
    for _ in range(rng.integers(1, 5)):
        first, last = sorted(rng.integers(len(content) + 1, size=2).tolist())
        piece = _PIECES[rng.integers(len(_PIECES))]
        kind = rng.integers(4)
        if kind == 0:
            content = content[:first] + piece + content[first:]
        elif kind == 1:
            content = content[:first] + piece + content[min(last, first + 9) :]
        elif kind == 2:
            content = content[:first] + content[first:last] * 2 + content[last:]
        else:
            content = content[:first] + content[min(last, first + 20) :]
    return content


def check_refusal(error: DataError) -> None:
    """A message is one line that a terminal can show."""
    text = str(error)
    assert len(text.splitlines()) == 1, text
    assert text.isprintable(), text
    assert len(text) < 1000, len(text)


def check_sound(path: Path) -> str:
    """A recording is refused, or holds as many finite samples as it says."""
    try:
        samples, info = decode(path)
    except DataError as error:
        check_refusal(error)
        return "refused"
    assert samples.dtype == np.float32
    assert samples.shape == (info.samples,)
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() < 2**32
    if info.samples_at(16000) < 10**7:
        try:
            assert np.isfinite(file_features(path, SETTINGS)[0]).all()
        except DataError as error:
            check_refusal(error)
    return "taken"


def check_tables(path: Path) -> str:
    """A table is refused, or its clips are such that nothing else needs to check them."""
    try:
        clips, errors = read_table(path)
        for error in errors:
            check_refusal(error)
        for clip in clips:
            assert not clip.path.startswith("/")
            assert ".." not in clip.path.split("/")
            assert not name_fault(clip.machine_type)
            assert not name_fault(clip.section)
            assert not path_fault(clip.path)
            assert clip.split in ("train", "test")
        assert len({clip.path for clip in clips}) == len(clips)
    except DataError as error:
        check_refusal(error)
        errors = [error]
    try:
        for row in read_attributes(path):
            assert not any(char in row.attributes for char in "\0\n\r\x1b")
    except DataError as error:
        check_refusal(error)
    return "refused" if errors else "taken"


def attempt(number: int, folder: Path) -> str:
    """Makes and reads an input; says what became of it."""
    rng = np.random.default_rng([4, number])
    if number % 3 == 0:
        text = (_TABLE, _ATTRIBUTES)[number // 3 % 2]
        path = folder / "clips.csv"
        path.write_bytes(rewritten(text.encode(), rng))
        return "table " + check_tables(path)
    path = folder / ("x.wav", "x.flac")[number % 2]
    path.write_bytes(damaged(SOUNDS[rng.integers(len(SOUNDS))], rng, SOUNDS))
    return "recording " + check_sound(path)


SOUNDS = sounds()
# Loads the libraries here, as every child would load them again.
log_mel(resample(np.zeros(1000, np.float32), 8000, 16000), SETTINGS)


def _child(numbers: range, folder: Path, out: int) -> None:
    """Tries some inputs, and writes the number of each and what became of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a hang ends the process
    for number in numbers:
        os.write(out, f"{number} ".encode())
        signal.alarm(SECONDS)
        try:
            said = attempt(number, folder)
        except BaseException:
            said = "FINDING " + traceback.format_exc(limit=-3).replace("\n", " | ")
        signal.alarm(0)
        os.write(out, f"{said}\n".encode())


def run(numbers: range) -> dict[str, int]:
    """Tries inputs in a child process; counts what became of them; findings begin with FINDING."""
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        while numbers:
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(read)
                try:
                    _child(numbers, Path(folder), write)
                finally:
                    os._exit(0)
            os.close(write)
            with os.fdopen(read) as stream:
                lines = stream.read().splitlines()
            _, status = os.waitpid(child, 0)
            last = int(lines[-1].split()[0])
            if status:
                lines[-1] += f" FINDING the process ended with status {status}"
            for line in lines:
                number, _, said = line.partition(" ")
                key = f"{said} (input {number})" if "FINDING" in said else said
                counts[key] = counts.get(key, 0) + 1
            numbers = range(last + 1, numbers.stop)
    return counts


def main() -> None:
    """Tries inputs for a while and prints what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=sys.maxsize)
    options = parser.parse_args()
    total: dict[str, int] = {}
    number, stop = options.first, options.first + options.count
    end = time.monotonic() + options.seconds
    while number < stop and time.monotonic() < end:
        batch = range(number, min(number + BATCH, stop))
        for said, count in run(batch).items():
            total[said] = total.get(said, 0) + count
            if "FINDING" in said:
                print(said, flush=True)
        number = batch.stop
    print(f"{number - options.first} inputs:", *(f"{n} {s}" for s, n in total.items()), sep="\n  ")


if __name__ == "__main__":
    main()
