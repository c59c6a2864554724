"""Our pages: every command line is understood, and the table of faults names tests that exist."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from asdproto import cli
from asdproto.arguments import Parser

ROOT = Path(__file__).parents[1]


class Parsed(BaseException):
    """A command line went through its parser."""


def _command_lines():
    """(module, arguments) of every ``python -m`` in our pages, code blocks and sentences."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts, found = [], []
    for page in pages:
        parts = page.read_text().split("```")
        assert len(parts) % 2, f"{page}: a code block without an end"
        texts += [block.replace("\\\n", " ") for block in parts[1::2]]
        for sentences in parts[::2]:
            texts += [span.replace("\n", " ") for span in re.findall(r"`([^`]*)`", sentences)]
    for line in "\n".join(texts).splitlines():
        match = re.search(r"python -m ((?:asdproto|experiments)[\w.]*)([^#&;|]*)", line)
        if match and not match[1].endswith(".NAME"):  # which stands for any of them
            words = shlex.split(match[2].replace("...", ""))
            found.append((match[1], [{"$i": "1"}.get(word, word) for word in words]))
    return found


def test_every_command_line_of_our_pages_is_understood(monkeypatch):
    lines = _command_lines()
    assert {module for module, _ in lines} >= {"asdproto", "experiments.two_stage"}
    parse, begin = Parser.parse_args, argparse.ArgumentParser.parse_args

    def stop(self, args=None, namespace=None):
        parsed = (parse if isinstance(self, Parser) else begin)(self, args, namespace)
        if hasattr(parsed, "command") and not hasattr(parsed, "run"):
            return parsed  # the words before those of the command
        raise Parsed(parsed)

    # Both: a command line that slipped through would run here for real.
    monkeypatch.setattr(Parser, "parse_args", stop)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    for module, arguments in lines:
        main = cli.main if module == "asdproto" else importlib.import_module(module).main
        with pytest.raises(Parsed) as caught:
            main(arguments)
        given = [word for word in arguments if re.match(r"[a-z_.]+=|FIELD=", word)]
        assert getattr(caught.value.args[0], "overrides", []) == given, arguments


def test_the_table_of_faults_names_tests_that_exist():
    known = {
        path.name: set(re.findall(r"^def (test_\w+)", path.read_text(), re.M))
        for path in (ROOT / "tests").rglob("test_*.py")
    }
    for line in (ROOT / "docs" / "robustness.md").read_text().splitlines():
        module = ""
        for name in re.findall(r"`([^`]*)`", line.rpartition(" | ")[2]):
            file, _, test = name.rpartition("::")
            if file or name.endswith(".py"):
                module = (file or test).rpartition("/")[2]
                assert module in known, name
            if test.startswith("test_") and not test.endswith(".py"):
                assert test in known[module], name
