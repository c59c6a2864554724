"""What a :class:`asdproto.systems.detector.Detector` is given: files, waveforms, what is known."""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asdproto.audio_info import AudioInfo, describe_samples
from asdproto.config import ConfigError, between
from asdproto.data.collection import read_collection, walk
from asdproto.data.dataset import ClipArrays
from asdproto.data.dcase import Clip, name_fault, parse_name
from asdproto.data.identity import Stamp, stamp_of
from asdproto.data.store import FeatureStore, Row
from asdproto.errors import DataError
from asdproto.features import FeatureSettings, audio_features, file_features
from asdproto.files import checksum

Clips = str | os.PathLike | Sequence[str | os.PathLike | np.ndarray] | np.ndarray
# One for all clips, one a clip, or unknown.
PerClip = str | Sequence[str] | None
DOMAINS = ("source", "target", "")
_RATES = between(1_000, 384_000)  # hertz
_SEEDS = between(0, 2**32 - 1)
_LOUDEST = 2.0**32  # beyond every sample format
_KNOWN = {"section": "00", "machine_type": "machine", "domain": "", "attributes": ""}


def check_rate(sample_rate: Any) -> int:
    """A sample rate, hertz.

    Raises:
      ConfigError: It is none.
    """
    if not _is_number(sample_rate) or sample_rate not in _RATES or sample_rate % 1:
        expected = f"a whole number of hertz in {_RATES}"
        raise ConfigError(f"sample_rate={sample_rate!r}: expected {expected}")
    return int(sample_rate)


def check_contamination(share: Any) -> float:
    """The quantile of normal clips' scores above which so large a share of them lies.

    Raises:
      ConfigError: It is no share.
    """
    quantile = round(1 - float(share), 12) if _is_number(share) else 0.0
    if not 0 < quantile < 1:
        raise ConfigError(f"contamination={share!r}: expected a share of normal clips in (0, 1)")
    return quantile


def check_seeds(seed: Any) -> list[int]:
    """A seed, or several, as a list.

    Raises:
      ConfigError: They are none.
    """
    seeds = seed if isinstance(seed, Sequence) else [seed]
    known = all(_is_number(one) and one in _SEEDS and one % 1 == 0 for one in seeds)
    if not known or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seed={seed!r}: expected a whole number in {_SEEDS}, or different ones")
    return [int(one) for one in seeds]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def sources_of(clips: Clips) -> list[tuple[str, Any]]:
    """What each clip is called, and its path or waveform; of a folder, its recordings."""
    if isinstance(clips, str | os.PathLike):
        folder = Path(clips)
        clips = [folder / name for name in walk(folder)[0]] if folder.is_dir() else [folder]
    if not isinstance(clips, Sequence | np.ndarray):
        raise ConfigError(f"X is a {type(clips).__name__}: expected paths or waveforms")
    return [
        (str(one), one)
        if isinstance(one, str | os.PathLike)
        else (f"waveform {index}", np.asarray(one))
        for index, one in enumerate(clips)
    ]


def stamp(source: Any) -> Stamp:
    """What tells a file, or a waveform, from another."""
    if isinstance(source, np.ndarray):
        return len(source), checksum(source)
    return stamp_of(Path(source))


def features_of(
    source: Any, name: str, sample_rate: int | None, settings: FeatureSettings
) -> tuple[np.ndarray, AudioInfo]:
    """Features of a file, or of a waveform at a rate in hertz; and what is known of its audio.

    Raises:
      DataError: It cannot be used; the message calls it by its name.
      ConfigError: A waveform comes without a sample rate.
    """
    if not isinstance(source, np.ndarray):
        return file_features(source, settings)
    if sample_rate is None:
        raise ConfigError("waveforms need their sample_rate, in hertz")
    if source.ndim != 1 or not np.issubdtype(source.dtype, np.floating):
        raise DataError(
            name,
            f"shape {list(source.shape)} and dtype {source.dtype}",
            "floating samples of full scale 1, shape [samples]",
            "Take one channel, and divide integers by their full scale.",
        )
    if not np.abs(source).max(initial=0.0) < _LOUDEST:  # also where it is not a number
        found = "samples that are not finite, or far beyond full scale"
        raise DataError(name, found, "finite samples", "Replace or scale the waveform.")
    features = audio_features(source, sample_rate, settings, name=name)
    return features, describe_samples(np.asarray(source, np.float32), sample_rate)


def clip_of(
    name: str,
    known: Sequence[tuple[str, str]],
    machine_type: str | None = None,
    section: str | None = None,
) -> Clip:
    """What is known of a recording by its name.

    Args:
      name: Its path, or any name.
      known: Machine types and sections, one of which it is of.
      machine_type: That of the nearest known folder above when ``None``, or the only one.
      section: Taken from the name when ``None``, or the machine type's only one.

    Raises:
      DataError: It is not known which of them it is of.
    """
    path = Path(name)
    domain, state = "", ""
    with contextlib.suppress(DataError):
        parsed = parse_name(path)
        section, domain, state = section or parsed.section, parsed.domain, parsed.state
    machines = {machine for machine, _ in known}
    if machine_type is None:
        above = (folder.name for folder in path.absolute().parents)
        only = next(iter(machines)) if len(machines) == 1 else None
        machine_type = next((folder for folder in above if folder in machines), only)
    sections = [number for machine, number in known if machine == machine_type]
    if section is None and len(sections) == 1:
        section = sections[0]
    if machine_type is None or section is None or (machine_type, section) not in known:
        raise DataError(
            name,
            f"machine type {machine_type or 'unknown'}, section {section or 'unknown'}",
            "one of " + ", ".join(f"{machine} {number}" for machine, number in known),
            "Say which one with --machine-type and --section.",
        )
    return Clip(name, machine_type, section, domain, "test", state, "")


def per_clip(value: Any, clips: int, name: str, known: Sequence[str] = ()) -> list[str | None]:
    """One value a clip, ``None`` where it is not said.

    Raises:
      ConfigError: Another number of values, or one that is no text or not among those known.
    """
    if value is None or isinstance(value, str):
        value = [value] * clips
    if not isinstance(value, Iterable):
        raise ConfigError(f"{name}={value!r}: expected a text, or one a clip")
    values = list(value)
    if len(values) != clips:
        raise ConfigError(f"{name} has {len(values)} values for {clips} clips: expected one a clip")
    for index, one in enumerate(values):
        if one is not None and (not isinstance(one, str) or (known and one not in known)):
            expected = f"one of {', '.join(map(repr, known))}" if known else "a text"
            raise ConfigError(f"{name} of clip {index} is {one!r}: expected {expected}")
    return values


def training_clips(
    clips: Clips, labels: Any, columns: Mapping[str, PerClip]
) -> tuple[list[Clip], list[Any]]:
    """Training clips, and the file or the waveform of each.

    Args:
      clips: Files, waveforms, or the path of a collection, whose training clips are taken.
      labels: 0 for normal clips, 1 for anomalies, which are left out; all are normal when ``None``.
      columns: Field of :class:`asdproto.data.dcase.Clip` -> its values.
    """
    if isinstance(clips, str | os.PathLike):
        if labels is not None or any(value is not None for value in columns.values()):
            raise ConfigError("a collection says itself what its clips are: expected X alone")
        collection = read_collection(clips)
        collection.check()
        chosen = [clip for clip in collection.clips if clip.split == "train"]
        return chosen, [collection.root / clip.path for clip in chosen]
    sources = sources_of(clips)
    if not sources:
        raise DataError("X", "no clips", "normal clips", "Give recordings or waveforms.")
    values = {
        name: per_clip(value, len(sources), name, DOMAINS if name == "domain" else ())
        for name, value in columns.items()
    }
    normal = np.ones(len(sources), bool)
    if labels is not None:
        normal = labels_of(labels, len(sources)) == 0
    rows, made = np.flatnonzero(normal).tolist(), []
    for index in rows:
        (name, source), known, state = sources[index], dict(_KNOWN), "normal"
        if not isinstance(source, np.ndarray):
            with contextlib.suppress(DataError):  # any name will do
                parsed = parse_name(source)
                known |= {field: getattr(parsed, field) or text for field, text in known.items()}
                state = parsed.state or state
        known |= {field: str(own[index]) for field, own in values.items() if own[index]}
        for field in ("machine_type", "section"):
            if expected := name_fault(known[field]):
                raise ConfigError(
                    f"{field} of clip {index} is {known[field]!r}: expected {expected}"
                )
        made.append(Clip(path=name, split="train", state=state, **known))
    if not made:
        raise DataError("y", "anomalies only", "normal clips", "Give clips to train on.")
    return made, [sources[index][1] for index in rows]


def labels_of(labels: Any, clips: int) -> np.ndarray:
    """Labels of clips, int64 ``[clips]``: 0 for normal, 1 for anomalies.

    Raises:
      ConfigError: They are something else.
    """
    labels = np.asarray(labels)
    if labels.shape != (clips,) or not np.isin(labels, (0, 1)).all():
        raise ConfigError(f"y has shape {list(labels.shape)}: expected 0 or 1 for {clips} clips")
    return labels.astype(np.int64)


def memory_store(
    clips: Sequence[Clip],
    found: Sequence[tuple[np.ndarray, AudioInfo]],
    settings: FeatureSettings,
) -> FeatureStore:
    """A feature store in memory, of the precision of one on disk, of what `features_of` says."""
    stacked = stack([array.astype(np.float16) for array, _ in found])
    rows = zip(clips, stacked.frames, found, strict=True)
    return FeatureStore(
        root=Path("X"),
        features=stacked.features,
        rows=[Row(clip, int(frames), 0, audio=audio) for clip, frames, (_, audio) in rows],
        settings=dict(vars(settings)),
        manifest={},
    )


def stack(arrays: Sequence[np.ndarray]) -> ClipArrays:
    """Clips of several lengths as one array, zeros after a clip's end."""
    frames = np.array([len(array) for array in arrays])
    features = np.zeros((len(arrays), frames.max(), arrays[0].shape[1]), arrays[0].dtype)
    for row, array in zip(features, arrays, strict=True):
        row[: len(array)] = array
    return ClipArrays(features, np.arange(len(arrays)), frames, 1)
