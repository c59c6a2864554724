"""The paper's method on a data set: MPE pre-training, NPE fine-tuning, Mahalanobis scores.

    python -m experiments.two_stage --data DCASE_ROOT --workdir runs/paper --preset paper --seeds 0

The same as ``python -m asdproto train DCASE_ROOT runs/paper --system prototype``. The work folder
keeps features, checkpoints, ``metrics.jsonl``, official score files, ``results.json`` and
``report.html``. The same command on an unfinished work folder continues where it stopped; on a
finished one it only reports. Numbers are changed by dotted overrides:

    ... --preset small pretrain.epochs=60 finetune.mix_range="(0.5, 0.75)"

Presets: ``paper`` is section 4.2 (width 64, 120 + 50 epochs); ``small`` a network of width 16 for
10 + 5 epochs; ``quick`` the same network for 5 + 3, to see that everything runs.
"""

from asdproto.commands import train
from asdproto.systems import preset
from asdproto.systems.prototype import STAGES, PrototypeSystem
from experiments import common


def get_config(name: str = "paper") -> PrototypeSystem:
    """The system at a preset.

    Raises:
      ConfigError: There is no such preset.
    """
    return preset("prototype", name)


def main(argv: list[str] | None = None) -> None:
    parser = common.make_parser("two_stage", __doc__)
    parser.add_argument(
        "--stages",
        choices=("both", *STAGES),
        default="both",
        help="finetune alone trains from scratch (the paper's 'w/o pre-train')",
    )
    train.add_arguments(parser, "prototype")
    arguments = parser.parse_args(argv)
    if arguments.stages != "both":
        arguments.overrides.append(f"stages=('{arguments.stages}',)")
    train.run(arguments)


if __name__ == "__main__":
    common.run_main(main)
