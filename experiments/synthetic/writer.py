"""Writing a synthetic set: many processes, whole files only, and on from where it stopped."""

import contextlib
import functools
import io
import itertools
import json
import operator
import os
import wave
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asdproto.config import nearest
from asdproto.data.attributes import LONG_KEYS, attribute_pairs
from asdproto.errors import DataError
from asdproto.files import (
    check_folder,
    csv_text,
    locked,
    remove_abandoned,
    size_of,
    write_atomically,
    write_json,
)
from experiments.synthetic.facts import DOMAINS, MACHINES, SECTIONS, attribute_strings
from experiments.synthetic.physics import RATE
from experiments.synthetic.plan import Order, plan_group, render
from experiments.synthetic.pool import Bar, count_workers, run

MANIFEST = "synthetic.json"
FAULTS_TABLE = "faults.csv"
# Raised whenever the same settings begin to sound different.
RECIPE = 3


class Size(NamedTuple):
    """Clips of a set, as :func:`synthesize` takes them."""

    clips: int
    target_clips: int
    test_clips: int
    seconds: float


# small is for a CPU, bench has the real set's numbers.
SIZES = {"small": Size(50, 10, 25, 6.0), "bench": Size(990, 10, 50, 10.0)}
_SMALL = SIZES["small"]

_LOCK = ".lock"
_HEADER = 44  # bytes of a wav file before its samples
_CHUNK = 16  # clips a worker takes at a time, and brings to the disk together
_POOL_WORTH = 48  # clips; starting a pool costs about a second


def synthesize(
    out_dir: str | os.PathLike,
    *,
    machines: Sequence[str] = MACHINES,
    sections: Sequence[str] = SECTIONS,
    clips: int = _SMALL.clips,
    target_clips: int = _SMALL.target_clips,
    test_clips: int = _SMALL.test_clips,
    seconds: float = _SMALL.seconds,
    severity: float = 0.0,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Writes a synthetic data set in the layout of the DCASE 2022 Task 2 development set.

    ``out_dir/dev_data/<machine>/{train,test}/*.wav`` (16 kHz, mono, 16 bit) and
    ``attributes_NN.csv``, with that set's names and attributes; beside ``dev_data``,
    ``faults.csv`` says what is wrong with each anomaly, and ``synthetic.json`` how the set was
    made. A call that was interrupted, even killed, goes on where it stopped when it is repeated;
    on a finished set it has nothing to do.

    A clip's samples depend on the seed, on ``seconds`` and on its own name, those of an anomaly on
    ``severity`` too, and on nothing else: neither on the other settings nor on the number of
    workers. On another kind of processor, or with another version of NumPy or SciPy, single samples
    may be rounded the other way.

    Args:
      out_dir: Folder to make; or an empty one, or one that holds this very set or a part of it.
      machines: Machine types, of :data:`MACHINES`.
      sections: Sections, of :data:`SECTIONS`.
      clips: Normal training clips of a section in the source domain; 990 in the real set.
      target_clips: Normal training clips of a section in the target domain.
      test_clips: Test clips of a section for each of source and target, normal and anomaly.
      seconds: Duration of a clip, at least 1.
      severity: How much stronger faults are than those that the levels of the set were fixed for,
        in dB.
      seed: Any integer. Another seed gives other recordings of the same machines.
      workers: Processes; one per core when ``None``.
      progress: Whether to show a bar on the standard error stream.

    Returns:
      ``out_dir/dev_data``.

    Raises:
      ValueError: An argument is out of range, or names no machine type or section.
      DataError: ``out_dir`` holds something else.
    """
    settings = _settings(
        machines, sections, Size(clips, target_clips, test_clips, seconds), severity, seed, workers
    )
    out = Path(out_dir)
    orders = _plan(settings)
    _is_finished(out, settings)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, _LOCK):
        finished = _is_finished(out, settings)
        if not finished:
            _write_manifest(out, settings, finished=False)
        root = out / "dev_data"
        size = _HEADER + 2 * round(seconds * RATE)
        missing = [order for order in orders if size_of(root / order.clip.path) != size]
        if finished and not missing:
            return root
        for folder in {(root / order.clip.path).parent for order in orders}:
            folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(folder)
        workers = workers or count_workers(len(missing), worth=_POOL_WORTH)
        make = functools.partial(_make, root, seconds)
        chunks = [missing[first : first + _CHUNK] for first in range(0, len(missing), _CHUNK)]
        done = len(orders) - len(missing)
        with (
            Bar(progress, "Synthesizing", len(orders), done) as bar,
            contextlib.closing(run(make, chunks, workers)) as results,
        ):
            for made in results:
                bar.advance(made)
        _write_tables(out, orders)
        _write_manifest(out, settings, finished=True)
    return root


# --- what is asked for


def _settings(
    machines: Sequence[str],
    sections: Sequence[str],
    size: Size,
    severity: float,
    seed: int,
    workers: int | None,
) -> dict[str, Any]:
    """Checked settings as the manifest keeps them."""
    counts: dict[str, Any] = size._asdict()
    seconds = counts.pop("seconds")
    for name, count in counts.items():
        if operator.index(count) < 0:
            raise ValueError(f"{name} must be at least 0, found {count}")
    if not 1 <= seconds <= 600:
        raise ValueError(f"seconds must lie between 1 and 600, found {seconds}")
    if not -100 <= severity <= 100:
        raise ValueError(f"severity must lie between -100 and 100 dB, found {severity}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, found {workers}")
    if not any(counts.values()):
        raise ValueError("clips, target_clips and test_clips are all 0: nothing to make")
    return {
        "recipe": RECIPE,
        "machines": _chosen("machine type", machines, MACHINES),
        "sections": _chosen("section", sections, SECTIONS),
        **{name: int(count) for name, count in counts.items()},
        "seconds": float(seconds),
        "severity": float(severity),
        "seed": operator.index(seed),
    }


def _chosen(what: str, asked: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names asked for, in the order of ``known``."""
    if isinstance(asked, str):
        raise ValueError(f"{what}s must be a list of names, found the single name {asked!r}")
    for name in asked:
        if name not in known:
            hint = nearest(str(name), known)
            raise ValueError(f"unknown {what} {name!r}; expected some of {', '.join(known)}{hint}")
    if not asked:
        raise ValueError(f"no {what} asked for; expected some of {', '.join(known)}")
    return [name for name in known if name in asked]


def _plan(settings: dict[str, Any]) -> list[Order]:
    """Every clip of a set, those of one place together."""
    orders: list[Order] = []
    test, seed, severity = (settings[name] for name in ("test_clips", "seed", "severity"))
    for place in itertools.product(settings["machines"], settings["sections"], DOMAINS):
        train = settings["clips" if place[-1] == "source" else "target_clips"]
        orders += plan_group(*place, "train", "normal", train, seed, severity)
        orders += plan_group(*place, "test", "normal", test, seed, severity)
        orders += plan_group(*place, "test", "anomaly", test, seed, severity)
    return orders


# --- the folder


def _is_finished(out: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds this set, finished; an error if it holds another, or other things."""
    manifest = out / MANIFEST
    if not manifest.is_file():
        # What begins with a dot is hidden, or our own before the manifest was there.
        check_folder(out, (".",), "a synthetic data set")
        return False
    try:
        held = json.loads(manifest.read_text(encoding="utf-8"))
        old, finished = dict(held["settings"]), bool(held["finished"])
    except (ValueError, KeyError, TypeError) as error:
        found, expected = f"no readable record ({error})", "the settings of a synthetic data set"
        remedy = "Delete the folder and synthesize again, or choose another one."
        raise DataError(manifest, found, expected, remedy) from None
    differing = [name for name in {**settings, **old} if settings.get(name) != old.get(name)]
    if differing:
        found, expected = _listed(old, differing), _listed(settings, differing)
        remedy = "Choose another folder, or delete this one."
        raise DataError(out, f"a synthetic data set with {found}", expected, remedy)
    return finished


def _listed(settings: dict[str, Any], names: Iterable[str]) -> str:
    def show(value: Any) -> str:
        return " ".join(value) if isinstance(value, list) else str(value)

    return ", ".join(f"{name} {show(settings.get(name, 'unknown'))}" for name in names)


def _write_manifest(out: Path, settings: dict[str, Any], *, finished: bool) -> None:
    content = {"about": "synthetic machine sounds", "settings": settings, "finished": finished}
    write_json(out / MANIFEST, content)


def _write_tables(out: Path, orders: list[Order]) -> None:
    """The attribute files of every machine type, and what is wrong with the anomalies."""
    sections = itertools.groupby(
        orders, lambda order: (order.clip.machine_type, order.clip.section)
    )
    for (machine, section), members in sections:
        possible = [
            dict(attribute_pairs(string))
            for domain in DOMAINS
            for string in attribute_strings(machine, section, domain)
        ]
        # A key that has one value throughout the section is not listed.
        constant = {key for key in possible[0] if len({pairs.get(key) for pairs in possible}) == 1}
        rows = []
        for order in members:
            pairs = attribute_pairs(order.clip.attributes)
            listed = [(LONG_KEYS.get(key, key), text) for key, text in pairs if key not in constant]
            rows.append([order.clip.path, *itertools.chain.from_iterable(listed)])
        most = max(len(row) for row in rows) // 2
        header = ["file_name"] + [f"d{n}{kind}" for n in range(1, most + 1) for kind in "pv"]
        path = out / "dev_data" / machine / f"attributes_{section}.csv"
        write_atomically(path, csv_text([header, *rows]).encode())
    faults = [
        [f"dev_data/{order.clip.path}", order.fault, f"{order.severity:.2f}"]
        for order in orders
        if order.fault
    ]
    table = csv_text([["file", "fault", "severity_db"], *faults])
    write_atomically(out / FAULTS_TABLE, table.encode())


# --- the work


def _make(root: Path, seconds: float, orders: list[Order]) -> int:
    """Make some clips, and bring them to the disk together."""
    paths = [root / order.clip.path for order in orders]
    contents = [_wav(render(order, seconds)) for order in orders]
    with ThreadPoolExecutor(4) as threads:  # they wait for the disk
        list(threads.map(write_atomically, paths, contents))
    return len(paths)


def _wav(samples: np.ndarray) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(samples.tobytes())
    return stream.getvalue()
