"""The one place that knows whether a function is jitted or pmapped, and how data reach devices."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from asdproto.models.convolution import compiler_options
from asdproto.training.processes import agreed_to_stop

AXIS = "batch"


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
    def axis_name(self) -> str | None:
        """Name of the mapped axis; ``None`` for one device, where nothing is mapped."""
        return AXIS if self.count > 1 else None

    @property
    def is_main(self) -> bool:
        """Whether this process writes reports."""
        return jax.process_index() == 0

    @property
    def has_peers(self) -> bool:
        """Whether other processes share the batch."""
        return len(self.local) < self.count

    def agree(self, due: bool, stop: bool) -> tuple[bool, bool]:
        """What every process does, since all must do the same; all must ask at the same step.

        Args:
          due: Whether this process would save; process 0's clock decides.
          stop: Whether this process was asked to stop; any of them stops all.
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
        donate = tuple(donate)
        if self.count == 1:

            def single(*args: Any) -> Any:
                return function(*args, axis_name=None)

            return jax.jit(single, donate_argnums=donate, compiler_options=self._options)

        def mapped(position: jax.Array, *args: Any) -> Any:
            del position  # pmap wants one mapped argument at least
            return function(*args, axis_name=AXIS)

        # Mapping over processes leaves the choice of devices to jax, in the order that
        # jax.local_devices() has; one process may name a subset.
        devices = None if jax.process_count() > 1 else self.local
        compiled = jax.pmap(
            mapped,
            axis_name=AXIS,
            in_axes=(0, *in_axes),
            out_axes=out_axes,
            donate_argnums=tuple(d + 1 for d in donate),
            devices=devices,
        )
        position = self.shard(np.arange(len(self.local), dtype=np.int32))
        return lambda *args: compiled(position, *args)

    def compile_runs(self, function: Callable[..., Any], *, in_axes: Sequence[int | None]) -> Any:
        """Compiles a function of several independent runs, dealt out to the local devices.

        Args:
          function: ``vmap`` of a pure function over runs; nothing in it crosses devices.
          in_axes: 0 for arguments with a leading axis over runs, ``None`` for shared ones.

        Returns:
          Function that donates its first argument. On several devices, arguments and results with
          an axis over runs have one over devices before it.
        """
        if self.count == 1:
            return jax.jit(function, donate_argnums=0, compiler_options=self._options)
        return jax.pmap(
            function, in_axes=tuple(in_axes), donate_argnums=0, devices=list(self.local)
        )

    @property
    def _options(self) -> dict[str, str] | None:
        # pmap takes none; on a CPU, which alone has some, it is there for tests.
        return compiler_options(self.local[0].platform)

    def _sharding(self, *spec: str) -> NamedSharding:
        return NamedSharding(Mesh(np.array(self.local), (AXIS,)), PartitionSpec(*spec))

    def replicate(self, tree: Any) -> Any:
        """Puts a tree on every local device, whole."""
        if self.count == 1:
            return jax.device_put(tree, self.local[0])
        return jax.device_put(tree, self._sharding())

    def shard(self, tree: Any) -> Any:
        """Puts arrays ``[local devices, ...]`` on the local devices, one part each.

        On one device the arrays have no device axis.
        """
        if self.count == 1:
            return jax.device_put(tree, self.local[0])
        return jax.device_put(tree, self._sharding(AXIS))

    def to_host(self, tree: Any) -> Any:
        """NumPy copies of a replicated tree."""
        return jax.device_get(
            jax.tree.map(
                lambda x: x.addressable_shards[0].data if isinstance(x, jax.Array) else x, tree
            )
        )


def first_device() -> Devices:
    """The first device of this process, alone."""
    return Devices((jax.local_devices()[0],), 1, 0)


def use_devices(limit: int | None = None) -> Devices:
    """The devices of this run.

    Args:
      limit: Take only the first so many; all when ``None``. Only a single process may limit.

    Returns:
      The devices, over all processes of the run.

    Raises:
      ValueError: More devices are asked for than there are, or a limit is set with several
        processes.
    """
    everything = jax.devices()
    if limit is None:
        limit = len(everything)
    if not 1 <= limit <= len(everything):
        raise ValueError(
            f"devices={limit}, but this run has {len(everything)} "
            f"({everything[0].platform}); ask for 1 to {len(everything)}"
        )
    if jax.process_count() > 1 and limit != len(everything):
        raise ValueError(
            f"devices={limit} with {jax.process_count()} processes: a run over several processes "
            "uses all devices of each; start fewer processes instead"
        )
    local = jax.local_devices() if jax.process_count() > 1 else everything[:limit]
    first = jax.process_index() * len(local)
    return Devices(tuple(local), limit, first)


def use_compilation_cache(folder: str | None = None) -> None:
    """Keeps compiled programs on disk, so that a second run starts at once.

    Args:
      folder: Where; ``JAX_COMPILATION_CACHE_DIR`` or ``~/.cache/asdproto/xla`` when ``None``.
    """
    if jax.config.values.get("jax_compilation_cache_dir"):
        return
    folder = folder or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "asdproto", "xla"
    )
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def stack_runs(trees: Sequence[Any]) -> Any:
    """Stacks trees of equal shapes along a new leading axis, for ``vmap`` over runs."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)
