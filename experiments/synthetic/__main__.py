"""``python -m experiments.synthetic OUT``: writes a set of machine sounds."""

from pathlib import Path

from asdproto.arguments import Parser
from experiments import common
from experiments.synthetic import synthesize


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m experiments.synthetic", description=synthesize.__doc__)
    parser.add_argument("out", type=Path, help="folder to make")
    print(f"written: {synthesize(parser.parse_args(argv).out)}")


if __name__ == "__main__":
    common.run_main(main)
