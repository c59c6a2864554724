"""Ctrl-C and SIGTERM: the first one ends work where nothing is lost, a second one at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nstopping as soon as this is saved; a second signal stops at once\n"

# Of the process, as signals are.
_heard: int | None = None
_deferring = 0
_pipe: list[int] = []  # ends for reading and writing; a signal writes to it, whatever runs
_came, _asked = 0.0, 0.0  # when a signal was seen to have come, and was last asked for


class Stopped(KeyboardInterrupt):
    """The process was asked to stop.

    Attributes:
      number: The signal.
      kept: What is saved, for people; ``""`` where nothing was in the making.
    """

    def __init__(self, number: int, kept: str = ""):
        self.number, self.kept = number, kept
        super().__init__(kept)


def code(stop: KeyboardInterrupt) -> int:
    """Exit code of a process that was interrupted, as shells give it."""
    return 128 + getattr(stop, "number", signal.SIGINT)


def kept(stop: KeyboardInterrupt) -> str:
    """What is saved, with a semicolon after it; ``""`` where it is not known."""
    saved = getattr(stop, "kept", "")
    return f"{saved}; " if saved else ""


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """While inside, the first signal raises :class:`Stopped`; the second ends the process.

    A library may swallow the exception where the signal meets one of its callbacks, or raise its
    own instead. The signal is remembered, so the block ends with :class:`Stopped` all the same.

    Signals that are ignored or have a handler of somebody else's stay as they are, and so do all
    outside of the main thread.
    """
    global _heard, _came
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            # None: of a library, such as the one that connects processes; it only takes notes.
            if handler in (signal.SIG_DFL, signal.default_int_handler, None):
                before[number] = handler or signal.SIG_DFL
            elif handler is not _handle:
                continue
            signal.signal(number, _handle)  # again where a library has replaced it unseen
    if before:
        _listen()
    try:
        try:
            yield
        except Exception as error:
            if _heard is not None:
                raise Stopped(_heard) from error
            raise
        check()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if before:
            _heard, _came = None, 0.0


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """While inside, the first signal is noted only, so that work can be saved.

    Yields:
      Whether there was one; who works asks, saves and calls :func:`stop`.

    Raises:
      Stopped: There was one, and the work has come to its end instead.
    """
    global _deferring
    with handled():
        _deferring += 1
        try:
            yield _is_asked
        finally:
            _deferring -= 1


def _listen() -> None:
    """Lets :func:`overdue` know of signals."""
    if not _pipe:
        _pipe.extend(os.pipe())
        for end in _pipe:
            os.set_blocking(end, False)
    signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)


def _is_asked() -> bool:
    global _asked
    _asked = time.monotonic()
    return _heard is not None


def overdue(seconds: float) -> bool:
    """Whether a signal came so long ago, and who works has not asked for it since; or two came.

    For a thread that looks now and then: the main thread hears of no signal while it is in compiled
    code, such as one that waits for other processes.
    """
    global _came
    with contextlib.suppress(BlockingIOError):
        if _pipe:
            came = [number for number in os.read(_pipe[0], 64) if number in SIGNALS]
            if len(came) + (_came > 0) > 1:
                return True
            if came:
                _came = time.monotonic()
    return _came > 0 and time.monotonic() - max(_came, _asked) > seconds


def check() -> None:
    """Raises :class:`Stopped` if a signal has come and nobody defers it."""
    if _heard is not None and not _deferring:
        raise Stopped(_heard)


def stop(kept: str = "") -> None:
    """Raises :class:`Stopped`, for the signal that was noted or one that another process has."""
    raise Stopped(_heard or signal.SIGTERM, kept)


def _handle(number: int, _: object) -> None:
    global _heard
    _heard = number
    for one in SIGNALS:
        if signal.getsignal(one) is _handle:
            signal.signal(one, signal.SIG_DFL)  # ends the process, also inside compiled code
    if not _deferring:
        raise Stopped(number)
    os.write(2, _NOTICE)
