"""Rows of ``scores.csv`` for tests."""

import numpy as np

from asdproto.results.run_folder import ScoredClip


def scored(clips, scores, threshold=1.0, *, percentile=50.0, nearest_class="", note=""):
    """What a detector with one threshold says of clips."""
    return [
        ScoredClip(
            clip.path,
            clip.machine_type,
            clip.section,
            clip.domain,
            clip.state,
            float(score),
            percentile,
            threshold,
            int(score > threshold),
            nearest_class,
            note,
        )
        for clip, score in zip(clips, np.asarray(scores, float), strict=True)
    ]
