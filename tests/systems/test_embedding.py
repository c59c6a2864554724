import jax
import numpy as np

from asdproto.data.dataset import ClipArrays
from asdproto.systems.embedding import training_batch_stats
from tests.training import tiny


def test_batch_statistics_are_those_of_all_training_clips():
    """Clips of one crop each and batches of all of them leave nothing to chance."""
    rng = np.random.default_rng(0)
    features = (3 * rng.standard_normal((6, tiny.CROP, tiny.MELS)) + 1).astype(np.float16)
    clips = ClipArrays(features, np.arange(6), np.full(6, tiny.CROP), tiny.CROP)
    model = tiny.Encoder()
    variables = model.init(jax.random.key(0), features.astype(np.float32), train=True)
    mean, scale = rng.standard_normal(tiny.MELS), rng.uniform(0.5, 2, tiny.MELS)
    found = training_batch_stats(
        model, variables, clips, mean=mean, scale=scale, batches=3, batch=6
    )

    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)
    outputs = ((features.astype(np.float64) - mean) * scale) @ kernel
    (name,) = found
    np.testing.assert_allclose(found[name]["mean"], outputs.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(found[name]["var"], outputs.var((0, 1)), rtol=1e-4)
    assert jax.tree.structure(found) == jax.tree.structure(dict(variables["batch_stats"]))


def test_batch_statistics_do_not_depend_on_what_training_left():
    data = tiny.make_data()
    model = tiny.Encoder()
    crops = data.train.load()[:, : tiny.CROP].astype(np.float32)
    variables = model.init(jax.random.key(0), crops, train=True)
    other = {**variables, "batch_stats": jax.tree.map(lambda x: x + 7, variables["batch_stats"])}
    arguments = {"mean": data.mean, "scale": 1 / data.std, "batches": 2, "batch": 8}
    one, two, three = (
        training_batch_stats(model, v, data.train, seed=seed, **arguments)
        for v, seed in ((variables, 0), (other, 0), (variables, 1))
    )
    assert tiny.same(one, two)
    assert not tiny.same(one, three)
