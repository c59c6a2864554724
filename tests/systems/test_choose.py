"""Which system a collection is trained with where none is asked for."""

from asdproto.data.dcase import Clip
from asdproto.systems import KINDS, choose


def clips(count, classes, sections=1, split="train"):
    return [
        Clip(f"{i}.wav", "fan", f"{i % sections:02}", "source", split, "normal", f"v_{i % classes}")
        for i in range(count)
    ]


def test_prototypes_take_many_clips_in_many_classes():
    assert choose(clips(1000, 10))[0] == "prototype"
    assert choose(clips(999, 10))[0] == "spectral"
    assert choose(clips(1000, 9))[0] == "spectral"


def test_test_clips_do_not_count():
    assert choose(clips(500, 10) + clips(600, 10, split="test"))[0] == "spectral"


def test_a_lone_clip_of_a_section_shares_an_autoencoder():
    assert choose(clips(4, 1))[0] == "spectral"
    assert choose(clips(3, 1, sections=2))[0] == "autoencoder"  # of 2 and of 1 clips
    assert "a section of 1" in choose(clips(3, 1, sections=2))[1]


def test_what_else_can_be_trained_is_said():
    assert "--system prototype" in choose(clips(20, 2))[1]
    assert "--system prototype" not in choose(clips(20, 1))[1]
    assert all(choose(clips(n, k))[0] in KINDS for n, k in ((1, 1), (20, 2), (2000, 20)))
