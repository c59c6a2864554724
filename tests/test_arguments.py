"""Overrides among options, help that tells defaults, and wrong words."""

import re
import shlex
from pathlib import Path

import pytest

from asdproto import cli
from asdproto.systems import KINDS


def test_overrides_stand_anywhere():
    for line, name, expected in (
        ("data run --seeds 0 1 2 a.b=(1,2)", "seeds", [0, 1, 2]),
        ("data --retrain a.b=(1,2) run", "workdir", Path("run")),
        ("data a.b=(1,2) ./x=1", "workdir", Path("x=1")),
        ("data run a.b=(1,2) --machine=x=1", "machine", "x=1"),
    ):
        found = cli.command_parsers()["train"].parse_args(line.split())
        assert found.overrides == ["a.b=(1,2)"]
        assert getattr(found, name) == expected


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("trian", "did you mean train?"),
        ("train a b --system prototpye", "did you mean prototype?"),
        ("train a b --sytem=knn", "did you mean --system?"),
        ("report run pretrain.epochs=3", "unrecognized arguments: pretrain.epochs=3"),
        ("score run x.wav --a\x1b[2J", r"unrecognized arguments: --a\x1b[2J"),
        ("train a b --seeds 0 4294967296", "4294967296 is not in [0, 4294967295]"),
        ("train a b --save-seconds nan", "nan is not in [0, inf)"),
        ("train a gs://bucket/run", "is not on a file system; mount it, and name the folder of"),
    ],
)
def test_wrong_words_are_named_with_the_nearest_right_ones(line, near, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(shlex.split(line))
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert near in said
    assert ("did you mean" in said) == ("did you mean" in near)


def test_every_option_of_every_command_tells_its_default():
    for name, parser in cli.command_parsers().items():
        text = parser.format_help()
        if name != "download":  # whose choices argparse leaves on one line
            assert max(map(len, text.splitlines())) <= 90
        _, _, options = text.partition("options:")
        for text in re.split(r"\n  (?=-)", options)[1:]:
            option, *values = text.split("  ")[0].split()
            assert "(default: None)" not in text
            assert "(default: False)" not in text
            if values and option not in ("-h,", "--help-fields", "--root"):  # which is required
                assert "default" in text, f"{name} {option}"


def test_help_of_train_is_one_screen_and_fields_have_meanings(capsys):
    shown = {}
    for arguments in (["--help"], ["--help-fields"], ["--help-fields", "spectral-knn"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["train", *arguments])
        assert caught.value.code == 0
        shown[arguments[-1]] = capsys.readouterr().out
    assert len(shown["--help"].splitlines()) <= 50
    fields = shown["--help-fields"]
    assert all(f"{kind}, preset small:" in fields for kind in KINDS)
    assert max(map(len, fields.splitlines())) <= 100
    # Every field is followed by its meaning.
    names = re.findall(r"^  (\S+)=.*\n(.*)", fields, re.M)
    assert "finetune.mix_range" in dict(names)
    assert [name for name, meaning in names if not re.match(r" {6}\S", meaning)] == []
    assert "prototype, preset" not in shown["spectral-knn"]
