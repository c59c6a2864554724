"""Systems: features, model, training and score, said in one place each.

A system is a frozen dataclass of numbers with

* ``kind``, its name in :data:`KINDS` and in ``config.json``; ``names`` of the detectors that it
  makes, the result last; ``features``, its feature settings; ``quantile`` for decisions;
* ``crop``, the shortest clip it takes, in frames (shorter ones are repeated);
* ``plan(clips)``, what training does, in a few words;
* ``train(data, options, seeds) -> {name: [Fitted, one a seed]}``;
* ``restore(arrays, classes) -> Member``, the reverse of ``Member.to_arrays``.

:mod:`asdproto.systems.trained` makes detectors of what they train, :mod:`asdproto.systems.run`
keeps them in run folders. A new system is a module here, a line in :data:`KINDS`, and a
``PRESETS`` in its module.
"""

import importlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from asdproto.config import ConfigError, nearest

if TYPE_CHECKING:
    from asdproto.data.dcase import Clip

# kind -> module and class; loaded when asked for, since most of them load jax.
KINDS = {
    "prototype": ("asdproto.systems.prototype", "PrototypeSystem"),
    "autoencoder": ("asdproto.systems.autoencoder", "AutoEncoderSystem"),
    "mobilenet": ("asdproto.systems.mobilenet", "MobileNetSystem"),
    "stgram": ("asdproto.systems.stgram", "STgramSystem"),
    "dgmix": ("asdproto.systems.dgmix", "DGMixSystem"),
    "disentangled": ("asdproto.systems.disentangled", "DisentangledSystem"),
    "adacos": ("asdproto.systems.adacos", "AdaCosSystem"),
    "baseline": ("asdproto.systems.baseline", "BaselineSystem"),
    "gmm": ("asdproto.systems.gmm", "GmmSystem"),
    "spectral-knn": ("asdproto.systems.spectral_knn", "SpectralKnnSystem"),
}
# Fitted in the time it takes to read the features; always shown beside.
YARDSTICKS = ("spectral-knn", "gmm")
PRESETS = ("quick", "small", "paper")
# From so many clips and classes on, prototypes are learned where no system is asked for.
MANY_CLIPS, MANY_CLASSES = 1000, 10
# Fewest clips of a section to be nearest to, and for scores of clips that are held out.
FEW_CLIPS = 4


def system_class(kind: str) -> Any:
    """The dataclass of a kind of system.

    Raises:
      ConfigError: There is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(_unknown("system", kind, KINDS))
    module, name = KINDS[kind]
    return getattr(importlib.import_module(module), name)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    near = nearest(name, known) or "."
    return f"{what} {name!r} is unknown{near} Expected one of {', '.join(known)}"


def preset(kind: str, name: str) -> Any:
    """A system at a preset.

    Args:
      kind: One of :data:`KINDS`.
      name: One of :data:`PRESETS`.

    Raises:
      ConfigError: The kind or the preset is unknown.
    """
    presets = importlib.import_module(system_class(kind).__module__).PRESETS
    if name not in presets:
        raise ConfigError(_unknown("preset", name, presets))
    return presets[name]


def choose(clips: "Sequence[Clip]") -> tuple[str, str]:
    """The kind of system that suits a collection's training clips, and why, in one line.

    On collections of 20 and 291 clips the nearest mean spectrum is within 3 points of prototypes
    (``docs/experiments.md``), and it needs no training. On the challenge's set of 21,000 clips in
    147 attribute classes the paper has prototypes 22 points above the AutoEncoder; from what size
    on they are worth their training is not known. With 1,260 synthetic clips they are as good as a
    Gaussian mixture and better than the nearest mean spectrum, after 40 + 20 epochs.

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
        longer = "pretrain.epochs=40 finetune.epochs=20 is worth its time if the preset is small"
        return "prototype", f"{size}: prototypes are learned; {longer}"
    smallest = min(Counter((clip.machine_type, clip.section) for clip in train).values())
    if smallest >= FEW_CLIPS:
        other = "; --system prototype learns prototypes of the classes" if classes > 1 else ""
        return "spectral-knn", f"{size}: distance to the nearest mean spectrum{other}"
    return "autoencoder", f"a section of {smallest}: an autoencoder over all sections"
