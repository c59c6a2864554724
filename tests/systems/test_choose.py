"""Which system a collection is trained with where none is asked for."""

import pytest

from asdproto.data.dcase import Clip
from asdproto.systems import KINDS, choose


@pytest.mark.parametrize(
    ("count", "classes", "sections", "kind", "said"),
    [
        (1000, 10, 1, "prototype", "1000 clips in 10 attribute classes"),
        (999, 10, 1, "spectral", "--system prototype learns prototypes"),
        (1000, 9, 1, "spectral", "--system prototype learns prototypes"),
        (4, 1, 1, "spectral", "4 clips in 1 attribute class: distances to the nearest spectra"),
        (3, 1, 2, "autoencoder", "a section of 1"),  # of 2 and of 1 clips
    ],
)
def test_the_number_of_training_clips_and_classes_decides(count, classes, sections, kind, said):
    clips = [
        Clip(f"{i}.wav", "fan", f"{i % sections:02}", "", "train", "normal", f"v_{i % classes}")
        for i in range(count)
    ]
    tests = [Clip(f"t{i}.wav", "fan", "00", "", "test", "normal", "x") for i in range(600)]
    found, why = choose(clips + tests)
    assert found == kind in KINDS
    assert said in why
    assert ("--system prototype" in why) == (kind == "spectral" and classes > 1)
