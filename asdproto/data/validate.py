"""Everything that is wrong, or worth knowing, about a collection before hours are spent on it.

Extraction refuses what is an error here, by the same functions, and takes everything else.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from asdproto import features
from asdproto.data import dcase
from asdproto.data.attributes import AttributeRow, disagreement, read_attributes
from asdproto.data.dcase import AUDIO_SUFFIXES, SPLIT_FOLDERS, Clip
from asdproto.data.store import MOST_PADDED, overlong
from asdproto.data.table import TABLE_NAME, plain_clips, survey_collection
from asdproto.errors import DataError, counted, describe

ERROR, NOTICE = "error", "notice"
_OTHER_AUDIO = (".aac", ".aif", ".aiff", ".au", ".m4a", ".mp3", ".ogg", ".opus", ".wma")
_ARCHIVES = (".7z", ".gz", ".rar", ".tar", ".tgz", ".zip")
_READERS = 4  # threads; decoding and hashing leave the interpreter free


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as expected.

    Attributes:
      file: The file, folder, place in a csv or section, relative to the collection's root.
      found: What is there.
      expected: What should be there.
      remedy: What to do about it.
      severity: ``"error"``, or ``"notice"`` for what is handled and only said.
    """

    file: str
    found: str
    expected: str
    remedy: str
    severity: str = ERROR

    @property
    def is_error(self) -> bool:
        """Whether the collection cannot be used as it is."""
        return self.severity == ERROR

    def __str__(self) -> str:
        said = describe(self.file, self.found, self.expected, self.remedy)
        return f"{self.severity}: {said}"


def validate(
    root: str | os.PathLike, *, settings: features.FeatureSettings | None = None
) -> list[Problem]:
    """List every problem of a collection; reads every recording.

    Args:
      root: What :func:`asdproto.data.table.load_collection` takes: a folder laid out as DCASE
        Task 2 lays out its data, a folder with ``clips.csv``, or such a csv.
      settings: The features that the recordings are wanted for; they set the sample rate and the
        shortest usable clip.

    Returns:
      Errors first, then notices, each sorted by file; empty for a collection without fault.
    """
    settings = features.FeatureSettings() if settings is None else settings
    try:
        root, clips, problems = survey(root)
    except DataError as error:
        return [_problem(error)]
    problems += _recordings(root, clips, settings)
    return sorted(problems, key=lambda problem: (not problem.is_error, problem.file, problem.found))


def survey(root: str | os.PathLike) -> tuple[Path, list[Clip], list[Problem]]:
    """Read a collection, and list what is wrong with names, folders, tables and labels.

    Args:
      root: As for :func:`validate`.

    Returns:
      The root that the clips' paths are relative to; the clips, without the supplemental ones,
      which nothing reads; and the problems.

    Raises:
      DataError: Nothing can be read.
    """
    folder, clips, errors = survey_collection(root)
    problems = [_problem(error) for error in errors]
    if not clips and not errors:
        expected = "recordings, <machine type>/{train,test}/<name>.wav"
        problems.append(Problem(str(root), "no .wav or .flac file", expected, "Check the path."))
    described = folder != Path(root) or os.path.isfile(folder / TABLE_NAME)
    if not described:
        problems += [*_folders(folder), *_attribute_files(folder, clips)]
        if plain_clips(folder, lambda error: None):  # said already
            found = f"{_count([clip.path for clip in clips])} whose names follow no layout"
            expected = "names of DCASE Task 2, or a csv of clips"
            machine = clips[0].machine_type
            remedy = f"Nothing to do: they are taken as normal training clips of {machine}."
            problems.append(_notice(str(folder), found, expected, remedy))
    # A csv tells clips apart by their paths; only the official score files cannot.
    problems += _same_names(clips, NOTICE if described else ERROR)
    clips = [clip for clip in clips if clip.split != "supplemental"]
    problems += labels(clips)
    return folder, clips, list(dict.fromkeys(problems))


def leave_out(clips: Iterable[Clip], files: Collection[str]) -> list[Clip]:
    """Clips that no error concerns; ``files`` is :attr:`Problem.file` of the errors."""
    return [clip for clip in clips if clip.path not in files and _section(clip) not in files]


def _section(clip: Clip) -> str:
    return f"{clip.machine_type} section {clip.section}"


def _problem(error: DataError) -> Problem:
    return Problem(error.file, error.found, error.expected, error.remedy)


def _notice(file: str, found: str, expected: str, remedy: str) -> Problem:
    return Problem(file, found, expected, remedy, NOTICE)


def _folders(root: Path) -> Iterator[Problem]:
    """Empty folders, and files that look like recordings and are not read."""
    for prefix, folders, names in dcase.visible(root, lambda error: None):  # said already
        audio = [name for name in names if name.lower().endswith(AUDIO_SUFFIXES)]
        if prefix and not audio and not folders:
            here = prefix.rstrip("/")
            found = "no recording in it" if names else "an empty folder"
            severity = ERROR if here.rpartition("/")[2].lower() in SPLIT_FOLDERS else NOTICE
            yield Problem(here, found, "recordings", "Add them, or remove the folder.", severity)
        for name in names:
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in _OTHER_AUDIO:
                found, remedy = f"a {suffix} file, which is not read", "Convert it, or remove it."
                yield _notice(prefix + name, found, ".wav or .flac", remedy)
            elif suffix in _ARCHIVES:
                found, remedy = "an archive, which is not read", "Unpack it unless that is done."
                yield _notice(prefix + name, found, "its files", remedy)


def _attribute_files(root: Path, clips: list[Clip]) -> Iterator[Problem]:
    """Rows that name no clip, name one twice, or contradict its name."""
    split = root.resolve().name
    by_name = dcase.clips_by_name(clips)
    for folder, files in dcase.attribute_files(root, clips).items():
        for file in files:
            where = Path(os.path.relpath(file, root)).as_posix()
            try:
                rows = read_attributes(file)
            except DataError as error:
                yield _problem(error.at(where + error.file.removeprefix(str(file))))
                continue
            seen: dict[str, int] = {}
            for row in rows:
                if where.startswith("..") and PurePosixPath(row.file).parent.name != split:
                    continue  # the root is one split's folder, the file beside it is of all
                place = f"{where}: line {row.line}"
                if row.file in seen:
                    found = f"{row.file!r} a second time"
                    expected = f"each file once; line {seen[row.file]} has it already"
                    yield _notice(place, found, expected, "Remove one of the lines.")
                seen.setdefault(row.file, row.line)
                named = dcase.clips_of(row, folder, by_name)
                if not named:
                    found = f"the file {row.file!r}, which is not there"
                    expected = "a recording of this machine type"
                    yield Problem(place, found, expected, "Add the recording, or remove the line.")
                for clip in named:
                    yield from _contradiction(place, row, clip)


def _contradiction(place: str, row: AttributeRow, clip: Clip) -> Iterator[Problem]:
    in_name = dcase.parse_name(clip.name).attributes
    text, only_keys = disagreement(row, in_name) if in_name else ("", True)
    if text:
        expected = f"the attributes in the name, {in_name!r}"
        remedy = "The name is what counts; correct the line or remove it."
        yield Problem(place, text, expected, remedy, NOTICE if only_keys else ERROR)


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a recording turns out to be."""

    info: features.AudioInfo
    frames: int
    constant: bool
    digest: bytes


def _listen(file: Path, settings: features.FeatureSettings) -> _Heard | DataError:
    try:
        audio, info = features.decode(file)
        samples = info.samples_at(settings.sample_rate)
        if samples < settings.n_fft:
            raise features.too_short(file, samples, settings)
    except DataError as error:
        return error
    digest = hashlib.blake2b(audio.data, digest_size=16).digest()
    return _Heard(info, settings.frames(samples), features.is_constant(audio), digest)


def _recordings(
    root: Path, clips: list[Clip], settings: features.FeatureSettings
) -> Iterator[Problem]:
    """What only the recordings say: damaged, short, silent, copies, other rates and lengths."""
    rates: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    channels: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    lengths: dict[str, dict[float, list[str]]] = defaultdict(lambda: defaultdict(list))
    frames: dict[str, int] = {}
    alike: dict[bytes, list[Clip]] = defaultdict(list)
    with ThreadPoolExecutor(_READERS) as pool:
        recordings = pool.map(lambda clip: _listen(root / clip.path, settings), clips)
        for clip, heard in zip(clips, recordings, strict=True):
            if isinstance(heard, DataError):
                yield _problem(heard.at(clip.path))
                continue
            if heard.constant:
                remedy = "Nothing to do if it is silence; else check the microphone."
                yield _notice(clip.path, features.CONSTANT, "a recording that moves", remedy)
            else:  # silence is no copy of silence
                alike[heard.digest].append(clip)
            frames[clip.path] = heard.frames
            rates[clip.machine_type][heard.info.sample_rate].append(clip.path)
            channels[clip.machine_type][heard.info.channels].append(clip.path)
            lengths[clip.machine_type][round(heard.info.seconds, 1)].append(clip.path)
    yield from padded(frames)
    yield from copies(alike)
    for machine_type in sorted(rates):
        mixed = rates[machine_type]
        for rate, paths in sorted(mixed.items()):
            if rate != settings.sample_rate or len(mixed) > 1:
                found = f"{rate} Hz in {_count(paths)} of {machine_type}"
                remedy = "Nothing to do: they are resampled."
                if others := sorted({*mixed} - {rate}):
                    found += f", others at {_listed(others)} Hz"
                    remedy = (
                        "Nothing to do: recordings at other rates are resampled. If only some of a "
                        "machine type's are, a model may learn the rate instead of the machine."
                    )
                yield _notice(paths[0], found, f"{settings.sample_rate} Hz throughout", remedy)
        for number, paths in sorted(channels[machine_type].items()):
            if number > 1:
                found = f"{number} channels in {_count(paths)} of {machine_type}"
                yield _notice(paths[0], found, "one channel", "Nothing to do: channel 0 is taken.")
        if len(lengths[machine_type]) > 1:
            # One example, of the length that occurs least.
            counts = lengths[machine_type]
            rarest = min(counts, key=lambda length: (len(counts[length]), length))
            some = f"{rarest:g} in {_count(counts[rarest])}"
            found = f"{machine_type} clips of {_listed(sorted(counts))} seconds; {some}"
            remedy = "Nothing to do if they were recorded so: each is used in full."
            yield _notice(counts[rarest][0], found, "one length for each machine type", remedy)


def labels(clips: list[Clip]) -> Iterator[Problem]:
    """Anomalies in training data, and sections that cannot be trained or scored."""
    groups: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[clip.machine_type, clip.section].append(clip)
        if clip.split == "train" and clip.state == "anomaly":
            found, expected = "an anomaly in the training split", "normal recordings only"
            remedy = "Move it to the test split, or correct its label."
            yield Problem(clip.path, found, expected, remedy)
    for _, group in sorted(groups.items()):
        where = _section(group[0])
        count = Counter((clip.split, clip.domain) for clip in group)
        train = sum(number for (split, _), number in count.items() if split == "train")
        test = len(group) - train
        if not train:
            found = f"{test} test clips and no training clip"
            remedy = "Add them: without them nothing says what is normal here."
            yield Problem(where, found, "normal training clips", remedy)
            continue
        if not test:
            found = f"{train} training clips and no test clip"
            remedy = "Nothing to do unless the section should be scored."
            yield _notice(where, found, "test clips too", remedy)
        domains = {clip.domain for clip in group} - {""}
        for domain, other in (("source", "target"), ("target", "source")):
            if not domains or count["train", domain]:
                continue
            tested = count["test", domain]
            if tested or domain not in domains:
                found = f"no {domain} training clip"
                if tested:
                    found += f", though {tested} test clips are of that domain"
                expected = f"training clips of both domains, as of {other}"
                remedy = f"Add {domain} training clips, or check the domain in the names."
                yield _notice(where, found, expected, remedy)
        labeled = Counter(clip.state for clip in group if clip.split == "test")
        without = labeled.pop("", 0)
        if without:
            found = f"{without} of {test} test clips not labeled normal or anomaly"
            remedy = "Nothing to do: all test clips get scores, but no metrics are computed."
            yield _notice(where, found, "labels for all, to compute metrics", remedy)
        elif len(labeled) == 1:
            [(state, number)] = labeled.items()
            found = f"{number} {state} test clips and none of the other kind"
            remedy = "Nothing to do, but no AUC can be computed for it."
            yield _notice(where, found, "normal and anomalous test clips", remedy)


def _same_names(clips: list[Clip], severity: str) -> Iterator[Problem]:
    """Clips that the official score files, which give base names, could not tell apart."""
    seen: dict[tuple[str, ...], str] = {}
    for clip in clips:
        key = (clip.machine_type, clip.section, clip.split, PurePosixPath(clip.name).stem)
        if key in seen:
            found = f"the same name as {seen[key]}"
            expected = "one recording of a name in a machine type's split"
            remedy = "Remove or rename one of the two: score files tell clips apart by their names."
            yield Problem(clip.path, found, expected, remedy, severity)
        seen.setdefault(key, clip.path)


def copies(alike: Mapping[Any, list[Clip]]) -> Iterator[Problem]:
    """Recordings that hold the same samples, from lists of clips that are the same."""
    for original, *others in alike.values():
        for clip in others:
            found, severity = f"a copy of {original.path}", NOTICE
            if original.split != clip.split:
                found, severity = f"{found}, across the splits", ERROR
            remedy = "Remove one of the two."
            yield Problem(clip.path, found, "each recording once", remedy, severity)


def padded(frames: Mapping[str, int]) -> Iterator[Problem]:
    """Clips that are too long to stand in one store with the others, from their lengths."""
    for path in overlong(frames):
        found = f"{frames[path]} frames, much longer than the other clips"
        expected = f"lengths that padding makes at most {MOST_PADDED} times as much of"
        yield Problem(path, found, expected, "Cut it into clips, or remove it.")


def _count(paths: list[str]) -> str:
    return counted(len(paths), "recording")


def _listed(values: Iterable[float]) -> str:
    words = [f"{value:g}" for value in values]
    if len(words) > 6:
        return f"{words[0]} to {words[-1]}"
    return ", ".join([*words[:-2], " and ".join(words[-2:])])
