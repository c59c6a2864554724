"""The README's examples of the losses, run as they are printed."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("name", ["losses-jax", "losses-flax"])
def test_the_example_of_the_readme_runs(name):
    pattern = rf"<!-- example: {name} -->\s*```python\n(.*?)```"
    found = re.search(pattern, README.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"README.md has no block marked <!-- example: {name} -->"
    space = {"__name__": name}
    exec(compile(found.group(1), f"README.md: {name}", "exec"), space)
    first, last = space["history"][0], space["history"][-1]
    assert last < 0.7 * first, "the example's loss should fall"
