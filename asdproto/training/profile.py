"""A trace of a few steps, for finding out what they spend their time on."""

from pathlib import Path
from typing import Any

import jax


class StepTrace:
    """Records the steps that come after those that compile.

    Args:
      folder: Where the trace goes, in the profiler's own layout.
      steps: How many at least; an epoch that is one call is recorded as a whole. 0 for none.
    """

    def __init__(self, folder: Path, steps: int):
        self._folder, self._left, self._running = folder, steps, False

    def step(self, state: Any, steps: int) -> None:
        """To be called with the state after every call, and the steps that it took."""
        if self._left <= 0:
            return
        jax.block_until_ready(state)
        if not self._running:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
            return
        self._left -= steps
        if self._left <= 0:
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is being recorded."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
