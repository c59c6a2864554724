"""From nothing to a DCASE table: synthesise machines, train both stages, score, report.

    python -m experiments.quickstart --workdir runs/quickstart

Everything is the real thing, only small: wav files of a fan and a gearbox in the DCASE 2022 layout,
features by librosa, a network of width 16, and the official metrics. Three systems stand side by
side: the AutoEncoder-style detector that the challenge's baseline is, the pre-trained network, and
the fine-tuned one. Takes under 3 minutes on 2 CPU cores.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from asdproto.config import override, to_dict
from asdproto.data.store import FeatureStore
from asdproto.data.synthetic import synthesize
from asdproto.metrics import evaluate, group_scores
from asdproto.results_io import write_result_csv, write_results
from asdproto.scores_io import write_scores
from asdproto.scoring import decide, gamma_threshold
from asdproto.systems.autoencoder import QUICK, MachineFeatures, fit_score_machines
from asdproto.systems.prototype import PrototypeSystem, RunOptions
from experiments import common, two_stage

MACHINES = ("fan", "gearbox")
SECTIONS = ("00", "01")
CLIPS, TARGET_CLIPS, TEST_CLIPS, SECONDS = 50, 10, 15, 6.0


def get_config() -> PrototypeSystem:
    """The paper's system at the size of the quickstart."""
    system = two_stage.get_config("small")
    return dataclasses.replace(
        system,
        pretrain=dataclasses.replace(system.pretrain, epochs=30),
        finetune=dataclasses.replace(system.finetune, epochs=15),
    )


def run_autoencoder(
    store: FeatureStore, folder: Path, seed: int, console: Console | None
) -> dict[str, Any]:
    """Trains one autoencoder per machine type, scores the test clips and evaluates."""

    def part(machine: str, split: str) -> np.ndarray:
        clips = enumerate(store.clips)
        return np.array([i for i, c in clips if (c.machine_type, c.split) == (machine, split)])

    machines = sorted({clip.machine_type for clip in store.clips})
    rows = {machine: (part(machine, "train"), part(machine, "test")) for machine in machines}
    data = {
        machine: MachineFeatures(
            store.features[train], store.frames[train], store.features[test], store.frames[test]
        )
        for machine, (train, test) in rows.items()
    }
    found = fit_score_machines(data, config=QUICK, seed=seed, console=console)
    test = np.concatenate([rows[machine][1] for machine in machines])
    clips = [store.clips[i] for i in test]
    scores = np.concatenate([found[machine].test_scores for machine in machines])
    limits = {machine: gamma_threshold(found[machine].train_scores) for machine in machines}
    decisions = decide(scores, np.array([limits[clip.machine_type] for clip in clips]))
    write_scores(folder, clips, scores, decisions)
    figures = evaluate(group_scores(clips, scores, decisions))
    write_result_csv(folder / "result.csv", figures)
    write_results(folder / "results.json", figures)
    return figures


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.quickstart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=CLIPS, help="source training clips a section")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="dotted overrides")
    common.add_device_arguments(parser)
    args = parser.parse_args(argv)

    console, started = Console(), time.monotonic()
    system = override(get_config(), args.overrides)
    asked = {"system": to_dict(system), "seed": args.seed}
    two_stage.check_same_run(args.workdir, asked)
    finished = args.workdir / "results.json"
    if finished.exists():
        console.print(f"{args.workdir} is finished; this only reports", highlight=False)
        common.show(args.workdir, json.loads(finished.read_text()), console)
        return
    devices = common.start_devices(args)
    console.rule("1  Machines, as wav files")
    data = synthesize(
        args.workdir / "data",
        machines=MACHINES,
        sections=SECTIONS,
        clips=args.clips,
        target_clips=TARGET_CLIPS,
        test_clips=TEST_CLIPS,
        seconds=SECONDS,
        seed=args.seed,
    )
    console.rule("2  Features: inverted log-mel for the prototypes, log-mel for the autoencoder")
    store = common.features_of(data, args.workdir / "features", system.features, console)
    plain = dataclasses.replace(system.features, scale="mel")
    plain_store = common.features_of(data, args.workdir / "features_mel", plain, console)
    console.rule("3  AutoEncoder-style detector")
    folder = args.workdir / "scores" / "autoencoder"
    figures = {"autoencoder": run_autoencoder(plain_store, folder, args.seed, console)}
    console.rule("4  Prototypes: pre-training, then fine-tuning")
    options = RunOptions(args.workdir, devices, console, args.loop)
    results = two_stage.run(system, store, options, seed=args.seed)
    results["systems"] = {**figures, **results["systems"]}
    results["seconds"]["all"] = round(time.monotonic() - started, 1)
    console.rule("5  Results")
    common.finish(args.workdir, results, console)
    clip = next(c for c in store.clips if c.split == "test" and c.state == "anomaly")
    console.print(
        f"Took {results['seconds']['all']:.0f} s. Score any recording with it:\n"
        f"  python -m asdproto score {args.workdir} {data / clip.path}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    common.run_main(main)
