"""A run of the command line that is as small as runs get."""

from pathlib import Path

from asdproto.models.resnet import ResNet

OVERRIDES = (
    "encoder.width=4",
    "encoder.crop=16",
    "features.n_mels=16",
    "features.n_fft=512",
    "pretrain.epochs=2",
    "pretrain.batch_size=4",
    "finetune.epochs=2",
    "finetune.ways=2",
    "finetune.shots=2",
)


def encoder(**fields) -> ResNet:
    """Of one block: compiling eight would be most of the run."""
    return ResNet(stages=(1,), **fields)


def command(data: Path, workdir: Path, *more: str) -> list[str]:
    """The training command."""
    options = ["--system", "prototype", "--preset", "quick", "--devices", "1"]
    return ["train", str(data), str(workdir), *options, *OVERRIDES, *more]
