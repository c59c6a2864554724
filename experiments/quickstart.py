"""From nothing to a DCASE table: synthesize machines, train both stages, score, report.

    python -m experiments.quickstart --workdir runs/quickstart

Everything is the real thing, only small: wav files of a fan and a gearbox in the DCASE 2022 layout,
features by librosa, a network of width 16, and the official metrics. Three systems stand side by
side: the AutoEncoder-style detector that the challenge's baseline is, the pre-trained network, and
the fine-tuned one. Takes under 3 minutes on 2 CPU cores.
"""

import argparse
import dataclasses
import time
from pathlib import Path

from rich.console import Console

from asdproto.config import override, to_dict
from asdproto.data.synthetic import synthesize
from asdproto.systems.autoencoder import QUICK
from asdproto.systems.prototype import PrototypeSystem, RunOptions
from experiments import autoencoder, common, two_stage

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
    if common.only_reports(args.workdir, console):
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
    found = autoencoder.run(plain_store, folder, config=QUICK, seed=args.seed, console=console)
    figures = {"autoencoder": found}
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
