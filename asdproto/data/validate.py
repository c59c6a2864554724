"""Everything that is wrong, or worth knowing, about a collection before hours are spent on it.

Only headers and a few bytes of each recording are read.
"""

import dataclasses
import hashlib
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from asdproto import features
from asdproto.data import dcase, table
from asdproto.data.attributes import AttributeRow, disagreement, read_attributes
from asdproto.data.dcase import AUDIO_SUFFIXES, SPLIT_FOLDERS, Clip
from asdproto.errors import DataError

ERROR, NOTICE = "error", "notice"
_OTHER_AUDIO = (".aac", ".aif", ".aiff", ".au", ".m4a", ".mp3", ".ogg", ".opus", ".wma")
_ARCHIVES = (".7z", ".gz", ".rar", ".tar", ".tgz", ".zip")
# Two recordings that agree in length and in these bytes of their middle are compared in full.
_PROBE = 4096


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as expected.

    Attributes:
      file: The file, folder, or place in a csv, relative to the collection's root.
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
        return (
            f"{self.severity}: {self.file}: found {self.found}; expected {self.expected}. "
            f"{self.remedy}"
        )


def validate(
    root: str | os.PathLike, *, settings: features.FeatureSettings | None = None
) -> list[Problem]:
    """List every problem of a collection.

    Args:
      root: What :func:`asdproto.data.table.load_collection` takes: a folder laid out as DCASE
        Task 2 lays out its data, a folder with ``clips.csv``, or such a csv.
      settings: The features that the recordings are wanted for; they set the sample rate and the
        shortest usable clip.

    Returns:
      Errors first, then notices, each sorted by file; empty for a collection without fault.
    """
    settings = features.FeatureSettings() if settings is None else settings
    root = Path(root)
    try:
        source = root / table.TABLE_NAME if root.is_dir() else root
        if source.is_file():
            root = source.parent
            clips, errors = table.survey_table(source)
            # There the path tells clips apart; only the official score files cannot.
            layout: list[Problem] = []
            same_names = NOTICE
        else:
            clips, errors = dcase.survey(root, supplemental=True)
            layout = [*_folders(root), *_attribute_files(root, clips)]
            same_names = ERROR
    except DataError as error:
        return [_problem(error)]
    problems = [_problem(error) for error in errors]
    if not clips and not errors:
        problems.append(
            Problem(
                str(root),
                "no .wav or .flac file",
                "recordings, <machine type>/{train,test}/<name>.wav",
                "Check the path.",
            )
        )
    problems += layout
    problems += _recordings(root, clips, settings)
    problems += _labels([clip for clip in clips if clip.split != "supplemental"])
    problems += _same_names(clips, same_names)
    problems += _same_sound(root, clips)
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda problem: (not problem.is_error, problem.file, problem.found))


def _problem(error: DataError) -> Problem:
    return Problem(error.file, error.found, error.expected, error.remedy)


def _folders(root: Path) -> Iterator[Problem]:
    """Empty folders, and files that look like recordings and are not read."""
    for prefix, folders, names in dcase.visible(root):
        audio = [name for name in names if name.lower().endswith(AUDIO_SUFFIXES)]
        if prefix and not audio and not folders:
            here = prefix.rstrip("/")
            wanted = here.rpartition("/")[2].lower() in SPLIT_FOLDERS
            yield Problem(
                here,
                "no recording in it" if names else "an empty folder",
                "recordings",
                "Add them, or remove the folder.",
                ERROR if wanted else NOTICE,
            )
        for name in names:
            suffix = PurePosixPath(name).suffix.lower()
            file = prefix + name
            if suffix in _OTHER_AUDIO:
                yield Problem(
                    file,
                    f"a {suffix} file, which is not read",
                    ".wav or .flac",
                    "Convert it, or remove it.",
                    NOTICE,
                )
            elif suffix in _ARCHIVES:
                yield Problem(
                    file,
                    "an archive, which is not read",
                    "its files",
                    "Unpack it unless that is done already.",
                    NOTICE,
                )


def _attribute_files(root: Path, clips: list[Clip]) -> Iterator[Problem]:
    """Rows that name no clip, name one twice, or contradict its name."""
    split = root.resolve().name
    by_name: dict[str, dict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        by_name[dcase.machine_folder(clip.path)][clip.name].append(clip)
    for folder, files in dcase.attribute_files(root, clips).items():
        for file in files:
            where = Path(os.path.relpath(file, root)).as_posix()
            try:
                rows = read_attributes(file)
            except DataError as error:
                yield Problem(where, error.found, error.expected, error.remedy)
                continue
            seen: dict[str, int] = {}
            for row in rows:
                if where.startswith("..") and PurePosixPath(row.file).parent.name != split:
                    continue  # the root is one split's folder, the file beside it is of all
                place = f"{where}: line {row.line}"
                if row.file in seen:
                    yield Problem(
                        place,
                        f"{row.file!r} a second time",
                        f"each file once; line {seen[row.file]} has it already",
                        "Remove one of the lines.",
                        NOTICE,
                    )
                seen.setdefault(row.file, row.line)
                named = list(
                    dcase.clip_of(row, by_name[folder].get(row.file.rpartition("/")[2], []))
                )
                if not named:
                    yield Problem(
                        place,
                        f"the file {row.file!r}, which is not there",
                        "a recording of this machine type",
                        "Add the recording, or remove the line.",
                    )
                for clip in named:
                    yield from _contradiction(place, row, clip)


def _contradiction(place: str, row: AttributeRow, clip: Clip) -> Iterator[Problem]:
    in_name = dcase.parse_name(clip.name).attributes
    text, only_keys = disagreement(row, in_name) if in_name else ("", True)
    if text:
        yield Problem(
            place,
            text,
            f"the attributes in the name, {in_name!r}",
            "The name is what counts; correct the line or remove it.",
            NOTICE if only_keys else ERROR,
        )


def _recordings(
    root: Path, clips: list[Clip], settings: features.FeatureSettings
) -> Iterator[Problem]:
    """What the headers say: damaged, short, other rates and channels, lengths that differ."""
    rates: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    channels: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    lengths: dict[str, dict[float, list[str]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        try:
            info = features.audio_info(root / clip.path)
            samples = info.samples_at(settings.sample_rate)
            if samples < settings.n_fft:
                raise features.too_short(clip.path, samples, settings)
        except DataError as error:
            yield dataclasses.replace(_problem(error), file=clip.path)
            continue
        rates[clip.machine_type][info.sample_rate].append(clip.path)
        channels[clip.machine_type][info.channels].append(clip.path)
        lengths[clip.machine_type][round(info.seconds, 1)].append(clip.path)
    for machine_type in sorted(rates):
        mixed = rates[machine_type]
        for rate, paths in sorted(mixed.items()):
            if rate != settings.sample_rate or len(mixed) > 1:
                others = sorted({*mixed} - {rate})
                beside = f", others at {_listed(others)} Hz" if others else ""
                yield Problem(
                    paths[0],
                    f"{rate} Hz in {_count(paths)} of {machine_type}{beside}",
                    f"{settings.sample_rate} Hz throughout",
                    "Nothing to do: recordings at other rates are resampled. If only some of a "
                    "machine type's are, a model may learn the rate instead of the machine."
                    if others
                    else "Nothing to do: they are resampled.",
                    NOTICE,
                )
        for number, paths in sorted(channels[machine_type].items()):
            if number > 1:
                yield Problem(
                    paths[0],
                    f"{number} channels in {_count(paths)} of {machine_type}",
                    "one channel",
                    "Nothing to do: channel 0 is taken.",
                    NOTICE,
                )
        if len(lengths[machine_type]) > 1:
            # One example, of the length that occurs least.
            counts = lengths[machine_type]
            rarest = min(counts, key=lambda length: (len(counts[length]), length))
            yield Problem(
                counts[rarest][0],
                f"{machine_type} clips of {_listed(sorted(counts))} seconds; {rarest:g} in "
                f"{_count(counts[rarest])}",
                "one length for each machine type",
                "Nothing to do if they were recorded so: each is used in full.",
                NOTICE,
            )


def _labels(clips: list[Clip]) -> Iterator[Problem]:
    """Anomalies in training data, and sections that cannot be trained or scored."""
    groups: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[clip.machine_type, clip.section].append(clip)
        if clip.split == "train" and clip.state == "anomaly":
            yield Problem(
                clip.path,
                "an anomaly in the training split",
                "normal recordings only",
                "Move it to the test split, or correct its label.",
            )
    for (machine_type, section), group in sorted(groups.items()):
        where = f"{machine_type} section {section}"
        count = Counter((clip.split, clip.domain) for clip in group)
        train = sum(number for (split, _), number in count.items() if split == "train")
        test = len(group) - train
        if not train:
            yield Problem(
                where,
                f"{test} test clips and no training clip",
                "normal training clips",
                "Add them: without them nothing says what is normal here.",
            )
            continue
        if not test:
            yield Problem(
                where,
                f"{train} training clips and no test clip",
                "test clips too",
                "Nothing to do unless the section should be scored.",
                NOTICE,
            )
        domains = {clip.domain for clip in group} - {""}
        for domain, other in (("source", "target"), ("target", "source")):
            if not domains or count["train", domain]:
                continue
            tested = count["test", domain]
            if tested or domain not in domains:
                yield Problem(
                    where,
                    f"no {domain} training clip"
                    + (f", though {tested} test clips are of that domain" if tested else ""),
                    f"training clips of both domains, as of {other}",
                    f"Add {domain} training clips, or check the domain in the names.",
                    ERROR if tested else NOTICE,
                )
        labeled = Counter(clip.state for clip in group if clip.split == "test" and clip.state)
        if len(labeled) == 1:
            state = next(iter(labeled))
            yield Problem(
                where,
                f"{labeled[state]} {state} test clips and none of the other kind",
                "normal and anomalous test clips",
                "Nothing to do, but no AUC can be computed for it.",
                NOTICE,
            )


def _same_names(clips: list[Clip], severity: str) -> Iterator[Problem]:
    """Clips that the official score files, which give base names, could not tell apart."""
    seen: dict[tuple[str, ...], str] = {}
    for clip in clips:
        key = (clip.machine_type, clip.section, clip.split, PurePosixPath(clip.name).stem)
        if key in seen:
            yield Problem(
                clip.path,
                f"the same name as {seen[key]}",
                "one recording of a name in a machine type's split",
                "Remove one of the two, or rename it: score files tell clips apart by their names.",
                severity,
            )
        seen.setdefault(key, clip.path)


def _same_sound(root: Path, clips: list[Clip]) -> Iterator[Problem]:
    """Recordings that are copies of each other, byte for byte."""
    alike: dict[tuple[int, int], list[Clip]] = defaultdict(list)
    for clip in clips:
        try:
            with open(root / clip.path, "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                stream.seek(max(0, size // 2 - _PROBE // 2))
                alike[size, zlib.crc32(stream.read(_PROBE))].append(clip)
        except OSError:
            continue  # said by the headers
    for group in alike.values():
        if len(group) == 1:
            continue
        first: dict[bytes, Clip] = {}
        for clip in group:
            with open(root / clip.path, "rb") as stream:
                digest = hashlib.file_digest(stream, "blake2b").digest()
            original = first.setdefault(digest, clip)
            if original is not clip and os.path.getsize(root / clip.path):
                across = original.split != clip.split
                yield Problem(
                    clip.path,
                    f"a copy of {original.path}" + (", across the splits" if across else ""),
                    "each recording once",
                    "Remove one of the two.",
                    ERROR if across else NOTICE,
                )


def _count(paths: list[str]) -> str:
    return f"{len(paths)} recordings" if len(paths) > 1 else "1 recording"


def _listed(values: Iterable[float]) -> str:
    words = [f"{value:g}" for value in values]
    if len(words) > 6:
        return f"{words[0]} to {words[-1]}"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
