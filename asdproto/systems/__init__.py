"""Systems: features, model, training and score, said in one place each.

:class:`asdproto.systems.system.System` says what one must offer. :mod:`asdproto.systems.detector`
makes detectors of what they train, :mod:`asdproto.systems.run` keeps them in run folders, and
:mod:`asdproto.systems.remake` makes others of these without training. A new system is a module with
the dataclass and its ``PRESETS``, anywhere that Python imports from: wherever a kind is taken,
``package.module:Class`` is, too. Loading a run imports that module, so load runs of modules that
you trust.
"""

import dataclasses
import importlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from asdproto.config import ConfigError, nearest

if TYPE_CHECKING:
    from asdproto.data.dcase import Clip

# kind -> its path; loaded when needed, since most of them load jax.
KINDS = {
    "spectral": "asdproto.systems.spectral:SpectralSystem",
    "prototype": "asdproto.systems.prototype:PrototypeSystem",
    "autoencoder": "asdproto.systems.autoencoder:AutoEncoderSystem",
    "baseline": "asdproto.systems.baseline:BaselineSystem",
    "gmm": "asdproto.systems.spectral:SpectralSystem",
    "spectral-knn": "asdproto.systems.spectral:SpectralSystem",
}
# Fitted without training, to compare with.
YARDSTICKS = ("spectral-knn", "gmm")
NEED_NO_DEVICE = ("spectral", *YARDSTICKS)
PRESETS = ("quick", "small", "paper")
# From so many clips and classes on, prototypes are learned where no system is asked for.
MANY_CLIPS, MANY_CLASSES = 1000, 10


def load_path(path: str) -> Any:
    """What a path such as ``package.module:name`` leads to.

    Modules may lie in the working directory.

    Raises:
      ConfigError: There is no such module, or nothing of that name in it.
    """
    module, colon, name = path.partition(":")
    if not (colon and name.isidentifier() and all(map(str.isidentifier, module.split(".")))):
        raise ConfigError(f"{path!r} is no path; expected package.module:name")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there and lacks another one
        folder = "; run from a checkout of asdproto" if module.startswith("experiments.") else ""
        raise ConfigError(f"{path!r}: found no module {error.name!r}{folder}") from None
    if not hasattr(loaded, name):
        near = nearest(name, vars(loaded))
        raise ConfigError(f"{path!r}: found no {name!r} in {module}{near}")
    return getattr(loaded, name)


def system_class(kind: str) -> Any:
    """The dataclass of a kind of system.

    Args:
      kind: One of :data:`KINDS`, or the path of a class, ``package.module:Class``.

    Raises:
      ConfigError: There is no such kind, or the path leads to no system.
    """
    if kind in KINDS:
        return load_path(KINDS[kind])
    if ":" not in kind:
        raise ConfigError(f"{_unknown('system', kind, KINDS)}, or package.module:Class")
    found = load_path(kind)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"system {kind!r}: found no dataclass; see asdproto.systems")
    if getattr(found, "kind", None) != kind:
        named = getattr(found, "kind", None)
        raise ConfigError(f"system {kind!r}: found its kind to be {named!r}; expected its path")
    return found


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    near = nearest(name, known) or "."
    return f"{what} {name!r} is unknown{near} Expected one of {', '.join(known)}"


def preset(kind: str, name: str) -> Any:
    """A system at a preset.

    Args:
      kind: As for :func:`system_class`.
      name: One of :data:`PRESETS`.

    Raises:
      ConfigError: The kind or the preset is unknown.
    """
    module = sys.modules[system_class(kind).__module__]
    presets = getattr(module, "PRESETS", None)
    if presets is None:
        raise ConfigError(f"system {kind!r}: found no PRESETS in {module.__name__}")
    presets = presets.get(kind, presets)  # a module may hold several kinds
    if name not in presets:
        raise ConfigError(_unknown("preset", str(name), presets))
    return presets[name]


def choose(clips: "Sequence[Clip]") -> tuple[str, str]:
    """The kind of system that suits a collection's training clips, and why, in one line.

    On the development sets (``docs/experiments.md``) spectra without training are better than
    networks, and prototypes fused with them are better still by little. On the challenge's set of
    21,000 clips in 147 attribute classes the paper has prototypes 22 points above the AutoEncoder;
    from what size on they are worth their training is not known.

    Args:
      clips: The collection's clips; at least one for training.

    Returns:
      The kind and a sentence for the user.
    """
    from asdproto.data.dcase import assign_classes

    train = [clip for clip in clips if clip.split == "train"]
    classes = len(assign_classes(train)[1])
    size = f"{len(train)} clips in {classes} attribute class{'es' * (classes > 1)}"
    if len(train) >= MANY_CLIPS and classes >= MANY_CLASSES:
        return "prototype", f"{size}: prototypes are learned, and fused with spectra"
    smallest = min(Counter((clip.machine_type, clip.section) for clip in train).values())
    if smallest > 1:
        other = "; --system prototype learns prototypes of the classes" if classes > 1 else ""
        return "spectral", f"{size}: distances to the nearest spectra{other}"
    return "autoencoder", f"a section of {smallest}: an autoencoder over all sections"
