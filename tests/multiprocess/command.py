"""The experiment's command with a small network, slowed down where a test wants it.

ASDPROTO_TEST_SLOW=SECONDS python -m tests.multiprocess.command --data ROOT ...
"""

import functools
import os
import time

import jax

from asdproto.systems import run
from asdproto.systems.prototype import EncoderConfig
from asdproto.training import processes
from experiments import common, two_stage

# Longer than what JAX waits at the end, which is lowered here.
SECONDS = float(os.environ.get("ASDPROTO_TEST_SLOW", "0"))
SHUTDOWN = 3


def _slow(function):
    @functools.wraps(function)
    def slowly(*args, **kwargs):
        if processes.is_main():
            time.sleep(SECONDS)
        return function(*args, **kwargs)

    return slowly


if __name__ == "__main__":
    _initialize = jax.distributed.initialize
    jax.distributed.initialize = functools.partial(_initialize, shutdown_timeout_seconds=SHUTDOWN)
    build = EncoderConfig.build
    EncoderConfig.build = lambda *args, **more: build(*args, **more).clone(stages=(1,))
    # What process 0 does alone: features before training, scores after it.
    from asdproto.data import extract

    extract.build_store = _slow(extract.build_store)
    run.score_all = _slow(run.score_all)
    common.run_main(two_stage.main)
