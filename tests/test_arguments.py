"""Overrides among options, help that tells defaults, and wrong words."""

import re
import shlex

import pytest

from asdproto import cli
from asdproto.arguments import Parser
from asdproto.systems import KINDS


@pytest.fixture
def parser():
    parser = Parser(prog="x")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of everything")
    parser.add_argument("--save-seconds", type=float, default=60.0, help="between checkpoints")
    parser.add_argument("--csv", help="file")
    parser.add_argument("--quiet", action="store_true", help="say nothing")
    parser.add_overrides(lambda kind: f"the fields of {kind}")
    return parser


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--seeds 0 1 2 a.b=(1,2)", {"seeds": [0, 1, 2]}),
        ("--save-seconds 0 a.b=(1,2)", {"save_seconds": 0.0}),
        ("a.wav --quiet a.b=(1,2) b.wav", {"quiet": True, "files": ["a.wav", "b.wav"]}),
        ("--csv=x=1.csv ./x=1.wav a.b=(1,2)", {"csv": "x=1.csv", "files": ["./x=1.wav"]}),
    ],
)
def test_overrides_stand_anywhere(parser, line, expected):
    found = parser.parse_args(line.split())
    assert found.overrides == ["a.b=(1,2)"]
    assert {name: getattr(found, name) for name in expected} == expected


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
