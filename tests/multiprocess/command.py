"""The experiment's command with a small network, and a function slowed down where a test wants it.

ASDPROTO_TEST_SLOW=FUNCTION python -m tests.multiprocess.command --data ROOT ...
"""

import functools
import os
import time

import jax

from asdproto.data import extract
from asdproto.results import page
from asdproto.systems import run
from asdproto.systems.prototype import PrototypeSystem
from experiments import common, two_stage

SHUTDOWN, SECONDS = 2, 3  # what JAX waits at the end, lowered here, and what is longer


def _slow_once(module, name):
    function = getattr(module, name)

    def slowly(*args, **kwargs):
        setattr(module, name, function)
        time.sleep(SECONDS)
        return function(*args, **kwargs)

    setattr(module, name, slowly)


if __name__ == "__main__":
    _initialize = jax.distributed.initialize
    jax.distributed.initialize = functools.partial(_initialize, shutdown_timeout_seconds=SHUTDOWN)
    network = PrototypeSystem.network
    PrototypeSystem.network = lambda *args, **more: network(*args, **more).clone(stages=(1,))
    run.YARDSTICKS = ()
    # What process 0 does alone: features before training, the report after it.
    for module, name in ((extract, "build_store"), (page, "write_report")):
        if name == os.environ.get("ASDPROTO_TEST_SLOW"):
            _slow_once(module, name)
    common.run_main(two_stage.main)
