"""Robust prototype learning for anomalous sound detection, in JAX and Flax.

Importing this package loads nothing but this file: ``asdproto.losses`` needs jax alone, a feature
store needs numpy alone, and only the modules that read audio need librosa. :class:`Detector`
loads the rest when it is asked for.
"""

__version__ = "0.1.0"
__all__ = ["Detector", "__version__"]


def __getattr__(name: str):
    if name == "Detector":
        from asdproto.systems.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
