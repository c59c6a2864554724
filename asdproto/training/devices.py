"""Devices of a run: the one place that knows jit from pmap, and how data reach them."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from asdproto.models.convolution import compiler_options
from asdproto.training.processes import agreed_to_stop

AXIS = "batch"

# "scan": the whole epoch (plan, prototype pass, all steps) is one program, right for accelerators.
# "dispatch": the host calls one compiled step after another, right for a CPU, where a convolution
# inside a loop loses its threads, and for crops that the host gathers.
Loop = Literal["scan", "dispatch"]


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices that share a batch.

    Attributes:
      local: Devices of this process.
      count: Devices over all processes.
      first: Position of this process's first device among all.
    """

    local: tuple[jax.Device, ...]
    count: int
    first: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes reports."""
        return jax.process_index() == 0

    @property
    def has_peers(self) -> bool:
        """Whether other processes share the batch."""
        return len(self.local) < self.count

    def agree(self, due: bool, stop: bool) -> tuple[bool, bool]:
        """Whether to save, and to stop: all processes must do the same, and ask at the same step.

        Process 0's clock decides whether a save is ``due``; any process stops all.
        """
        if not self.has_peers:
            return due, stop
        with jax.transfer_guard("allow"):
            answers = multihost_utils.process_allgather(np.array([due, stop], np.int32))
        stop = bool(answers[:, 1].any())
        if stop:
            agreed_to_stop()
        return bool(answers[0, 0]), stop

    def gather(self, parts: np.ndarray) -> np.ndarray:
        """Parts of all devices: ``[rounds, local devices, ...]`` to ``[rounds, devices, ...]``."""
        if not self.has_peers:
            return parts
        every = multihost_utils.process_allgather(parts)  # a leading axis over processes
        return np.moveaxis(every, 0, 1).reshape(len(parts), self.count, *parts.shape[2:])

    def compile(
        self,
        function: Callable[..., Any],
        *,
        in_axes: Sequence[int | None],
        out_axes: Any = None,
        donate: Sequence[int] = (),
    ) -> Callable[..., Any]:
        """Compiles ``function(*args, axis_name=...)`` for these devices.

        Args:
          function: Pure function of arrays that takes ``axis_name`` by keyword.
          in_axes: Per argument, 0 where it has a leading axis over local devices, ``None`` where
            it is the same on all. Used on several devices only.
          out_axes: Likewise for results, as ``jax.pmap`` takes it.
          donate: Arguments whose memory the call may reuse.

        Returns:
          Function of the same positional arguments. On one device it is jitted, and arguments and
          results have no device axis.
        """
        if self.count == 1:
            alone = functools.partial(function, axis_name=None)
            return self._jit(alone, donate)

        def mapped(position: jax.Array, *args: Any) -> Any:
            del position  # pmap wants one mapped argument at least
            return function(*args, axis_name=AXIS)

        # Mapping over processes leaves the choice of devices to jax, in the order that
        # jax.local_devices() has; one process may name a subset.
        compiled = jax.pmap(
            mapped,
            axis_name=AXIS,
            in_axes=(0, *in_axes),
            out_axes=out_axes,
            donate_argnums=tuple(number + 1 for number in donate),
            devices=None if jax.process_count() > 1 else self.local,
        )
        position = self.shard(np.arange(len(self.local), dtype=np.int32))
        return functools.partial(compiled, position)

    def compile_runs(self, function: Callable[..., Any], *, in_axes: Sequence[int | None]) -> Any:
        """Compiles the ``vmap`` of a function over independent runs, dealt out to local devices.

        ``in_axes`` is 0 for arguments with a leading axis over runs, ``None`` for shared ones. On
        several devices, those of 0, and results, have an axis over devices before it. The first
        argument is donated.
        """
        if self.count == 1:
            return self._jit(function, (0,))
        return jax.pmap(function, in_axes=tuple(in_axes), donate_argnums=0, devices=self.local)

    def _jit(self, function: Callable[..., Any], donate: Sequence[int]) -> Callable[..., Any]:
        # pmap takes no such options; on a CPU, which alone has some, it is there for tests.
        options = compiler_options(self.local[0].platform)
        return jax.jit(function, donate_argnums=tuple(donate), compiler_options=options)

    def replicate(self, tree: Any) -> Any:
        """Puts a tree on every local device, whole."""
        return self._put(tree)

    def shard(self, tree: Any) -> Any:
        """Puts arrays ``[local devices, ...]`` on the local devices, one part each.

        On one device the arrays have no device axis.
        """
        return self._put(tree, AXIS)

    def _put(self, tree: Any, *spec: str) -> Any:
        if self.count == 1:
            return jax.device_put(tree, self.local[0])
        mesh = Mesh(np.array(self.local), (AXIS,))
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))

    def to_host(self, tree: Any) -> Any:
        """NumPy copies of a replicated tree."""
        return jax.device_get(
            jax.tree.map(
                lambda x: x.addressable_shards[0].data if isinstance(x, jax.Array) else x, tree
            )
        )


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run goes, apart from what it computes.

    Attributes:
      workdir: Folder for checkpoints, metrics and scores; ``None`` keeps nothing.
      devices: Where to train.
      console: Where progress goes; ``None`` for silence.
      loop: Shape of the training loop; what suits the backend when ``None``.
      resident: Whether features live on the devices; by their memory when ``None``.
      save_seconds: Time between checkpoints; 0 saves after every step.
      profile: Steps of every stage to record, after those that compile; 0 for none.
    """

    workdir: Path | None
    devices: Devices
    console: Console | None = None
    loop: Loop | None = None
    resident: bool | None = None
    save_seconds: float = 60.0
    profile: int = 0


def first_device() -> Devices:
    """The first device of this process, alone."""
    return Devices((jax.local_devices()[0],), 1, 0)


def use_devices(limit: int | None = None) -> Devices:
    """The devices of this run, over all its processes.

    Args:
      limit: Take only the first so many; all when ``None``. Only a single process may limit.

    Raises:
      ValueError: More devices are asked for than there are, or a limit is set with several
        processes.
    """
    everything, processes = jax.devices(), jax.process_count()
    if limit is None:
        limit = len(everything)
    if not 1 <= limit <= len(everything):
        raise ValueError(
            f"devices={limit}, but this run has {len(everything)} "
            f"({everything[0].platform}); ask for 1 to {len(everything)}"
        )
    if processes > 1 and limit != len(everything):
        raise ValueError(
            f"devices={limit} with {processes} processes: a run over several processes "
            "uses all devices of each; start fewer processes instead"
        )
    local = jax.local_devices() if processes > 1 else everything[:limit]
    return Devices(tuple(local), limit, jax.process_index() * len(local))


def default_loop(backend: str | None = None) -> Loop:
    """``"dispatch"`` on CPU, ``"scan"`` elsewhere: measured by experiments/benchmarks/train.py."""
    return "dispatch" if (backend or jax.default_backend()) == "cpu" else "scan"


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second run starts at once.

    In ``JAX_COMPILATION_CACHE_DIR``, or ``~/.cache/asdproto/xla``.
    """
    if jax.config.values.get("jax_compilation_cache_dir"):
        return
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "asdproto", "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
