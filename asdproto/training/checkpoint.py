"""Checkpoints through Orbax: the only module that knows it.

A checkpoint is a dictionary of named arrays and a small json of what they belong to, so that it
can be read without the classes of this package, and on any number of devices. Orbax writes into
a folder of another name and renames it when all is on disk: what has a step's name is whole.
"""

import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


class CheckpointError(ValueError):
    """A checkpoint is missing, or does not fit what is to be restored."""


class Checkpoints:
    """The checkpoints of one stage.

    Args:
      folder: Where; made if needed.
      keep: How many of the latest stay.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 2):
        # Orbax reports every phase of every save at this level.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = Path(folder).absolute()
        policy = ocp.checkpoint_managers
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=policy.AnySavePolicy([policy.FixedIntervalPolicy(1)]),
                preservation_policy=policy.LatestN(keep),
            ),
        )

    def latest(self) -> int | None:
        """Step of the latest whole checkpoint, or ``None``."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Saves in the background; every process of a run must call it.

        Args:
          step: Step of the state.
          state: Tree of arrays on the host.
          metadata: json-serializable description.
        """
        named = _named(state)
        shapes = {name: list(np.shape(leaf)) for name, leaf in named.items()}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(named),
                about=ocp.args.JsonSave({"arrays": shapes, "run": metadata}),
            ),
        )

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """Description saved with a checkpoint; the latest when ``step`` is ``None``."""
        return self._about(self._existing(step))["run"]

    def _about(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        return dict(self._manager.restore(step, args=args)["about"])

    def restore(self, like: Any, step: int | None = None) -> Any:
        """Restores a state.

        Args:
          like: Tree of arrays (or of ``jax.ShapeDtypeStruct``) with the state's structure.
          step: Which; the latest when ``None``.

        Returns:
          Tree of NumPy arrays with the structure of ``like``.

        Raises:
          CheckpointError: There is none, or its arrays are not those of ``like``; the message
            names the first that differ.
        """
        step = self._existing(step)
        wanted = _named(like)
        found = {name: tuple(shape) for name, shape in self._about(step)["arrays"].items()}
        expected = {name: tuple(np.shape(leaf)) for name, leaf in wanted.items()}
        odd = sorted(
            name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
        )
        if odd:
            details = "; ".join(
                f"{name}: found {found.get(name, 'nothing')}, expected "
                f"{expected.get(name, 'nothing')}"
                for name in odd[:3]
            )
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {step} was written by another "
                f"configuration ({len(odd)} arrays differ: {details}). Use the configuration it "
                "was written with, or another work folder"
            )
        # Arrays come back to the host, wherever they were written: the caller knows its devices.
        abstract = {name: np.empty(np.shape(leaf), leaf.dtype) for name, leaf in wanted.items()}
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )["state"]
        structure = jax.tree.structure(like)
        return jax.tree.unflatten(structure, [restored[name] for name in wanted])

    def _existing(self, step: int | None) -> int:
        step = self._manager.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(
                f"{self.folder}: no checkpoint found; expected at least one. Train this stage "
                "first, or name the work folder of a run that has"
            )
        return step

    def wait(self) -> None:
        """Returns when all saves under way are on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves under way and lets go of the folder."""
        self._manager.close()


def _named(tree: Any) -> dict[str, Any]:
    """Leaves of a tree by their path, such as ``params/encoder/stem/kernel``."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
