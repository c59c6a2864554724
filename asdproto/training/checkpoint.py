"""Checkpoints through Orbax: the only module that knows it.

A checkpoint is a dictionary of named arrays, and a small json of their kinds and checksums and of
what they were trained with. It can be read without the classes of this package, and on any number
of devices. Orbax writes into a folder of another name and renames it when all is on disk: what has
a step's name was whole. That it still is, checksums tell before anything is used.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from asdproto.errors import DataError
from asdproto.files import checksum, differences, json_checksum


class CheckpointError(DataError):
    """A checkpoint is missing or damaged, or does not fit what is to be restored."""


class DamageWarning(UserWarning):
    """A checkpoint was damaged; an earlier one was taken."""


class _Damage(Exception):
    """What is wrong with a checkpoint."""


class Checkpoints:
    """The checkpoints of one stage.

    Args:
      folder: Where; made if needed.
      keep: How many of the latest stay.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 2):
        # Orbax logs every phase of every save, and what it cannot read, which is raised as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)  # its errors name the path
        policy = ocp.checkpoint_managers
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=policy.AnySavePolicy([policy.FixedIntervalPolicy(1)]),
                preservation_policy=policy.LatestN(keep),
                cleanup_tmp_directories=True,  # of saves that a kill has cut short
            ),
        )

    def latest(self) -> int | None:
        """Step of the latest whole checkpoint, or ``None``."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, identity: Mapping[str, Any] | None = None) -> None:
        """Saves in the background; every process of a run must call it.

        Args:
          step: Step of the state.
          state: Tree of arrays on the host.
          identity: What it was trained with: names and what is fit for json, may be nested.

        Raises:
          CheckpointError: This save or an earlier one failed, and its checkpoint is not there;
            those before it are.
        """
        named = _named(state)
        arrays = {name: [*_kind(leaf), checksum(leaf)] for name, leaf in named.items()}
        about = {"arrays": arrays, "identity": _as_json(identity or {})}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(named),
            about=ocp.args.JsonSave({**about, "checksum": json_checksum(about)}),
        )
        with self._writing():
            self._manager.save(step, args=args)

    def restore(self, like: Any, identity: Mapping[str, Any] | None = None) -> Any:
        """Restores the latest state that is not damaged.

        Damaged ones after it are deleted with a :class:`DamageWarning`, so that training can save
        these steps again.

        Args:
          like: Tree of arrays (or of ``jax.ShapeDtypeStruct``) with the state's structure.
          identity: What it must have been trained with; anything when ``None``.

        Returns:
          Tree of NumPy arrays with the structure of ``like``.

        Raises:
          CheckpointError: There is none, none is whole, it was trained with something else, or its
            arrays are not those of ``like``; the message names the first that differ.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            remedy = "Train this stage first, or name the work folder of a run that has."
            raise CheckpointError(self.folder, "no checkpoint", "at least one", remedy)
        damages: dict[int, _Damage] = {}
        for one in steps:
            try:
                state = self._restore(like, one, identity)
            except _Damage as damage:
                damages[one] = damage
                continue
            for damaged, reason in damages.items():
                warnings.warn(
                    f"{self.folder}: the checkpoint of step {damaged} is damaged ({reason}); "
                    f"going on from step {one}",
                    DamageWarning,
                    stacklevel=2,
                )
                self._manager.delete(damaged)
            return state
        reasons = "; ".join(f"step {step}: {damage}" for step, damage in damages.items())
        found = f"damaged checkpoints only ({reasons})"
        remedy = "Delete the folder: the same command then starts this stage again."
        raise CheckpointError(self.folder, found, "one that is whole", remedy)

    def _restore(self, like: Any, step: int, identity: Mapping[str, Any] | None) -> Any:
        """The state of a step; :class:`_Damage` where any of its bits are not those saved."""
        about = self._read(step, ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        if not isinstance(about, dict) or about.pop("checksum", None) != json_checksum(about):
            raise _Damage("the checksum of its description differs")
        if identity is not None:
            self._check(step, about["identity"], _as_json(identity))
        wanted = _named(like)
        expected = {name: list(_kind(leaf)) for name, leaf in wanted.items()}
        self._check(step, {name: kind for name, (*kind, _) in about["arrays"].items()}, expected)
        # Arrays come back to the host, wherever they were written: the caller knows its devices.
        abstract = {name: np.empty(shape, dtype) for name, (shape, dtype) in expected.items()}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        restored = self._read(step, args)["state"]
        for name in wanted:
            if checksum(restored[name]) != about["arrays"][name][2]:
                raise _Damage(f"the checksum of {name} differs")
        return jax.tree.unflatten(jax.tree.structure(like), [restored[name] for name in wanted])

    def _check(self, step: int, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Refuses a checkpoint that was trained with something else."""
        different = list(differences(found, expected))
        if different:
            details = "; ".join(
                f"{name} is {there!r:.60} there, {here!r:.60} here"
                for name, there, here in different[:3]
            )
            more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
            raise CheckpointError(
                self.folder,
                f"a checkpoint of step {step} that another run has written ({details}{more})",
                "one of these settings, seeds and training clips",
                "Delete the folder, or use what it was trained with, or another work folder.",
            )

    def _read(self, step: int, args: Any) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except MemoryError:
            raise
        except Exception as error:  # Orbax and TensorStore have dozens for damaged files
            raise _Damage(_first_line(error)) from None

    def wait(self) -> None:
        """Returns when all saves under way are on disk; raises as :meth:`save`."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves under way and lets go of the folder; raises as :meth:`save`."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Makes what the disk has against a save an error of one line.

        What was half written goes when the folder is opened next.
        """
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # TensorStore quotes what the operating system said
            found, expected = f"a save that failed ({_first_line(error)})", "one that is whole"
            remedy = "Make room, or permission to write; training goes on from the one before it."
            raise CheckpointError(self.folder, found, expected, remedy) from error


def _first_line(error: Exception) -> str:
    first = str(error).partition("\n")[0]
    return first if len(first) < 600 else f"{first[:300]}...{first[-300:]}"


def _named(tree: Any) -> dict[str, Any]:
    """Leaves of a tree by their path, such as ``params/encoder/stem/kernel``."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _kind(leaf: Any) -> tuple[list[int], str]:
    """Shape and dtype."""
    return list(np.shape(leaf)), np.dtype(leaf.dtype).name


def _as_json(value: Any) -> Any:
    """A value as it comes back from json."""
    return json.loads(json.dumps(value, default=str))
