"""Overrides among options, help that tells defaults, and every command line that we show."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from asdproto import cli
from asdproto.arguments import Parser

ROOT = Path(__file__).parents[1]


@pytest.fixture
def parser():
    parser = Parser(prog="x")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of everything")
    parser.add_argument("--save-seconds", type=float, default=60.0, help="between checkpoints")
    parser.add_argument("--csv", help="file")
    parser.add_argument("--quiet", action="store_true", help="say nothing")
    parser.add_overrides(lambda: "  the fields")
    return parser


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--seeds 0 1 2 encoder.dtype=bfloat16", {"seeds": [0, 1, 2]}),
        ("--save-seconds 0 encoder.dtype=bfloat16", {"save_seconds": 0.0}),
        (
            "encoder.dtype=bfloat16 --quiet a.wav b.wav",
            {"quiet": True, "files": ["a.wav", "b.wav"]},
        ),
        ("a.wav --quiet encoder.dtype=bfloat16 b.wav", {"files": ["a.wav", "b.wav"]}),
        ("--csv x=1.csv encoder.dtype=bfloat16", {"csv": "x=1.csv"}),
        ("--csv=x=1.csv encoder.dtype=bfloat16", {"csv": "x=1.csv"}),
        ("./x=1.wav encoder.dtype=bfloat16", {"files": ["./x=1.wav"]}),
        ("--seeds 3 -- encoder.dtype=bfloat16", {"seeds": [3], "files": []}),
    ],
)
def test_overrides_stand_anywhere(parser, line, expected):
    found = parser.parse_args(shlex.split(line))
    assert found.overrides == ["encoder.dtype=bfloat16"]
    assert {name: getattr(found, name) for name in expected} == expected


def test_overrides_in_commands():
    parser = Parser(prog="x")
    command = parser.add_subparsers().add_parser("train")
    command.add_argument("data")
    command.add_argument("--seeds", nargs="+", type=int)
    command.add_overrides()
    found = parser.parse_args(["train", "--seeds", "1", "2", "a.b=(1, 2)", "--", "root"])
    assert (found.data, found.seeds, found.overrides) == ("root", [1, 2], ["a.b=(1, 2)"])


def test_what_is_no_override_is_refused(parser, capsys):
    for line in ("--seeds 0 encoder.dtype", "--nope", "a=1 --nope"):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(shlex.split(line))
        assert caught.value.code == 2
    assert "FIELD=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("trian", "did you mean train?"),
        ("train a b --system prototpye", "did you mean prototype?"),
        ("train a b --preset Smal", "did you mean small?"),
        ("train a b --sytem=knn", "did you mean --system?"),
        ("score run x.wav --thresold 3", "did you mean --threshold?"),
        ("score run x.wav --zzzzzzzzzzzz 3", "unrecognized arguments: --zzzzzzzzzzzz"),
        ("score run x.wav --a\x1b[2J", r"unrecognized arguments: --a\x1b[2J"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(line, near, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(shlex.split(line))
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert near in said
    assert ("did you mean" in said) == ("did you mean" in near)


@pytest.mark.parametrize(
    "line",
    [
        "train a b --seeds -1",
        "train a b --seeds 0 4294967296",
        "train a b --save-seconds nan",
        "train a b --save-seconds -1",
        "score a b --top 0",
        "score a b --threshold nan",
        "score a b --threshold inf",
        "score a b --contamination 1",
        "score a b --contamination nan",
    ],
)
def test_numbers_out_of_their_ranges_are_wrong_usage(line, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(line.split())
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{line.split()[-1]} is not in " in said


def test_help_tells_defaults_and_fields(parser):
    text = parser.format_help()
    assert "between checkpoints (default: 60.0)" in text
    assert "of everything (default: [0])" in text
    assert "(default: None)" not in text
    assert "(default: False)" not in text
    assert text.rstrip().endswith("the fields")
    assert parser.format_usage().count("FIELD=VALUE") == 1


def _options(parser, name=""):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, sub in action.choices.items():
                yield from _options(sub, command)
        else:
            yield name, parser, action


def test_every_option_of_the_command_line_tells_its_default():
    silent = []
    for command, parser, action in _options(cli._parser()):
        if not action.option_strings or action.nargs == 0 or action.required:
            continue
        text = parser._get_formatter()._get_help_string(action)
        if "default" not in text:
            silent.append(f"{command} {action.option_strings[-1]}: {text}")
    assert not silent


class Parsed(Exception):
    """A command line went through its parser."""


def _blocks(page):
    """Sentences and code blocks in turn, sentences last."""
    parts = page.read_text().split("```")
    assert len(parts) % 2, f"{page}: a code block without an end"
    return [*parts, ""]


def _command_lines():
    """(module, arguments) of every ``python -m`` in our pages, code blocks and sentences."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    parts = [part for page in pages for part in _blocks(page)]
    texts = [block.replace("\\\n", " ") for block in parts[1::2]]
    for sentences in parts[::2]:
        texts += [span.replace("\n", " ") for span in re.findall(r"`([^`]*)`", sentences)]
    found = []
    for line in "\n".join(texts).splitlines():
        match = re.search(r"python -m ((?:asdproto|experiments)[\w.]*)([^#&;|]*)", line)
        if match and not match[1].endswith(".NAME"):  # which stands for any of them
            words = shlex.split(match[2].replace("...", ""))
            found.append((match[1], [{"$i": "1"}.get(word, word) for word in words]))
    return found


def test_our_pages_show_command_lines():
    modules = {module for module, _ in _command_lines()}
    assert modules >= {"asdproto", "experiments.two_stage", "experiments.table1"}


@pytest.mark.parametrize(
    ("module", "arguments"), _command_lines(), ids=lambda value: str(value)[:60]
)
def test_every_command_line_of_our_pages_is_understood(module, arguments, monkeypatch):
    plain, ours = argparse.ArgumentParser.parse_args, Parser.parse_args

    def stop(self, args=None, namespace=None):
        raise Parsed((ours if isinstance(self, Parser) else plain)(self, args, namespace))

    # Both: a command line that slipped through would run here for real.
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(Parser, "parse_args", stop)
    main = cli.main if module == "asdproto" else importlib.import_module(module).main
    with pytest.raises(Parsed) as caught:
        main(arguments)
    parsed = caught.value.args[0]
    given = [word for word in arguments if re.match(r"[a-z_.]+=", word)]
    assert getattr(parsed, "overrides", []) == given
