"""What every system with one encoder promises: runs, scores, files, networks a machine type."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asdproto.config import from_dict, to_dict
from asdproto.data.dataset import prepare, section_keys
from asdproto.data.store import write_store
from asdproto.errors import DataError
from asdproto.results import clips as report_clips
from asdproto.scoring.metrics import evaluate, group_scores
from asdproto.systems import preset
from asdproto.systems.members import RunOptions, prepare_for
from asdproto.systems.run import train_run
from asdproto.systems.trained import load_run
from asdproto.training.devices import use_devices
from experiments.rivals import encoders
from experiments.rivals.encoders import ALL, Evidence, partners
from tests.experiments.rivals import tiny
from tests.experiments.rivals.tiny import one_block

__all__ = ["one_block"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.make_store(tmp_path_factory.mktemp("store") / "features")


@pytest.fixture(scope="module")
def waveforms(tmp_path_factory):
    return tiny.make_store(tmp_path_factory.mktemp("store") / "features", tiny.WAVEFORMS)


def _options(workdir):
    return RunOptions(workdir=workdir, devices=use_devices(1))


@pytest.mark.usefixtures("one_block")
@pytest.mark.filterwarnings("ignore::asdproto.scoring.thresholds.ThresholdWarning")
@pytest.mark.filterwarnings("ignore::asdproto.training.loop.CollapseWarning")
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_run_trains_scores_and_loads(kind, store, waveforms, tmp_path):
    system = tiny.system(kind)
    store = waveforms if kind == "stgram" else store
    results = train_run(system, store, _options(tmp_path), seeds=[3])
    assert set(results["systems"][kind]["machines"]) == {"fan", "valve"}
    losses = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    machines = {line["stage"] for line in losses}
    stages = 2 if kind == "dgmix" else 1
    assert len(machines) == stages * (2 if system.per_machine else 1)
    assert len(losses) == len(machines) * 4 - 2 * (stages - 1) * len(machines) // 2

    data = prepare(store, system.crop)
    detector = load_run(tmp_path)
    assert detector.members[0].system == system
    assert from_dict(type(system), to_dict(system)) == system
    member, sections = detector.members[0], section_keys(data.test_clips)
    found = member.compare(data.test, sections)
    figures = evaluate(group_scores(data.test_clips, found.scores))
    assert figures["overall"] == pytest.approx(results["systems"][kind]["overall"], rel=1e-12)
    assert len(np.unique(found.scores)) > len(found.scores) // 2
    # A clip scores to the same bits in any company.
    last = len(sections) - 1
    few = [last, 2]
    again = member.compare(data.test.take(few), [sections[last], sections[2]])
    np.testing.assert_array_equal(again.scores, found.scores[few])

    metrics = (tmp_path / "metrics.jsonl").read_text()
    once_more = system.train(data, _options(tmp_path), [3])[kind][0]
    assert (tmp_path / "metrics.jsonl").read_text() == metrics  # nothing was trained again
    np.testing.assert_array_equal(once_more.member.compare(data.test, sections).scores,
                                  found.scores)  # fmt: skip
    assert np.isfinite(once_more.held_out).all()


@pytest.mark.usefixtures("one_block")
@pytest.mark.parametrize("kind", ["mobilenet", "adacos"])
def test_machine_types_have_networks_of_their_own_by_a_flag(kind, store):
    data = prepare(store, 16)
    together = tiny.system(kind, per_machine=False)
    options = _options(None)
    (found,) = together.train(data, options, [0])[kind]
    assert list(found.member.parts) == [ALL]
    apart = tiny.system(kind, per_machine=True)
    (both,) = apart.train(data, options, [0])[kind]
    assert list(both.member.parts) == ["fan", "valve"]
    # A machine type's network does not know of the others.
    alone = prepare(store, 16, ["valve"])
    (one,) = apart.train(alone, options, [0])[kind]
    valves = [clip.machine_type == "valve" for clip in data.train_clips]
    np.testing.assert_array_equal(one.held_out, both.held_out[valves])


@pytest.mark.parametrize(
    ("kind", "unit", "parameters", "operations"),
    [
        ("mobilenet", 1e6, "687,680 parameters", "32 million"),
        ("stgram", 1e9, "1.34 million parameters", "1.64 billion"),
        ("dgmix", 1e6, "532,000 parameters", "30 million"),
        ("disentangled", 1e9, "11.2 million parameters", "0.46 billion"),
        ("adacos", 1e9, "11.2 million parameters", "0.46 billion"),
    ],
)
def test_networks_are_as_large_as_their_docstrings_say(kind, unit, parameters, operations):
    system = preset(tiny.KINDS[kind], "paper")
    text = " ".join(type(system).__doc__.split())
    assert parameters in text
    assert f"{operations} floating-point operations" in text
    model = system.module("native", None)
    crops = jnp.zeros((1, system.crop, system.features.columns))
    shapes = jax.eval_shape(lambda k: model.init(k, crops, train=False), jax.random.key(0))
    program = jax.jit(lambda v: model.apply(v, crops, train=False)).lower(shapes)
    counted = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    number = float(parameters.split()[0].replace(",", "")) * (1e6 if "million" in parameters else 1)
    assert counted == pytest.approx(number, rel=3e-3)
    number = float(operations.split()[0]) * unit
    assert program.cost_analysis()["flops"] == pytest.approx(number, rel=2e-2)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("name", ["quick", "small", "paper"])
def test_presets_say_what_they_do_and_survive_json(kind, name):
    system = preset(tiny.KINDS[kind], name)
    assert from_dict(type(system), json.loads(json.dumps(to_dict(system)))) == system
    assert system.names == (kind,)
    assert f"{system.stage.total_epochs} epochs" in system.plan(100)


def test_one_class_is_nothing_to_tell_apart(store):
    data = prepare(store, 16)
    rows = [
        i for i, c in enumerate(data.train_clips) if (c.machine_type, c.section) < ("fan", "01")
    ]
    with pytest.raises(DataError, match="training clips of fan: found one class to learn"):
        tiny.system("mobilenet").relabel(data, np.array(rows))


def test_samples_share_one_scale_and_bands_have_their_own(waveforms):
    data = prepare(waveforms, 16)
    found = tiny.system("stgram").relabel(data, np.arange(len(data.labels)))
    mels = tiny.FEATURES.n_mels
    np.testing.assert_array_equal(found.mean[mels:], 0)
    assert len(np.unique(found.std[mels:])) == 1
    # Noise of deviation 0.1.
    np.testing.assert_allclose(found.std[mels], 0.1, rtol=0.05)
    np.testing.assert_array_equal(found.mean[:mels], data.mean[:mels])


@pytest.mark.parametrize("kind", ["prototype", "dgmix"])
def test_waveforms_are_refused_where_none_are_read(kind, waveforms):
    system = dataclasses.replace(
        preset(tiny.KINDS.get(kind, kind), "quick"), features=tiny.WAVEFORMS
    )
    with pytest.raises(DataError, match="log-mel features, which is all that"):
        prepare_for(system, waveforms)


def test_reports_show_the_bands_of_frames_that_hold_samples(tmp_path):
    settings = dataclasses.replace(tiny.WAVEFORMS, n_mels=4, n_fft=64)
    features = np.arange(2 * 5 * settings.columns).reshape(2, 5, -1)
    kept = write_store(tmp_path, features, tiny.clips()[:2], settings=settings, dtype="float32")
    shown = report_clips._stored_spectrogram(types.SimpleNamespace(store=kept), 1)
    np.testing.assert_array_equal(shown.values, features[1, :, :4])


@pytest.mark.parametrize(("batch", "expected"), [(4, [1, 0, 3, 2]), (5, [1, 0, 3, 2, 4])])
def test_neighbors_are_partners(batch, expected):
    np.testing.assert_array_equal(partners(batch), expected)


@pytest.mark.parametrize("odds", [True, False])
def test_evidence_equals_its_formula(odds):
    rng = np.random.default_rng(0)
    crops = rng.standard_normal((5, 4, 3)).astype(np.float32)
    kernel, bias = rng.standard_normal((3, 6)), rng.standard_normal(3)

    class Encoder(encoders.nn.Module):
        @encoders.nn.compact
        def __call__(self, crops, *, train):
            return 3 * crops.reshape(len(crops), -1)[:, :6]

    variables = {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    found = Evidence(Encoder(), 3, odds).apply(variables, crops, train=False)
    logits = 3 * np.asarray(crops, np.float64).reshape(5, -1)[:, :6] @ kernel.T + bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = (np.log(1 - p) if odds else 0) - np.log(p)
    # float32 logits of size 10.
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # Where p is 1 in float32, the odds are still told.
    sure = {"params": {"kernel": 30 * jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    assert np.isfinite(Evidence(Encoder(), 3, odds).apply(sure, crops, train=False)).all()


def test_training_uses_the_key_of_its_label():
    # Two networks of one seed must not start alike; a run's label is part of its key.
    keys = {
        jax.random.key_data(encoders.stage_key(0, label)).tobytes() for label in ("fan", "valve")
    }
    assert len(keys) == 2
