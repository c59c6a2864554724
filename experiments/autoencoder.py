"""The AutoEncoder row of Table 1 on a data set: the baseline of DCASE 2022 Task 2.

    python -m experiments.autoencoder --data DCASE_ROOT --workdir runs/autoencoder --preset paper

The same as ``python -m asdproto train DCASE_ROOT runs/autoencoder --system autoencoder``. The work
folder keeps features, official score files, ``results.json`` and ``report.html``; a second call on
a finished one only reports. Numbers are changed by dotted overrides (``epochs=50``).

Presets: ``paper`` is the official baseline (100 epochs); ``small`` and ``quick`` are for a few
hundred clips, in seconds on a CPU.
"""

from asdproto.commands import train
from experiments import common


def main(argv: list[str] | None = None) -> None:
    parser = common.make_parser("autoencoder", __doc__)
    train.add_arguments(parser, "autoencoder")
    train.run(parser.parse_args(argv))


if __name__ == "__main__":
    common.run_main(main)
