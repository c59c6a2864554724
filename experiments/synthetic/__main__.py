"""``python -m experiments.synthetic OUT``: writes a set of machine sounds."""

import inspect
from pathlib import Path

from asdproto.arguments import Parser
from experiments import common
from experiments.synthetic import MACHINES, SECTIONS, synthesize


def main(argv: list[str] | None = None) -> None:
    parameters = inspect.signature(synthesize).parameters
    parser = Parser(
        prog="python -m experiments.synthetic",
        description="Writes machine sounds, normal and faulty, in the layout of DCASE 2022 Task 2.",
    )
    add = parser.add_argument
    add("out", type=Path, help="folder to make; the recordings go to OUT/dev_data")
    add("--machines", nargs="+", choices=tuple(MACHINES), default=list(MACHINES), metavar="NAME")
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NN")
    for name, kind, text in (
        ("clips", int, "source training clips of a section; 990 in the real set"),
        ("target-clips", int, "target training clips of a section; 10 in the real set"),
        ("test-clips", int, "of each domain and state; 50 in the real set"),
        ("seconds", float, "of a clip; 10 in the real set"),
        ("seed", int, "of everything that differs between clips"),
        ("workers", int, "processes; one a core when not given"),
    ):
        add(f"--{name}", type=kind, default=parameters[name.replace("-", "_")].default, help=text)
    print(f"written: {synthesize(**vars(parser.parse_args(argv)))}")


if __name__ == "__main__":
    common.run_main(main)
