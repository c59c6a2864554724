"""Our pages' examples of the losses, run as they are printed."""

import pytest

from tests.losses.examples import run_example


@pytest.mark.parametrize("name", ["losses-jax", "losses-nnx", "losses-equinox", "losses-optax"])
def test_the_example_runs(name):
    if name == "losses-equinox":
        pytest.importorskip("equinox")
    run_example("docs/losses.md", name)


def test_the_example_of_the_front_page_runs():
    run_example("README.md", "losses-jax")
