"""One function over many recordings, on every core."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

# Decoding, transforms and products run without the interpreter's lock, what is between with it.
_MOST_WORKERS = 16
Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Iterator[Result]:
    """Results of a function of every item, in order.

    They are computed in threads that use one core each; by default there is one for each core
    that this process may use.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(workers or min(cores or 1, _MOST_WORKERS))
    try:
        # Libraries that threads load at the same time change the filters of warnings, which are the
        # process's own, and do not put them back.
        with threadpool_limits(limits=1), warnings.catch_warnings():
            yield from pool.map(function, items)
    finally:  # also after an interrupt: what has not begun does not begin
        pool.shutdown(wait=True, cancel_futures=True)
