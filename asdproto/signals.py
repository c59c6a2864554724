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
_deferring = 0
_noted: int | None = None
_heard, _asked = 0.0, 0.0  # when the first signal came, and when it was last asked for


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

    Signals that are ignored or have a handler of somebody else's stay as they are, and so do all
    outside of the main thread.
    """
    global _noted, _heard
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
    if not before:
        yield
        return
    try:
        with _watched():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _noted, _heard = None, 0.0


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """A thread that hears of signals at once.

    Python runs handlers between two of its instructions, of which compiling a program, or waiting
    for an epoch, is a single one.
    """
    hears, speaks = os.pipe()
    os.set_blocking(speaks, False)
    before = signal.set_wakeup_fd(speaks, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(hears,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(speaks)


def _watch(hears: int) -> None:
    global _heard
    heard = 0
    while number := os.read(hears, 1):
        if number[0] in SIGNALS:
            heard += 1
            _heard = time.monotonic()
            if heard > 1:
                os._exit(128 + number[0])
            if _deferring:
                with contextlib.suppress(OSError):
                    os.write(2, _NOTICE)
    os.close(hears)


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
        if _noted is not None and not _deferring:
            stop()


def overdue(seconds: float) -> bool:
    """Whether a signal came so long ago, and who works has not asked for it since."""
    return _heard > 0 and time.monotonic() - max(_heard, _asked) > seconds


def _is_asked() -> bool:
    global _asked
    _asked = time.monotonic()
    return _noted is not None


def stop(kept: str = "") -> None:
    """Raises :class:`Stopped`, for the signal that was noted or one that another process has."""
    raise Stopped(_noted or signal.SIGTERM, kept)


def _handle(number: int, _: object) -> None:
    global _noted
    if not _deferring:
        raise Stopped(number)
    _noted = number
