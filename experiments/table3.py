"""Table 3 of the paper: the range of the mixing coefficient of negatives (NPE).

    python -m experiments.table3 --data DCASE2022_ROOT --workdir runs/table3 --seeds 0 1 2

All rows fine-tune the very same pre-trained network of a seed. Presets are those of ``two_stage``,
and overrides, which begin with ``prototype.``. The grid is resumable and shared by processes, see
:mod:`experiments.grid`. On accelerators all ranges and seeds are one program, see
:mod:`experiments.side_by_side`.
"""

import dataclasses
from typing import Any

from asdproto.systems.prototype import PrototypeSystem
from experiments import common
from experiments.side_by_side import Variants
from experiments.table2 import run_table

# Key: name and figures in percent: source AUC, target AUC, pAUC, overall.
PAPER = {
    "pretrain": ("Pre-train", (84.75, 69.70, 64.64, 72.09)),
    "without": ("w/o NPE", (84.35, 73.37, 65.40, 73.57)),
    "first": ("[0, 0.25]", (85.26, 73.16, 66.55, 74.21)),
    "second": ("[0.25, 0.5]", (85.41, 76.03, 66.63, 75.25)),
    "third": ("[0.5, 0.75]", (79.34, 74.61, 65.11, 72.52)),
    "fourth": ("[0.75, 1.0]", (75.00, 72.65, 61.44, 69.17)),
}
RANGES = {
    "without": None,
    "first": (0.0, 0.25),
    "second": (0.25, 0.5),
    "third": (0.5, 0.75),
    "fourth": (0.75, 1.0),
}


def variants(system: PrototypeSystem) -> Variants:
    """The rows: pre-training alone, then fine-tuning after it."""
    first = {"pretrain": system.pretrain}
    changed = {k: dataclasses.replace(system.finetune, mix_range=v) for k, v in RANGES.items()}
    return {"pretrain": first, **{k: {**first, "finetune": v} for k, v in changed.items()}}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return run_table(3, PAPER, variants, __doc__, argv)


if __name__ == "__main__":
    common.run_main(main)
