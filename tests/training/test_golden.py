"""Twenty steps of both stages on fixed data give the losses that stand here."""

import json

import numpy as np

from asdproto.config import override
from asdproto.systems.prototype import train
from asdproto.training.devices import RunOptions, use_devices
from tests.training import tiny

# Mean loss of every epoch of ten steps.
GOLDEN = {"pretrain": [1.46474, 1.00723], "finetune": [0.01422, 0.02311]}

WHEN = """The losses of a fixed run have moved: {found}.
Update them only if what training computes was meant to change (a default, a formula, the order of
random draws, the initial weights), in a commit that says so and by how much results change. A
change of structure, speed or names must leave them as they are; then look for the mistake."""


def test_losses_of_a_fixed_run(tmp_path):
    system = override(
        tiny.System(),
        [
            "pretrain.epochs=2",
            "pretrain.batch_size=8",
            "pretrain.steps_per_epoch=10",
            "finetune.epochs=2",
            "finetune.ways=4",
            "finetune.shots=2",
            "finetune.steps_per_epoch=10",
        ],
    )
    options = RunOptions(tmp_path, use_devices(1), loop="dispatch")
    train(system, tiny.make_data(), options, [3])
    found: dict = {}
    for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        found.setdefault(line["stage"], []).append(round(line["loss"], 5))
    for stage, losses in GOLDEN.items():
        # Machines differ in the last bits of a sum; twenty steps make up to 1e-3 of them.
        np.testing.assert_allclose(
            found[stage], losses, rtol=1e-3, err_msg=WHEN.format(found=found)
        )
