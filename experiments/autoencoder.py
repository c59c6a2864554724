"""The AutoEncoder row of Table 1 on a data set: the baseline of DCASE 2022 Task 2.

    python -m experiments.autoencoder --data DCASE_ROOT --workdir runs/autoencoder --seed 0

The work folder keeps features, official score files, ``results.json`` and ``report.html``; a second
call on a finished one only reports. Numbers are changed by dotted overrides (``epochs=50``).

Presets: ``paper`` is the official baseline (100 epochs); ``quick`` is for a few hundred clips, in
seconds on a CPU.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from asdproto.config import override, to_dict
from asdproto.data.store import FeatureStore
from asdproto.features import FeatureSettings
from asdproto.files import write_atomically
from asdproto.results.result_files import write_result_csv, write_results
from asdproto.results.score_files import write_scores
from asdproto.scoring.metrics import evaluate, group_scores
from asdproto.scoring.thresholds import decide, gamma_threshold
from asdproto.systems.autoencoder import (
    QUICK,
    AutoEncoderConfig,
    MachineFeatures,
    fit_score_machines,
)
from experiments import common, two_stage

PRESETS = {"paper": AutoEncoderConfig(), "quick": QUICK}


def run(
    store: FeatureStore,
    folder: Path,
    *,
    config: AutoEncoderConfig,
    seed: int,
    console: Console | None,
) -> dict[str, Any]:
    """Trains one autoencoder per machine type, scores the test clips and evaluates.

    Args:
      store: Plain log-mel features.
      folder: Where score files and figures go.
      config: The system.
      seed: Of parameters and order.
      console: Where progress goes; ``None`` for silence.

    Returns:
      What :func:`asdproto.scoring.metrics.evaluate` found.
    """

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
    found = fit_score_machines(data, config=config, seed=seed, console=console)
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
        prog="python -m experiments.autoencoder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="collection, or feature store")
    parser.add_argument("--workdir", type=Path, required=True, help="folder for all results")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="paper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=Path, help="where features go; WORKDIR/features")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="dotted overrides")
    args = parser.parse_args(argv)

    config = override(PRESETS[args.preset], args.overrides)
    asked = {"system": to_dict(config), "seed": args.seed}
    two_stage.check_same_run(args.workdir, asked)
    console, started = Console(), time.monotonic()
    if common.only_reports(args.workdir, console):
        return
    args.workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(args.workdir / "config.json", (json.dumps(asked, indent=1) + "\n").encode())
    settings = FeatureSettings(scale="mel")
    folder = args.features or args.workdir / "features"
    store = common.features_of(args.data, folder, settings, console)
    scores = args.workdir / "scores" / "autoencoder"
    figures = run(store, scores, config=config, seed=args.seed, console=console)
    seconds = {"all": round(time.monotonic() - started, 1)}
    results = {"seed": args.seed, "systems": {"autoencoder": figures}, "seconds": seconds}
    common.finish(args.workdir, results, console)


if __name__ == "__main__":
    common.run_main(main, resumes=False)
