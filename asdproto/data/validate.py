"""Everything that is wrong, or worth knowing, about a collection before hours are spent on it.

Extraction refuses what is an error here, by the same functions, and takes everything else.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from asdproto.audio import decode
from asdproto.audio_info import AudioInfo
from asdproto.data.collection import Collection
from asdproto.data.dcase import Clip
from asdproto.data.parallel import parallel
from asdproto.data.problems import Notice, copies, overlong
from asdproto.errors import DataError, counted
from asdproto.features import FeatureSettings, too_short


def validate(collection: Collection, *, settings: FeatureSettings | None = None) -> list[DataError]:
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
    return sorted(problems, key=lambda one: (isinstance(one, Notice), one.file, one.found))


def _recordings(collection: Collection, settings: FeatureSettings) -> Iterator[DataError]:
    """What only the recordings say: damaged, short, silent, copies, other rates and lengths."""

    def listen(clip: Clip) -> tuple[AudioInfo, bytes] | DataError:
        try:
            audio, info = decode(collection.root / clip.path)
            samples = info.samples_at(settings.sample_rate)
            if samples < settings.n_fft:
                raise too_short(clip.path, samples, settings)
        except DataError as error:
            return error.at(clip.path)
        return info, hashlib.blake2b(audio.data, digest_size=16).digest()

    frames: dict[str, int] = {}
    alike: dict[bytes, list[Clip]] = defaultdict(list)
    infos: dict[str, dict[str, AudioInfo]] = defaultdict(dict)
    for clip, heard in zip(collection.clips, parallel(listen, collection.clips), strict=True):
        if isinstance(heard, DataError):
            yield heard
            continue
        info, digest = heard
        for said in info.faults():
            remedy = "Nothing to do if it was recorded so; else check the microphone."
            yield Notice(clip.path, said, "a recording of the machine at work", remedy)
        if not info.is_constant:  # silence is no copy of silence
            alike[digest].append(clip)
        frames[clip.path] = settings.frames(info.samples_at(settings.sample_rate))
        infos[clip.machine_type][clip.path] = info
    yield from overlong(frames)
    yield from copies(alike)
    for machine_type, known in sorted(infos.items()):
        yield from _mixtures(machine_type, known, settings.sample_rate)


def _mixtures(
    machine_type: str, infos: Mapping[str, AudioInfo], sample_rate: int
) -> Iterator[DataError]:
    """Rates, channels and lengths that differ within a machine type, or from what is wanted."""
    rates = _grouped(infos, lambda info: info.sample_rate)
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
        yield Notice(paths[0], found, f"{sample_rate} Hz throughout", remedy)
    for number, paths in sorted(_grouped(infos, lambda info: info.channels).items()):
        if number > 1:
            found = f"{number} channels in {counted(len(paths), 'recording')} of {machine_type}"
            yield Notice(paths[0], found, "one channel", "Nothing to do: one channel is taken.")
    lengths = _grouped(infos, lambda info: round(info.seconds, 1))
    if len(lengths) > 1:
        # One example, of the length that occurs least.
        rarest = min(lengths, key=lambda seconds: (len(lengths[seconds]), seconds))
        some = f"{rarest:g} in {counted(len(lengths[rarest]), 'recording')}"
        found = f"{machine_type} clips of {_listed(sorted(lengths))} seconds; {some}"
        remedy = "Nothing to do if they were recorded so: each is used in full."
        yield Notice(lengths[rarest][0], found, "one length for each machine type", remedy)


def _grouped(
    infos: Mapping[str, AudioInfo], number_of: Callable[[AudioInfo], float]
) -> dict[float, list[str]]:
    """Paths of recordings by one number that describes them."""
    groups: dict[float, list[str]] = defaultdict(list)
    for path, info in infos.items():
        groups[number_of(info)].append(path)
    return groups


def _listed(values: Iterable[float]) -> str:
    words = [f"{value:g}" for value in values]
    if len(words) > 6:
        return f"{words[0]} to {words[-1]}"
    return ", ".join([*words[:-2], " and ".join(words[-2:])])
