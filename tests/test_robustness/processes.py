"""Commands in processes of their own, to be killed; starting one costs no imports."""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asdproto import cli
from tests.test_robustness import tiny_run

PATIENCE = 240  # seconds until a test gives up; nothing is timed


@pytest.fixture(scope="session")
def server():
    """Processes are forked from one that has imported everything and has touched no device."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "pytest",
            "asdproto.cli",
            "asdproto.data.extract",
            "asdproto.results.page",
            "asdproto.systems.autoencoder",
            "asdproto.systems.detector",
            "asdproto.training.checkpoint",
            "jinja2",
            "librosa.core.audio",
            "librosa.filters",
            "matplotlib.backends.backend_svg",
            "sklearn.mixture",
            "sklearn.metrics",
            "tests.test_robustness.processes",
        ]
    )
    return context


def _in_child(function: Callable[..., int], arguments: tuple, log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    raise SystemExit(function(*arguments))


def command(arguments: list[str]) -> int:
    """The command line, with what tests have set in their own process."""
    import jax

    from asdproto.results import page
    from asdproto.systems import prototype

    page.MOST_SHOWN = 1  # drawing is slow
    prototype.ResNet = tiny_run.encoder
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return cli.main(arguments)


@contextlib.contextmanager
def started(server, function, arguments, log) -> Iterator[multiprocessing.Process]:
    """A process that runs a function of this package; gone at the end."""
    process = server.Process(target=_in_child, args=(function, arguments, log))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def wait_for(process, condition: Callable[[], bool], log: Path) -> bool:
    """Waits until something is so; whether it is, since the process may end before."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        if not process.is_alive():
            return condition()
        assert time.monotonic() < give_up, log.read_text()[-3000:]
        time.sleep(0.002)
    return True


def ended(process, log: Path) -> int:
    """Exit code of a process that ends by itself; minus the signal that ended it."""
    process.join(PATIENCE)
    assert process.exitcode is not None, log.read_text()[-3000:]
    return process.exitcode
