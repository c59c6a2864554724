"""Detectors that need no training, on one machine with a handful of recordings.

    python -m experiments.splits --normal FAN/normal --anomalous FAN/abnormal --out splits.json

Some of the normal recordings are drawn to train on; the others, and the anomalous ones, are scored.
The figure is the area under the ROC curve, mean and standard deviation over random splits, which
are the same for every detector. Takes about a minute for 100 splits of 40 recordings.
"""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from asdproto import Detector
from asdproto.arguments import Parser, within
from asdproto.audio import read_audio
from asdproto.config import ConfigError, at_least
from asdproto.data.collection import walk
from asdproto.systems import NEED_NO_DEVICE
from experiments import common


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = Parser(prog="python -m experiments.splits", description=__doc__)
    parser.add_argument("--normal", type=Path, required=True, help="folder of normal recordings")
    parser.add_argument("--anomalous", type=Path, required=True, help="folder of anomalous ones")
    parser.add_argument("--train", type=within(int, at_least(2)), default=14, metavar="N")
    parser.add_argument("--splits", type=within(int, at_least(1)), default=100, metavar="N")
    parser.add_argument("--systems", nargs="+", choices=NEED_NO_DEVICE, default=NEED_NO_DEVICE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="json with every split")
    args = parser.parse_args(argv)
    normal, anomalous = (
        [read_audio(folder / name)[0] for name in walk(folder)[0]]
        for folder in (args.normal, args.anomalous)
    )
    if not args.train < len(normal) or not anomalous:
        raise ConfigError(
            f"found {len(normal)} normal and {len(anomalous)} anomalous recordings; expected more "
            f"than --train {args.train} normal ones and an anomalous one"
        )
    rng = np.random.default_rng(args.seed)
    orders = [rng.permutation(len(normal)) for _ in range(args.splits)]
    figures: dict[str, Any] = {}
    console = Console()
    for kind in args.systems:
        areas = []
        for order in track(orders, kind, console=console, transient=True):
            train, rest = np.split(order, [args.train])
            detector = Detector(system=kind, sample_rate=16000).fit([normal[i] for i in train])
            test = [*(normal[i] for i in rest), *anomalous]
            areas.append(detector.score(test, [0] * len(rest) + [1] * len(anomalous)))
        figures[kind] = {"mean": np.mean(areas), "std": np.std(areas, ddof=1), "areas": areas}
        console.print(f"{kind:14} {100 * np.mean(areas):.1f} ± {100 * np.std(areas, ddof=1):.1f}")
    results = {
        "command": ["python", "-m", "experiments.splits", *map(str, argv or [])],
        "processor": common.processor(),
        "train": args.train,
        "systems": figures,
    }
    common.write_json(args.out, results)
    return results


if __name__ == "__main__":
    common.run_main(main)
