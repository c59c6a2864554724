"""What the oldest jax that we promise must do: import, doctests, README's example.

Run as a program where nothing but jax is installed: ``make test-losses-oldest``.
"""

import doctest
import importlib
import pkgutil
import sys

import jax

import asdproto.losses
import asdproto.prototypes
import asdproto.sampling
from tests.losses.examples import run_example


def main() -> int:
    """Prints what was run; 1 if an example printed something else."""
    names = [x.name for x in pkgutil.iter_modules(asdproto.losses.__path__, "asdproto.losses.")]
    modules = [asdproto.prototypes, asdproto.sampling, *map(importlib.import_module, names)]
    results = [doctest.testmod(module, optionflags=doctest.ELLIPSIS) for module in modules]
    run_example("README.md", "losses-jax")
    failed, attempted = (sum(x) for x in zip(*results, strict=True))
    print(
        f"jax {jax.__version__}: README's example; {attempted} lines of doctests, {failed} failed"
    )
    return int(failed > 0 or not attempted)


if __name__ == "__main__":
    sys.exit(main())
