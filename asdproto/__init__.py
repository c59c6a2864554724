"""Robust prototype learning for anomalous sound detection, in JAX and Flax.

Importing this package loads nothing but this file: ``asdproto.losses`` needs jax alone, a feature
store needs numpy alone, and only the modules that read audio need librosa.
"""

__version__ = "0.1.0"
