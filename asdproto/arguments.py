"""Command lines with dotted overrides, ``FIELD=VALUE``, anywhere among options and files."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from asdproto.config import Interval, nearest
from asdproto.errors import printable

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=")


def within(kind: type, interval: Interval) -> Callable[[str], Any]:
    """The ``type`` of an option whose numbers, of a kind, lie in an interval."""

    def convert(text: str) -> Any:
        value = kind(text)
        if value not in interval:
            raise argparse.ArgumentTypeError(f"{printable(text)} is not in {interval}")
        return value

    convert.__name__ = kind.__name__
    return convert


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions as they are written, and the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if "default" in (action.help or "") or action.default in (None, False):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that can take overrides out of its arguments first.

    argparse would hand ``--seeds 0 1 pretrain.epochs=5`` to ``--seeds`` as a whole, and refuse
    ``--save-seconds 0 pretrain.epochs=5``.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(*args, **kwargs)
        self._inside = False
        self._fields: Callable[[], str] | None = None  # of overrides, where there are any

    def add_overrides(self, fields: Callable[[], str] = str) -> None:
        """Takes assignments into ``overrides``, a list of texts.

        Args:
          fields: Makes the list of fields that ends the help; called when help is asked for.
        """
        self._fields = fields
        self.set_defaults(overrides=[])

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: D102
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            near = nearest(rest[0].partition("=")[0], self._options(parsed))
            self.error(f"unrecognized arguments: {' '.join(map(printable, rest))}{near}")
        return parsed

    def _options(self, parsed: argparse.Namespace) -> list[str]:
        """Names of all options, also those of the command that was given."""
        names = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                names += action.choices[getattr(parsed, action.dest)]._option_string_actions
        return names

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            near = nearest(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{near}") from None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: D102
        args = sys.argv[1:] if args is None else args
        if self._inside or any(action.nargs == argparse.PARSER for action in self._actions):
            return super().parse_known_args(args, namespace)
        assignments, others = self._split(args) if self._fields else ([], list(args))
        self._inside = True
        try:
            # Options may stand between files, also where there may be no file at all.
            parsed, rest = self.parse_known_intermixed_args(others, namespace)
        finally:
            self._inside = False
        if self._fields:
            parsed.overrides = assignments
        return parsed, rest

    def _split(self, args: Sequence[str]) -> tuple[list[str], list[str]]:
        """Assignments, and everything else in its order."""
        assignments: list[str] = []
        others: list[str] = []
        for arg in args:
            if _ASSIGNMENT.match(arg) and not (others and self._wants_value(others[-1])):
                assignments.append(arg)
            else:
                others.append(arg)
        if others and others[-1] == "--":  # nothing but assignments came after it
            others.pop()
        return assignments, others

    def _wants_value(self, arg: str) -> bool:
        """Whether an argument is an option whose one value comes next."""
        if not arg.startswith("--") or arg == "--" or "=" in arg:
            return False
        return any(
            action.nargs is None and any(name.startswith(arg) for name in action.option_strings)
            for action in self._actions
        )

    def format_usage(self) -> str:  # noqa: D102
        usage = super().format_usage()
        if not self._fields or "FIELD=VALUE" in usage:
            return usage
        return f"{usage.rstrip()} [FIELD=VALUE ...]\n"

    def format_help(self) -> str:  # noqa: D102
        text = super().format_help()
        if not self._fields:
            return text
        fields = self._fields()
        return f"{text}\noverrides:\n  FIELD=VALUE ...  change any number of the system\n{fields}"
