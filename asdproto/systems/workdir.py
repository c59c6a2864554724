"""Whose a run folder is: what was asked for, and on which recordings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asdproto.config import to_dict
from asdproto.data.identity import changes
from asdproto.errors import DataError
from asdproto.files import check_folder, differences
from asdproto.results.run_folder import CONFIG, read_config
from asdproto.systems.system import System

# How the names of all else begin that a run leaves there.
_OWN = (
    *(".", "checkpoints", "features", "metrics.jsonl", "profile"),
    *("report.html", "results.json", "scores", "summary"),
)
_REMEDY = "Train anew with --retrain, or name another run folder."


def run_settings(
    system: System, seeds: Sequence[int], machines: Sequence[str] | None
) -> dict[str, Any]:
    """What ``config.json`` says of a run, as far as the command decides it."""
    return {
        "kind": system.kind,
        "system": to_dict(system),
        "seeds": list(seeds),
        "machines": None if machines is None else list(machines),
    }


def check_same_run(workdir: Path, command: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses a work folder that belongs to other settings.

    Args:
      workdir: The folder.
      command: What :func:`run_settings` says of the command.

    Returns:
      The settings of the run that is there; empty where there is none.

    Raises:
      DataError: Some differ; the message names them.
    """
    if not (workdir / CONFIG).exists():
        return {}
    config = read_config(workdir)
    settings = dict(command), {name: config.get(name) for name in command}
    different = [
        f"{name} is {before!r} there, {now!r} here" for name, now, before in differences(*settings)
    ]
    if different:
        found = "a run of other settings: " + "; ".join(different[:5])
        remedy = f"{_REMEDY} Another score.* alone needs no training: rescore."
        raise DataError(workdir / CONFIG, found, "the settings of this command", remedy)
    return config


def check_workdir(
    workdir: Path, command: Mapping[str, Any], identity: Mapping[str, Sequence[int]]
) -> None:
    """As :func:`check_same_run`, and refuses a folder of other recordings or of no run at all.

    ``identity`` is that of the recordings, see :func:`asdproto.data.identity.identity_of`.
    """
    config = check_same_run(workdir, command)
    if not config:
        check_folder(workdir, _OWN, "that of a run")
        return
    before = config["collection"]
    changed = "" if before is None else changes(before, identity)
    if changed:
        expected = "the recordings that it was trained on"
        raise DataError(workdir, f"a run of other recordings: {changed}", expected, _REMEDY)
