"""From nothing to a DCASE table: make machines' sounds, train, score, report.

    python -m experiments.quickstart --workdir runs/quickstart

Everything is the real thing, only small: wav files of a bearing and a gearbox in the DCASE 2022
layout, features by librosa, a network of width 16, and the official metrics. The AutoEncoder-style
detector that the challenge's baseline is stands beside the pre-trained network, the fine-tuned one,
and what every run fits beside it. Takes about 80 seconds on 2 CPU cores.

This is a demonstration and no benchmark: the machines are made so that what the method is for can
be seen. Their surroundings differ more from clip to clip than a fault changes the machine, they
work under many conditions with audible differences, and faults are small changes of the machine
itself; see :mod:`experiments.synthetic`. How faint the faults are was set with seeds 0 and 1,
looking at these figures; the others were new. On recordings of real machines other systems may be
better; ``docs/experiments.md`` has figures. Overall figures of five seeds, in percent:

============  ====  ====  ====  ====  ====
system           0     1     2     3     4
============  ====  ====  ====  ====  ====
autoencoder   56.8  57.6  55.2  57.1  53.2
pretrain      65.4  66.4  59.1  65.2  66.6
finetune      65.3  66.0  59.1  65.2  65.2
spectral-knn  60.4  55.5  54.6  58.5  57.5
gmm           63.1  62.1  56.8  64.2  61.1
============  ====  ====  ====  ====  ====
"""

import time
from pathlib import Path

from rich.console import Console

from asdproto.arguments import Parser
from asdproto.commands import train
from asdproto.config import describe_fields, override
from asdproto.systems import autoencoder
from asdproto.systems.prototype import PrototypeSystem
from asdproto.systems.run import features_of, train_beside, train_run, train_yardsticks
from asdproto.systems.workdir import check_same_run, run_settings
from asdproto.training.devices import RunOptions
from experiments import common, two_stage
from experiments.synthetic import synthesize

MACHINES = ("bearing", "gearbox")
SECTIONS = ("00", "01")
CLIPS, TARGET_CLIPS, TEST_CLIPS, SECONDS = 50, 10, 15, 6.0
ABOUT = (
    "These machines are made so that what the method is for can be seen: their surroundings differ "
    "more from clip to clip than a fault changes the machine, and they work under many conditions."
)


def get_config() -> PrototypeSystem:
    """The paper's system at the size of the quickstart."""
    return override(two_stage.get_config("small"), ["pretrain.epochs=30", "finetune.epochs=15"])


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m experiments.quickstart", description=__doc__)
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/quickstart"), help="folder for all results"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--clips", type=int, default=CLIPS, help="source training clips a section")
    parser.add_overrides(lambda _: describe_fields(get_config()))
    train.add_device_arguments(parser)
    args = parser.parse_args(argv)
    console, started = Console(), time.monotonic()
    system = override(get_config(), args.overrides)
    check_same_run(args.workdir, run_settings(system, [args.seed], None))
    if train.report_if_finished(args.workdir, console):
        return
    devices = train.start_devices(args)
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
    console.print(ABOUT, highlight=False)
    console.rule("2  Features: inverted log-mel for the prototypes, log-mel for the autoencoder")
    store = features_of(data, args.workdir / "features", system.features, console)
    baseline = autoencoder.PRESETS["quick"]
    plain = features_of(data, args.workdir / "features_mel", baseline.features, console)
    options = RunOptions(args.workdir, devices, console, args.loop)
    console.rule("3  Prototypes: pre-training, then fine-tuning")
    results = train_run(system, store, options, seeds=[args.seed])
    console.rule("4  AutoEncoder-style detector")
    systems = train_beside(baseline, plain, options, seeds=[args.seed])
    yardsticks = train_yardsticks(system, store, options)
    results["systems"] = {**systems, **results["systems"], **yardsticks}
    results["yardsticks"] = list(yardsticks)
    results["seconds"]["all"] = round(time.monotonic() - started, 1)
    console.rule("5  Results")
    train.finish(args.workdir, results, console)
    clip = next(c for c in store.clips if c.split == "test" and c.state == "anomaly")
    console.print(
        f"Took {results['seconds']['all']:.0f} s. Score any recording with it:\n"
        f"  python -m asdproto score {args.workdir} {data / clip.path}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    common.run_main(main)
