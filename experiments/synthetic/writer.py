"""Writes a set in the layout of DCASE 2022 Task 2: wav files, attribute files, list of faults."""

import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import os
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asdproto.config import ConfigError, nearest
from asdproto.data.dcase import attribute_pairs
from asdproto.errors import DataError
from asdproto.files import csv_text, write_atomically, write_json
from experiments.synthetic.facts import DOMAINS, SECTIONS, attribute_strings
from experiments.synthetic.machines import FAULTS, MACHINES, recording
from experiments.synthetic.sound import RATE, stream

MANIFEST = "synthetic.json"  # written last
FAULTS_TABLE = "faults.csv"
LONG_KEYS = {"spd": "speed"}  # key of a file name -> what the attribute files write for it


class Order(NamedTuple):
    """A clip to be made; attributes as they stand in its name, no fault for a normal one."""

    machine: str
    section: str
    domain: str
    split: str
    state: str
    number: int
    attributes: str
    fault: str

    @property
    def path(self) -> str:
        """Relative to the folder of the machine types."""
        name = f"{self.domain}_{self.split}_{self.state}_{self.number:04d}_{self.attributes}"
        return f"{self.machine}/{self.split}/section_{self.section}_{name}.wav"


def synthesize(
    out: Path,
    *,
    machines: Sequence[str] = tuple(MACHINES),
    sections: Sequence[str] = SECTIONS,
    clips: int = 50,
    target_clips: int = 10,
    test_clips: int = 25,
    seconds: float = 6.0,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Makes a set of machine sounds, normal and faulty, in the layout of DCASE 2022 Task 2.

    Another seed gives other recordings of the same machines. A finished set of the same settings is
    left as it is; clip ``i`` of a section is the same however many there are.

    Args:
      out: Folder to make.
      machines: Of :data:`MACHINES`.
      sections: Of :data:`SECTIONS`.
      clips: Normal training clips of a section in the source domain.
      target_clips: Normal training clips of a section in the target domain.
      test_clips: Of a section, for each of source and target, normal and anomaly.
      seconds: Length of a clip, at least 1.
      seed: Of everything that differs between clips.
      workers: Processes; one a core when ``None``.

    Returns:
      ``out/dev_data``, the folder of the machine types.

    Raises:
      ConfigError: An argument is out of range or names no machine type or section.
      DataError: ``out`` holds something else.
    """
    for what, names, known in (
        ("machine type", machines, MACHINES),
        ("section", sections, SECTIONS),
    ):
        for name in names:
            if name not in known:
                near = nearest(name, known)
                raise ConfigError(f"found {what} {name!r}; expected {', '.join(known)}{near}")
    counts = (clips, target_clips, test_clips)
    if min(counts) < 0 or not any(counts) or not 1 <= seconds <= 600:
        raise ConfigError(
            f"found {clips}, {target_clips} and {test_clips} clips of {seconds} s; expected some, "
            "of 1 to 600 s"
        )
    settings = {
        "machines": list(machines),
        "sections": list(sections),
        "clips": list(counts),
        "seconds": seconds,
        "seed": seed,
    }
    root, manifest = out / "dev_data", out / MANIFEST
    if manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")) == settings:
        return root
    if out.is_dir() and any(out.iterdir()):
        found, expected = "other files, or a set of other settings", "an empty folder"
        raise DataError(out, found, expected, "Choose another folder, or delete this one.")
    orders = _orders(machines, sections, counts, seed)
    for folder in {(root / order.path).parent for order in orders}:
        folder.mkdir(parents=True, exist_ok=True)
    make = functools.partial(_make, root, round(seconds * RATE), seed)
    workers = min(workers or len(os.sched_getaffinity(0)), len(orders) // 50 + 1)
    if workers == 1:
        list(map(make, orders))
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
            list(pool.map(make, orders, chunksize=16))
    _write_tables(out, orders)
    write_json(manifest, settings)
    return root


def _orders(
    machines: Sequence[str], sections: Sequence[str], counts: Sequence[int], seed: int
) -> list[Order]:
    """Every clip of a set. Attributes go round, so classes are even; so do faults."""
    clips, target_clips, test_clips = counts
    orders = []
    for machine, section, domain in itertools.product(machines, sections, DOMAINS):
        strings = attribute_strings(machine, section, domain)
        turn = stream("attributes", machine, section, domain).permutation(len(strings))
        train = clips if domain == "source" else target_clips
        groups = (("train", "normal", train), ("test", "normal", test_clips))
        for split, state, count in (*groups, ("test", "anomaly", test_clips)):
            for number in range(count):
                fault = ""
                if state == "anomaly":
                    rng = stream("fault", seed, machine, section, domain, number // len(FAULTS))
                    fault = str(rng.permutation(FAULTS)[number % len(FAULTS)])
                text = strings[turn[number % len(strings)]]
                orders.append(Order(machine, section, domain, split, state, number, text, fault))
    return orders


def _make(root: Path, samples: int, seed: int, order: Order) -> None:
    """Writes one clip."""
    audio = recording(
        order.machine,
        order.section,
        order.domain,
        dict(attribute_pairs(order.attributes)),
        samples,
        (seed, *order[:6]),
        fault=order.fault,
    )
    content = np.clip(np.round(audio * 32768), -32768, 32767).astype("<i2").tobytes()
    with wave.open(str(root / order.path), "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(content)


def _write_tables(out: Path, orders: Sequence[Order]) -> None:
    """The attribute files of every machine type, and what is wrong with the anomalies."""
    by_section = itertools.groupby(orders, lambda order: (order.machine, order.section))
    for (machine, section), members in by_section:
        rows = [
            [order.path, *(word for key, value in attribute_pairs(order.attributes)
                           for word in (LONG_KEYS.get(key, key), value))]
            for order in members
        ]  # fmt: skip
        most = max(len(row) for row in rows) // 2
        header = ["file_name"] + [f"d{n}{part}" for n in range(1, most + 1) for part in "pv"]
        path = out / "dev_data" / machine / f"attributes_{section}.csv"
        write_atomically(path, csv_text([header, *rows]).encode())
    faults = [[f"dev_data/{order.path}", order.fault] for order in orders if order.fault]
    write_atomically(out / FAULTS_TABLE, csv_text([["file", "fault"], *faults]).encode())
