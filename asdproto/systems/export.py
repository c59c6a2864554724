"""A trained prototype detector as four files that jax alone can run.

::

    OUT/
      model.jax     jax.export artifact: windows and sections in, scores and nearest classes out
      arrays.npz    window and mel filters; prototypes and inverse covariances, to look at
      about.json    feature settings, windows, sections, classes, thresholds, checksums
      score.py      a reader of one page (systems/exported.py)
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax import lax

from asdproto.errors import DataError
from asdproto.features import filterbank
from asdproto.files import json_checksum, new_folder, write_arrays, write_atomically, write_json
from asdproto.scoring.backends import NEAREST_CLIPS, References
from asdproto.scoring.fusion import FLOOR, zero_and_unit
from asdproto.scoring.rows import rows_by
from asdproto.systems import exported
from asdproto.systems.prototype import PrototypeModel, evaluation_model
from asdproto.systems.system import Member, Section

PLATFORMS = ("cpu", "cuda")


def export_members(
    members: Sequence[Member],
    train_sections: Sequence[Section],
    thresholds: Mapping[str, float],
    dtype: str,
    out: Path,
) -> Path:
    """Writes a detector as a ``jax.export`` artifact, with what its reader needs.

    The artifact takes windows, float32 ``[clips, windows, frames, mels]`` in dB, and the number of
    each clip's section in ``about.json``, int32 ``[clips]``; it gives scores, float32 ``[clips]``,
    and nearest attribute classes, int32 ``[clips]``. Clips, windows and frames may be any number.

    Args:
      members: Prototype members of a detector, of one seed or several.
      train_sections: Machine type and section of each training clip.
      thresholds: By machine type.
      dtype: Of stored features.
      out: Folder to make, and what is returned.

    Raises:
      DataError: The detector holds other members, or members that differ in more than their seed;
        or the folder holds something else.
    """
    models = [member.model for member in members]
    sections = sorted(set(train_sections))
    encoders = [model for model in models if isinstance(model, PrototypeModel)]
    alike = len({model.system for model in models}) == 1
    if len(encoders) < len(models) or not alike or encoders[0].scorer.config.kind == "mixture":
        kinds = ", ".join(sorted({model.system.kind for model in models}))
        raise DataError(
            out,
            f"a detector of {kinds}" + " in several settings" * (not alike),
            "prototype members that differ in their seed alone, and no mixtures",
            "Export a run of --system prototype; score others with python -m asdproto score.",
        )
    system = encoders[0].system
    scope = jax_export.SymbolicScope([f"t >= {system.crop}"])
    shape = jax_export.symbolic_shape(f"b, w, t, {system.features.n_mels}", scope=scope)
    clips = jax_export.symbolic_shape("b", scope=scope)
    windows = jax.ShapeDtypeStruct(shape, jnp.float32)
    function = jax.jit(_function(members, encoders, train_sections))
    artifact = jax_export.export(function, platforms=PLATFORMS)(
        windows, jax.ShapeDtypeStruct(clips, jnp.int32)
    )
    arrays = {
        "window": np.hanning(system.features.n_fft + 1)[:-1].astype(np.float32),
        "filters": filterbank(system.features),
    }
    for number, model in enumerate(encoders):
        for section, left in zip(sections, _references(model, sections), strict=True):
            name = f"{number}/{'/'.join(section)}"
            arrays[f"prototypes/{name}"] = left.references
            arrays[f"labels/{name}"] = left.labels
            arrays[f"inverse_covariance/{name}"] = left.whitening @ left.whitening.T
    about = {
        "features": dataclasses.asdict(system.features),
        "dtype": dtype,
        "crop": system.crop,
        "hop": system.score.hop,
        "sections": [list(section) for section in sections],
        "classes": [list(name) for name in members[0].classes],
        "thresholds": dict(thresholds),
        "seeds": [member.seed for member in members],
        "platforms": list(PLATFORMS),
    }
    with new_folder(out, "export", "about.json") as folder:
        write_atomically(folder / "model.jax", bytes(artifact.serialize()))
        write_arrays(folder / "arrays.npz", arrays)
        write_atomically(folder / "score.py", Path(exported.__file__).read_bytes())
        files = ("model.jax", "arrays.npz")
        checksums = {name: zlib.crc32((folder / name).read_bytes()) for name in files}
        about |= {"checksums": checksums}
        write_json(folder / "about.json", {**about, "checksum": json_checksum(about)})
    return out


def _references(model: PrototypeModel, sections: Sequence[Section]) -> list[References]:
    """What a model's back-end holds of each section."""
    left = [model.scorer.sections[section] for section in sections]
    return [one for one in left if isinstance(one, References)]


def _function(
    members: Sequence[Member], models: Sequence[PrototypeModel], train_sections: Sequence[Section]
) -> Any:
    """What is exported: windows and sections to scores and nearest classes."""
    system = models[0].system
    # The one lowering that takes maps of any length; both platforms have it.
    encoder = dataclasses.replace(system.encoder, lowering="native")
    system = dataclasses.replace(system, encoder=encoder)
    network = evaluation_model(system)
    sections = sorted(set(train_sections))
    backends = [_backend(model, _references(model, sections)) for model in models]
    rows = rows_by(train_sections)
    own = [[one.held_out[rows[key]] for key in sections] for one in members]
    # Zero and unit of each member's scores in each section; a lone member's stay as they are.
    held_out = [np.transpose([zero_and_unit(x) for x in each]) for each in own * (len(own) > 1)]

    def score(windows: jax.Array, section: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch, count, frames, mels = windows.shape
        flat = windows.reshape(batch * count, frames, mels)
        total, nearest = jnp.float32(0), None
        for index, (model, backend) in enumerate(zip(models, backends, strict=True)):
            crops = (flat - model.mean) * model.scale
            vectors: Any = network.apply(model.variables, crops, train=False)
            embeddings = vectors.reshape(batch, count, -1).mean(axis=1)
            length = jnp.linalg.norm(embeddings, axis=1, keepdims=True)
            scores, labels = backend(embeddings / jnp.maximum(length, 1e-12), section)
            nearest = labels if nearest is None else nearest
            if len(models) > 1:
                zero, unit = jnp.asarray(held_out[index], jnp.float32)[:, section]
                scores = jnp.log(jnp.maximum((scores - zero) / unit, FLOOR))
            total = total + scores / len(models)
        assert nearest is not None
        return total, nearest

    return score


def _backend(model: PrototypeModel, sections: Sequence[References]) -> Any:
    """Embeddings and sections to scores and nearest classes, as the model's scorer has them."""
    most, dim = max(len(one.references) for one in sections), sections[0].dim
    is_whitened = sections[0].whitening.size > 0
    references = np.zeros((len(sections), most, dim), np.float32)
    labels = np.zeros((len(sections), most), np.int32)
    exists = np.zeros((len(sections), most), bool)
    whitening = np.stack([one.whitening for one in sections]).astype(np.float32)
    kind, neighbors = model.system.score.kind, min(model.system.score.neighbors, most)
    for number, one in enumerate(sections):
        size = len(one.references)
        references[number, :size], labels[number, :size] = one.references, one.labels
        if kind == "cosine":
            lengths = np.linalg.norm(one.references, axis=1, keepdims=True)
            references[number, :size] /= np.maximum(lengths, np.finfo(np.float32).tiny)
        exists[number, :size] = True

    def compare(embeddings: jax.Array, section: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Differences before products: near ones keep their digits.
        differences = embeddings[:, None] - jnp.asarray(references)[section]
        if is_whitened:
            matrix = jnp.asarray(whitening)[section]
            differences = jnp.einsum("brd,bdk->brk", differences, matrix, precision="highest")
        distances = jnp.linalg.norm(differences, axis=-1)
        if kind == "cosine":  # of unit vectors
            distances = jnp.square(distances) / 2
        distances = jnp.where(jnp.asarray(exists)[section], distances, jnp.inf)
        nearest = jnp.take_along_axis(
            jnp.asarray(labels)[section], jnp.argmin(distances, axis=1)[:, None], axis=1
        )[:, 0]
        if kind not in NEAREST_CLIPS:
            return distances.min(axis=1), nearest
        smallest = -lax.top_k(-distances, neighbors)[0]
        # A section of fewer clips averages over all of them.
        finite = jnp.isfinite(smallest)
        return jnp.sum(jnp.where(finite, smallest, 0), axis=1) / finite.sum(axis=1), nearest

    return compare
