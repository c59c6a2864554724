"""Everything that is wrong, or worth knowing, about a collection before hours are spent on it.

Extraction refuses what is an error here, by the same functions, and takes everything else.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from asdproto.audio import decode
from asdproto.audio_info import AudioInfo
from asdproto.data.collection import Collection
from asdproto.data.dcase import Clip
from asdproto.data.parallel import parallel
from asdproto.data.problems import Problem, as_problem, copies, notice
from asdproto.data.store import MOST_PADDED, overlong
from asdproto.errors import DataError, counted
from asdproto.features import FeatureSettings, too_short


def validate(collection: Collection, *, settings: FeatureSettings | None = None) -> list[Problem]:
    """List every problem of a collection; reads every recording.

    Args:
      collection: What :func:`asdproto.data.collection.read_collection` returned.
      settings: The features that the recordings are wanted for; they set the sample rate and the
        shortest usable clip.

    Returns:
      Errors first, then notices, each sorted by file; empty for a collection without fault.
    """
    settings = FeatureSettings() if settings is None else settings
    problems = [*collection.problems, *_recordings(collection, settings)]
    return sorted(problems, key=lambda problem: (not problem.is_error, problem.file, problem.found))


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a recording turns out to be."""

    info: AudioInfo
    frames: int
    digest: bytes


def _listen(file: Path, settings: FeatureSettings) -> _Heard | DataError:
    try:
        audio, info = decode(file)
        samples = info.samples_at(settings.sample_rate)
        if samples < settings.n_fft:
            raise too_short(file, samples, settings)
    except DataError as error:
        return error
    digest = hashlib.blake2b(audio.data, digest_size=16).digest()
    return _Heard(info, settings.frames(samples), digest)


def _recordings(collection: Collection, settings: FeatureSettings) -> Iterator[Problem]:
    """What only the recordings say: damaged, short, silent, copies, other rates and lengths."""
    frames: dict[str, int] = {}
    alike: dict[bytes, list[Clip]] = defaultdict(list)
    infos: dict[str, dict[str, AudioInfo]] = defaultdict(dict)

    def listen(clip: Clip) -> _Heard | DataError:
        return _listen(collection.root / clip.path, settings)

    for clip, heard in zip(collection.clips, parallel(listen, collection.clips), strict=True):
        if isinstance(heard, DataError):
            yield as_problem(heard, clip.path)
            continue
        for said in heard.info.faults():
            remedy = "Nothing to do if it was recorded so; else check the microphone."
            yield notice(clip.path, said, "a recording of the machine at work", remedy)
        if not heard.info.is_constant:  # silence is no copy of silence
            alike[heard.digest].append(clip)
        frames[clip.path] = heard.frames
        infos[clip.machine_type][clip.path] = heard.info
    yield from padded(frames)
    yield from copies(alike)
    for machine_type, known in sorted(infos.items()):
        yield from _mixtures(machine_type, known, settings.sample_rate)


def _mixtures(
    machine_type: str, infos: Mapping[str, AudioInfo], sample_rate: int
) -> Iterator[Problem]:
    """Rates, channels and lengths that differ within a machine type, or from what is wanted."""
    rates = _grouped(infos, "sample_rate")
    for rate, paths in sorted(rates.items()):
        if rate == sample_rate and len(rates) == 1:
            continue
        found = f"{rate} Hz in {counted(len(paths), 'recording')} of {machine_type}"
        remedy = "Nothing to do: they are resampled."
        if others := sorted({*rates} - {rate}):
            found += f", others at {_listed(others)} Hz"
            remedy = (
                "Nothing to do: recordings at other rates are resampled. If only some of a "
                "machine type's are, a model may learn the rate instead of the machine."
            )
        yield notice(paths[0], found, f"{sample_rate} Hz throughout", remedy)
    for number, paths in sorted(_grouped(infos, "channels").items()):
        if number > 1:
            recordings = counted(len(paths), "recording")
            found = f"{number} channels in {recordings} of {machine_type}"
            yield notice(paths[0], found, "one channel", "Nothing to do: one channel is taken.")
    lengths = _grouped(infos, "tenths")
    if len(lengths) > 1:
        # One example, of the length that occurs least.
        rarest = min(lengths, key=lambda tenths: (len(lengths[tenths]), tenths))
        seconds = _listed(tenths / 10 for tenths in sorted(lengths))
        some = f"{rarest / 10:g} in {counted(len(lengths[rarest]), 'recording')}"
        found = f"{machine_type} clips of {seconds} seconds; {some}"
        remedy = "Nothing to do if they were recorded so: each is used in full."
        yield notice(lengths[rarest][0], found, "one length for each machine type", remedy)


def _grouped(infos: Mapping[str, AudioInfo], what: str) -> dict[int, list[str]]:
    """Paths of recordings by one number that describes them."""
    groups: dict[int, list[str]] = defaultdict(list)
    for path, info in infos.items():
        value = round(10 * info.seconds) if what == "tenths" else getattr(info, what)
        groups[value].append(path)
    return groups


def padded(frames: Mapping[str, int]) -> Iterator[Problem]:
    """Clips that are too long to stand in one store with the others, from their lengths."""
    for path in overlong(frames):
        found = f"{frames[path]} frames, much longer than the other clips"
        expected = f"lengths that padding makes at most {MOST_PADDED} times as much of"
        yield Problem(path, found, expected, "Cut it into clips, or remove it.")


def _listed(values: Iterable[float]) -> str:
    words = [f"{value:g}" for value in values]
    if len(words) > 6:
        return f"{words[0]} to {words[-1]}"
    return ", ".join([*words[:-2], " and ".join(words[-2:])])
