"""Our pages' examples of the losses, run as they are printed."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "name"), [("README.md", "losses-jax"), ("docs/losses.md", "losses-flax")]
)
def test_the_example_runs(page, name):
    pattern = rf"<!-- example: {name} -->\s*```python\n(.*?)```"
    found = re.search(pattern, (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{page} has no block marked <!-- example: {name} -->"
    space = {"__name__": name}
    exec(compile(found.group(1), f"{page}: {name}", "exec"), space)
    first, last = space["history"][0], space["history"][-1]
    assert last < 0.7 * first, "the example's loss should fall"
