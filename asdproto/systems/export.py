"""A trained prototype detector as one file that jax alone can run.

::

    OUT/
      model.jax     jax.export artifact: windows and sections in, scores and nearest classes out
      arrays.npz    window and mel filters; prototypes and inverse covariances, to look at
      about.json    feature settings, windows, sections, classes, thresholds
      score.py      a reader of one page (systems/exported.py)
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax import lax

from asdproto.errors import DataError
from asdproto.features import filterbank
from asdproto.files import write_arrays, write_atomically, write_json
from asdproto.scoring.backends import NEAREST_CLIPS
from asdproto.scoring.fusion import FLOOR
from asdproto.systems import exported
from asdproto.systems.members import Section
from asdproto.systems.prototype import PrototypeMember, PrototypeSystem, evaluation_model
from asdproto.systems.trained import TrainedDetector

PLATFORMS = ("cpu", "cuda")


def export_detector(detector: TrainedDetector, out: Path) -> Path:
    """Writes a detector as a ``jax.export`` artifact, with what its reader needs.

    The artifact takes windows, float32 ``[clips, windows, frames, mels]`` in dB, and the number of
    each clip's section in ``about.json``, int32 ``[clips]``; it gives scores, float32 ``[clips]``,
    and nearest attribute classes, int32 ``[clips]``. Clips, windows and frames may be any number.

    Args:
      detector: Prototype members, of one seed or several.
      out: Folder to make.

    Returns:
      The folder.

    Raises:
      DataError: The detector holds other members, or members that differ in more than their seed.
    """
    members = [member for member in detector.members if isinstance(member, PrototypeMember)]
    systems = {member.system for member in members}
    if len(members) != len(detector.members) or len(systems) != 1:
        kinds = sorted({member.system.kind for member in detector.members})
        raise DataError(
            out,
            f"a detector of {', '.join(kinds)}" + " in several settings" * (len(systems) > 1),
            "prototype members that differ in their seed alone",
            "Export a run of --system prototype; score others with python -m asdproto score.",
        )
    system = systems.pop()
    sections = detector.sections
    scope = jax_export.SymbolicScope([f"t >= {system.crop}"])
    shape = jax_export.symbolic_shape(f"b, w, t, {system.features.n_mels}", scope=scope)
    clips = jax_export.symbolic_shape("b", scope=scope)
    windows = jax.ShapeDtypeStruct(shape, jnp.float32)
    function = jax.jit(_function(detector, members, system, sections))
    artifact = jax_export.export(function, platforms=PLATFORMS)(
        windows, jax.ShapeDtypeStruct(clips, jnp.int32)
    )
    about = {
        "features": dataclasses.asdict(system.features),
        "dtype": detector.dtype,
        "crop": system.crop,
        "hop": system.score.hop,
        "full_clip": system.score.full_clip,
        "sections": [list(section) for section in sections],
        "classes": [list(name) for name in detector.classes[0]],
        "thresholds": detector.thresholds(),
        "seeds": list(detector.seeds),
        "platforms": list(PLATFORMS),
    }
    arrays = {
        "window": np.hanning(system.features.n_fft + 1)[:-1].astype(np.float32),
        "filters": filterbank(system.features),
    }
    for number, member in enumerate(members):
        for machine, section in sections:
            model = member.scorer.sections[machine, section]
            name = f"{number}/{machine}/{section}"
            arrays[f"prototypes/{name}"] = model.references
            arrays[f"labels/{name}"] = model.labels
            arrays[f"inverse_covariance/{name}"] = model.whitening @ model.whitening.T
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "model.jax", bytes(artifact.serialize()))
    write_arrays(out / "arrays.npz", arrays)
    write_atomically(out / "score.py", Path(exported.__file__).read_bytes())
    write_json(out / "about.json", about)
    return out


def _function(
    detector: TrainedDetector,
    members: Sequence[PrototypeMember],
    system: PrototypeSystem,
    sections: Sequence[Section],
) -> Any:
    """What is exported: windows and sections to scores and nearest classes."""
    # The one lowering that takes maps of any length; both platforms have it.
    if system.encoder.module is None:
        encoder = dataclasses.replace(system.encoder, lowering="native")
        system = dataclasses.replace(system, encoder=encoder)
    model = evaluation_model(system)
    backends = [_backend(member, sections) for member in members]
    keys = np.array([sections.index(section) for section in detector.train_sections])
    held_out = [
        [scores[keys == number] for number in range(len(sections))] for scores in detector.held_out
    ]
    zeros = np.array([[min(own.min(), 0.0) for own in each] for each in held_out])
    units = np.array([[np.median(own) for own in each] for each in held_out]) - zeros
    shares = np.asarray(detector.weights) / np.sum(detector.weights)

    def score(windows: jax.Array, section: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch, count, frames, mels = windows.shape
        flat = windows.reshape(batch * count, frames, mels)
        total, nearest = jnp.float32(0), None
        for index, (member, backend) in enumerate(zip(members, backends, strict=True)):
            crops = (flat - member.mean) * member.scale
            vectors: Any = model.apply(member.scoring_variables, crops, train=False)
            embeddings = vectors.reshape(batch, count, -1).mean(axis=1)
            length = jnp.linalg.norm(embeddings, axis=1, keepdims=True)
            scores, labels = backend(embeddings / jnp.maximum(length, 1e-12), section)
            nearest = labels if nearest is None else nearest
            if len(members) > 1:
                zero, unit = (jnp.float32(x[index])[section] for x in (zeros, units))
                scores = jnp.log(jnp.maximum((scores - zero) / unit, FLOOR))
            total = total + shares[index] * scores
        assert nearest is not None
        return total, nearest

    return score


def _backend(member: PrototypeMember, sections: Sequence[Section]) -> Any:
    """Embeddings and sections to scores and nearest classes, as the member's scorer has them."""
    models = [member.scorer.sections[section] for section in sections]
    most = max(len(model.references) for model in models)
    rank = max(model.whitening.shape[1] for model in models)
    dim = models[0].references.shape[1]
    references = np.zeros((len(models), most, dim), np.float32)
    labels = np.zeros((len(models), most), np.int32)
    there = np.zeros((len(models), most), bool)
    density = np.ones((len(models), most), np.float32)
    whitening = np.zeros((len(models), dim, rank), np.float32)
    for number, model in enumerate(models):
        size = len(model.references)
        references[number, :size], labels[number, :size] = model.references, model.labels
        if member.scorer.kind == "cosine":
            lengths = np.linalg.norm(model.references, axis=1, keepdims=True)
            references[number, :size] /= np.maximum(lengths, np.finfo(np.float32).tiny)
        there[number, :size], density[number, :size] = True, model.density
        whitening[number, :, : model.whitening.shape[1]] = model.whitening
    kind, neighbors = member.scorer.kind, min(member.scorer.neighbors, most)

    def compare(embeddings: jax.Array, section: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Differences before products: near ones keep their digits.
        differences = embeddings[:, None] - jnp.asarray(references)[section]
        if rank:
            matrix = jnp.asarray(whitening)[section]
            differences = jnp.einsum("brd,bdk->brk", differences, matrix, precision="highest")
        distances = jnp.linalg.norm(differences, axis=-1) / jnp.asarray(density)[section]
        if kind == "cosine":  # of unit vectors
            distances = jnp.square(distances) / 2
        distances = jnp.where(jnp.asarray(there)[section], distances, jnp.inf)
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
