"""Runs the examples of our pages as they are printed; needs what an example needs and no more."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def example(page, name):
    """A page's block marked ``<!-- example: NAME -->``."""
    pattern = rf"<!-- example: {name} -->\s*```python\n(.*?)```"
    found = re.search(pattern, (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{page} has no block marked <!-- example: {name} -->"
    return found.group(1)


def run_example(page, name):
    """The names that a page's block leaves behind."""
    space = {"__name__": name}
    exec(compile(example(page, name), f"{page}: {name}", "exec"), space)
    first, last = space["history"][0], space["history"][-1]
    assert last < 0.7 * first, "the example's loss should fall"
    return space
