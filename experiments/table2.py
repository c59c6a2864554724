"""Table 2 of the paper: the share of a class that a sub-prototype averages (MPE).

    python -m experiments.table2 --data DCASE2022_ROOT --workdir runs/table2 --seeds 0 1 2

Presets are those of ``two_stage``, and overrides, which begin with ``prototype.``. The grid is
resumable and shared by processes, see :mod:`experiments.grid`. On accelerators all
ratios and seeds are one program, see :mod:`experiments.side_by_side`.
"""

import dataclasses
import functools
from typing import Any

from asdproto.results.tables import HEADLINE
from asdproto.systems.prototype import PrototypeSystem
from experiments import common, grid, table1
from experiments.side_by_side import Variants

# Key: name and figures in percent: source AUC, target AUC, pAUC, overall.
PAPER = {
    "without": ("w/o MPE", (83.53, 68.60, 63.53, 70.94)),
    "half": ("50%", (84.54, 70.02, 63.31, 71.59)),
    "quarter": ("25%", (84.75, 69.70, 64.64, 72.09)),
    "eighth": ("12.5%", (83.98, 68.49, 64.58, 71.44)),
}
CHANGES: dict[str, dict[str, Any]] = {
    "without": {"sub_prototypes": 0},
    "half": {"mpe_ratio": 0.5},
    "quarter": {"mpe_ratio": 0.25},
    "eighth": {"mpe_ratio": 0.125},
}


def variants(system: PrototypeSystem) -> Variants:
    """The rows: pre-training alone."""
    return {
        key: {"pretrain": dataclasses.replace(system.pretrain, **change)}
        for key, change in CHANGES.items()
    }


def run_table(table: int, paper: Any, make_variants: Any, doc: str | None, argv: Any) -> Any:
    """A table of variants of the paper's system."""
    kinds = {"prototype": "prototype"}
    args = grid.make_parser(f"table{table}", doc, kinds).parse_args(argv)
    system = grid.get_systems(kinds, kinds, args)["prototype"]
    options = grid.start(args, argv, table=table)
    rows = []
    for key, (name, figures) in paper.items():
        results = functools.partial(table1.scores_of, args.workdir, key)
        rows.append(grid.Row(key, name, results, dict(zip(HEADLINE, figures, strict=True))))
    cells = table1.variant_cells(system, make_variants(system), args, options)
    return grid.finish(table, rows, cells, args, options)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return run_table(2, PAPER, variants, __doc__, argv)


if __name__ == "__main__":
    common.run_main(main)
