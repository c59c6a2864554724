"""How the processes of a run find each other, wait for each other, and end together."""

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from asdproto import __version__, signals
from asdproto.config import ConfigError
from asdproto.errors import DataError
from asdproto.files import differences

# Seconds: without a sign of life, after which a process is gone; without a step, after which one
# that was asked to stop ends; that one has to end by itself once another has failed; between looks.
_BEAT, _STUCK, _GRACE, _LOOK = 20.0, 30.0, 3.0, 1.0
_TOKEN = ".processes"  # in the work folder, while processes find out whether they share it
# Number of processes, and what only a process has that was started as one of them.
_HINTS = (
    ("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_ADDRESS"),
    ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS"),
    ("SLURM_NTASKS", "SLURM_STEP_NODELIST"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"),
    ("JOB_COMPLETION_INDEX", ""),  # the pods of a job may well be independent of each other
)


class PeerError(ConnectionError):
    """Another process of the run has failed or is gone; the message says which."""


class AloneWarning(UserWarning):
    """A variable speaks of several processes, but this one runs alone."""


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None
) -> Iterator[None]:
    """Joins the processes of a run for as long as the block lasts; before any use of a device.

    Where one fails or is gone, all end within seconds and say which. None leaves before all have
    come to the end of the block. Without options, JAX finds the processes of a cluster.

    Args:
      coordinator: ``host:port`` of process 0.
      processes: Number of processes; 1 keeps this one alone.
      process_id: This process's number, from 0.

    Raises:
      ConfigError: Only some of the three are given; or this is one of several processes, and JAX
        does not find the others.
      PeerError: Another process has failed.

    Warns:
      AloneWarning: The environment speaks of several processes, but this one runs alone.
    """
    global _peers
    if not _join(coordinator, processes, process_id):
        yield
        return
    _peers = _Peers()
    try:
        yield
        _peers.meet()
    except BaseException as error:
        _peers.fail(error)
        raise
    finally:
        _peers.left.set()
        _peers = None


def is_main() -> bool:
    """Whether this is process 0, which writes and speaks; before devices are known too."""
    return _peers is None or _peers.index == 0


def alone(work: Callable[[], Any]) -> Any:
    """What ``work()`` returns in process 0, while the others wait for as long as it takes.

    Every process returns it, so it must be fit for json. Where it fails, process 0 raises the error
    as it is, and the others :class:`PeerError`.
    """
    if _peers is None:
        return work()
    return _peers.tell(work() if _peers.index == 0 else None)


def agree_on(facts: Mapping[str, Any], workdir: Path | None = None) -> None:
    """Ends the run where its processes differ in facts, or in a work folder that all must share.

    Raises:
      DataError: This process differs from process 0; names the field and both values.
      PeerError: Another one does.
    """
    if _peers is None:
        return
    if workdir is not None:
        _check_shared(_peers, workdir)
        newest = {path.parent.name: int(path.name) for path in _saved(workdir)}
        facts = {**facts, "newest checkpoint": newest}
        facts |= {"asdproto version": __version__, "jax version": jax.__version__}
    mine = json.loads(json.dumps(facts))
    for name, here, there in differences(mine, _peers.tell(mine)):
        remedy = "Run the same command with the same software and data in all processes."
        raise DataError(name, f"{here!r}", f"{there!r}, as in process 0", remedy)
    _peers.meet()


def agreed_to_stop() -> None:
    """Notes that all processes stop at this step: none is a failure to the others."""
    if _peers is not None:
        _peers.stopping = True


def _join(coordinator: str | None, processes: int | None, process_id: int | None) -> bool:
    """Whether several processes now run as one."""
    options = coordinator, processes, process_id
    if options == (None, 1, None):
        return False
    if None in options and any(option is not None for option in options):
        raise ConfigError(
            "--coordinator HOST:PORT, --processes N and --process-id I go together; found "
            f"coordinator={coordinator}, processes={processes}, process_id={process_id}"
        )
    # JAX would take SIGTERM away from us; what it does with it, Devices.agree does.
    jax.config.update("jax_enable_preemption_service", False)
    variable, several = _hint()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Kubernetes has a library for this
            # JAX, which does not say who is gone, ends all processes after half of that or later.
            jax.distributed.initialize(*options, heartbeat_timeout_seconds=int(3 * _BEAT))
    except jax.errors.JaxRuntimeError as error:
        first = str(error).partition("\n")[0]
        raise PeerError(f"the processes of this run do not find each other: {first}") from None
    except Exception as error:  # clusters have their own
        if coordinator is not None:
            raise
        if several:
            raise ConfigError(
                f"{variable}: this is one of several processes, but JAX finds no coordinator "
                f"({error}); expected --coordinator HOST:PORT --processes N --process-id I, or "
                "--processes 1 for a process that runs alone"
            ) from None
        if variable:
            warnings.warn(
                f"{variable} speaks of several processes, but no other is found: this one runs "
                "alone; --coordinator, --processes and --process-id join several",
                AloneWarning,
                stacklevel=4,
            )
        return False
    if jax.process_count() == 1:
        return False
    # The first contact must come within a limit (30 s on CPUs); later ones have none.
    multihost_utils.sync_global_devices("contact")
    return True


def _hint() -> tuple[str, bool]:
    """What speaks of several processes, if anything does, and whether this is one of them."""
    for name, own in _HINTS:
        value = os.environ.get(name, "")
        lone = ("", "1") if name.endswith(("NTASKS", "SIZE")) else ("",)
        if value not in lone and (name != "TPU_WORKER_HOSTNAMES" or "," in value):
            return f"{name}={value}", own in os.environ
    return "", False


def _check_shared(peers: "_Peers", workdir: Path) -> None:
    """Refuses a work folder in which this process does not see what process 0 writes."""
    token = workdir / _TOKEN
    if peers.index == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        token.write_text(secrets.token_hex())
    text, folder = peers.tell([token.read_text(), str(workdir)] if peers.index == 0 else None)
    for _ in range(50):  # a network file system may take a moment to show it
        with contextlib.suppress(OSError):
            if token.read_text() == text:
                break
        time.sleep(0.1)
    else:
        found = "a work folder without what process 0 writes there"
        remedy = "Name a folder on a file system that all processes share."
        raise DataError(workdir, found, f"the one that process 0 calls {folder}", remedy)
    peers.meet()
    if peers.index == 0:
        token.unlink()
    peers.workdir = workdir


def _saved(workdir: Path) -> list[Path]:
    """Folders of the whole checkpoints of all stages, the newest one last."""
    steps = [path for path in workdir.glob("checkpoints/*/*") if path.name.isdigit()]
    return sorted(steps, key=lambda path: (path.stat().st_mtime, int(path.name)))


class _Peers:
    """This process among those of the run.

    They meet in the key-value store that JAX keeps in process 0, which needs no collective and sets
    no deadline. One thread gives signs of life and hears of failures; another leaves this process a
    moment to end by itself, where one has failed, and ends it where a collective holds it.
    """

    def __init__(self) -> None:
        from jax._src import distributed

        self.index, self.count = jax.process_index(), jax.process_count()
        self.left = threading.Event()
        self.stopping = False
        self.workdir: Path | None = None
        self._failure: str | None = None
        # The store that JAX keeps in process 0; it offers no public way to it.
        self._store: Any = distributed.global_state.client
        self._meetings = itertools.count()
        # JAX aborts where process 0 is gone, and a handler of Python's own would come too late.
        _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted))
        ctypes.CDLL(None).signal(signal.SIGABRT, _handlers[-1])
        self._answered = time.monotonic()  # when the store last did
        for work in (self._talk, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def tell(self, value: Any) -> Any:
        """Process 0's value, in every process."""
        folder = f"told/{next(self._meetings)}"
        if self.index == 0:
            self._write(f"{folder}/0", json.dumps(value))
            return value
        return json.loads(self._wait(folder)["0"])

    def meet(self) -> None:
        """Returns when all processes have come here."""
        folder = f"met/{next(self._meetings)}"
        self._write(f"{folder}/{self.index}", "")
        if self.index == 0:
            self._wait(folder, self.count)
        self.tell(None)

    def fail(self, error: BaseException) -> None:
        """Tells the others of an error, and lets this process end without waiting for them.

        Raises:
          PeerError: The error only follows from what happened to another process.
        """
        if self.stopping and isinstance(error, signals.Stopped):
            self.meet()
            return
        # Where a process is gone, collectives of the others fail before anybody knows why.
        until = time.monotonic() + (2 * _BEAT if _of_collective(error) else 0)
        while self._failure is None and time.monotonic() < until:
            time.sleep(_LOOK / 10)
        own, code = self._failure is None, 1
        if isinstance(error, KeyboardInterrupt):
            code = signals.code(error)
            self._publish(f"{self.index} was stopped by a signal{self._continues()}")
        elif own:
            self._publish(f"{self.index}: {str(error) or type(error).__name__}")
        if self.index == 0:  # the others abort once it is gone, and would say so
            time.sleep(_GRACE + _LOOK)
        # JAX's own goodbye would wait for processes that are gone.
        atexit.register(_exit, code)
        timer = threading.Timer(_GRACE, _exit, [code])  # nor do threads that write checkpoints end
        timer.daemon = True
        timer.start()
        if not own and not isinstance(error, PeerError):
            raise PeerError(self._failure) from None

    def _write(self, key: str, value: str, *, again: bool = True) -> None:
        self._store.key_value_set(f"asdproto/{key}", value, allow_overwrite=again)

    def _read(self, folder: str) -> dict[str, str]:
        entries = self._store.key_value_dir_get(f"asdproto/{folder}/")
        return {key.rpartition("/")[2]: value for key, value in entries}

    def _wait(self, folder: str, count: int = 1) -> dict[str, str]:
        """What a folder of the store holds, once it holds so many entries."""
        pause = 0.01
        while len(entries := self._read(folder)) < count:
            if self._failure is not None:
                raise PeerError(self._failure)
            time.sleep(pause)
            pause = min(1.5 * pause, _LOOK / 2)
        return entries

    def _publish(self, what: str) -> None:
        """Says to all what happened to a process; the first word counts."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._write("failure/0", f"process {what}", again=False)

    def _talk(self) -> None:
        """Gives signs of life and hears of failures; process 0 looks for those that give none."""
        signs: dict[str, tuple[str, float]] = {}
        for beat in itertools.count():
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # a call may also hang for long
                self._write(f"alive/{self.index}", str(beat))
                for process, sign in self._read("alive").items() if self.index == 0 else ():
                    if signs.setdefault(process, (sign, time.monotonic()))[0] != sign:
                        signs[process] = sign, time.monotonic()
                    elif time.monotonic() - signs[process][1] > _BEAT:
                        self._publish(f"{process} {_GONE}{self._continues()}")
                self._failure = self._read("failure").get("0")
                self._answered = time.monotonic()
            if self.left.wait(_LOOK):
                return

    def _watch(self) -> None:
        """Ends this process where another has failed and a collective holds the main thread."""
        while self._failure is None and not self.left.wait(_LOOK / 4):
            if time.monotonic() - self._answered > _BEAT:
                self._failure = f"process 0 {_GONE}{self._continues()}"
            if signals.overdue(_STUCK) and not self.stopping:
                late = f"reached no step since it was asked to stop{self._continues()}"
                self._publish(f"{self.index} {late}")
        last = 0 if self.index else 2 * _LOOK
        if not self.left.wait(_GRACE + last) and self._failure is not None:
            _say(self._failure)
            _exit(1)

    def _aborted(self, _: int) -> None:
        if not self.left.is_set():
            # Where it is this process that is broken, what JAX has written before says so.
            who = "process 0" if self.index else "another process"
            _say(self._failure or f"{who} is gone{self._continues()}")
            os._exit(1)

    def _continues(self) -> str:
        saved = [] if self.workdir is None else _saved(self.workdir)
        step = f"continues from step {saved[-1].name} of {saved[-1].parent.name}" if saved else ""
        return f"; the same command {step or 'starts again'}"


_GONE = f"is gone: no sign of life for {_BEAT:.0f} s"
_peers: _Peers | None = None
_handlers: list[Any] = []  # C holds no reference to what it calls


def _of_collective(error: BaseException) -> bool:
    """Whether an error comes from a collective: of XLA's own kind, or with a code of its."""
    if isinstance(error, PeerError | KeyboardInterrupt):
        return False
    codes = "UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION"
    named = re.search(rf"\b({codes}): ", str(error))
    return isinstance(error, jax.errors.JaxRuntimeError) or named is not None


def _say(text: str) -> None:
    os.write(2, f"error: {text}\n".encode())


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
