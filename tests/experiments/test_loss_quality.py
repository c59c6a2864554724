"""The quality part of the loss benchmark: a run a seed, repeats read back, one program or many."""

import json
import re
from pathlib import Path

import numpy as np
import optax
import pytest

from asdproto.losses import proxy_softmax_logits
from asdproto.prototypes import l2_normalize
from asdproto.training.objectives import Objective, make_objective
from experiments.benchmarks import losses as bench_losses
from tests.experiments.collection import write_collection

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_block")]

SMALL = (
    "encoder.width=4",
    "encoder.crop=32",
    "pretrain.epochs=2",
    "pretrain.ways=4",
    "pretrain.shots=2",
)
LOSSES = ("sub_cluster_adacos", "multi_prototype")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("quality")
    write_collection(root / "clips")
    return root


def _run(places, *more, workdir="one", losses=LOSSES, own=None):
    return bench_losses.main(
        [
            *("--part", "quality", "--data", str(places / "clips"), "--preset", "quick"),
            *("--features", str(places / "features"), "--workdir", str(places / workdir)),
            *("--loss", *losses, *more, "--set", *SMALL),
        ],
        own=own,
    )


def test_losses_are_trained_and_compared(places, capsys):
    out, picture = places / "quality.json", places / "quality.png"
    result = _run(places, "--seeds", "0", "1", "--out", str(out), "--plot", str(picture))
    assert json.loads(out.read_text()) == result
    assert list(result["losses"]) == list(LOSSES)
    for loss, found in result["losses"].items():
        for name in ("source_auc", "target_auc", "pauc", "overall"):
            values = found[name]["values"]
            assert len(values) == 2
            assert found[name]["mean"] == pytest.approx(np.mean(values), abs=1e-4)
            assert found[name]["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
        own = json.loads((places / "one" / "scores" / f"{loss}-1" / "results.json").read_text())
        assert own["overall"] == pytest.approx(found["overall"]["values"][1], abs=1e-4)
    assert picture.stat().st_size > 10_000
    capsys.readouterr()

    # A third seed and a repeat: only what is missing is trained.
    before = set((places / "one" / "runs").iterdir())
    more = _run(places, "--seeds", "0", "1", "2", losses=LOSSES[1:])
    (added,) = set((places / "one" / "runs").iterdir()) - before
    assert added.name == "multi_prototype-2"
    figures = more["losses"]["multi_prototype"]["overall"]["values"]
    assert figures[:2] == result["losses"]["multi_prototype"]["overall"]["values"]
    assert "multi_prototype" in capsys.readouterr().out
    bench_losses.main(["--plot-from", str(out), "--plot", str(picture)])


def _documented():
    """What the example of CONTRIBUTING.md defines."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- example: own-loss -->\s*```python\n(.*?)```", text, re.DOTALL)
    space = {"__name__": "example"}
    exec(compile(code, "CONTRIBUTING.md: own-loss", "exec"), space)
    return space


def test_a_loss_of_ones_own_is_a_function_and_an_argument(places):
    def my_objective(stage):
        """Softmax over learned prototypes, of our logits and optax's cross entropy."""
        theirs = make_objective("softmax", stage)

        def loss(params, state, embeddings, batch, *, hyper, **_):
            prototypes = l2_normalize(params["prototypes"])
            logits = proxy_softmax_logits(embeddings, prototypes, temperature=hyper.temperature)
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
            return entropy, state.loss_state

        return Objective("mine", loss, init=theirs.init)

    own = {"mine": my_objective, "pull": _documented()["objective"]}
    names = ("softmax", *own)
    result = _run(places, "--seeds", "0", workdir="own", losses=names, own=own)
    assert list(result["losses"]) == list(names)
    softmax, mine = (
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (places / "own" / "runs" / f"{name}-0" for name in ("softmax", "mine"))
    )
    np.testing.assert_allclose(mine, softmax, rtol=1e-3)  # rounding grows over two epochs


def test_seeds_as_one_program_give_the_same_losses(places):
    _run(places, "--seeds", "3", "4", "--no-together", workdir="apart", losses=LOSSES[:1])
    _run(places, "--seeds", "3", "4", "--together", workdir="together", losses=LOSSES[:1])

    def lines(workdir):
        (run,) = (places / workdir / "runs").iterdir()
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    apart = np.array([line["loss"] for line in lines("apart")]).reshape(2, 2)
    together = np.array([line["losses"] for line in lines("together")]).T
    np.testing.assert_allclose(together, apart, rtol=1e-3)


def test_refusals(places, capsys):
    with pytest.raises(SystemExit):
        bench_losses.main(["--part", "quality", "--loss", "center"])
    assert "softmax_center" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_losses.main(["--loss", "mpe_npe"])
    assert "--part speed knows" in capsys.readouterr().err
