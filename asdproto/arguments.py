"""Command lines with dotted overrides, ``FIELD=VALUE``, anywhere among options and files."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from asdproto.config import Interval, nearest, strictly_between
from asdproto.errors import printable

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=")


def within(kind: type, interval: Interval) -> Callable[[str], Any]:
    """The ``type`` of an option whose numbers, of a kind, lie in an interval."""

    def convert(text: str) -> Any:
        value = kind(text)
        if value not in interval:
            raise argparse.ArgumentTypeError(f"{text} is not in {interval}")
        return value

    convert.__name__ = kind.__name__
    return convert


#: The ``type`` of a share between none and all.
SHARE = within(float, strictly_between(0, 1))


def local_path(text: str) -> Path:
    """A path on a file system; what every argument of type ``Path`` is read by.

    Raises:
      ArgumentTypeError: It is an address with a scheme, such as a bucket's.
    """
    if re.match(r"[A-Za-z][\w+.-]*://", text):
        raise argparse.ArgumentTypeError(
            f"{printable(text)} is not on a file system; mount it, and name the folder of the mount"
        )
    return Path(text)


class Parser(argparse.ArgumentParser):
    """A parser that tells defaults and near misses, and can take overrides.

    Overrides are words such as ``pretrain.epochs=5``. They are taken out before anything else, so
    a file whose name looks like one is written as ``./a=b.wav``, and an option's value as
    ``--csv=a=b.csv``.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self.register("type", Path, local_path)
        self.summary = ""  # in the list of commands
        self._has_overrides = False

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:  # noqa: D102
        text, default = options.get("help", ""), options.get("default")
        if text and default not in (None, False, argparse.SUPPRESS) and "default" not in text:
            options["help"] = f"{text} (default: %(default)s)"
        return super().add_argument(*names, **options)

    def add_overrides(self, describe: Callable[[str | None], str]) -> None:
        """Takes assignments into ``overrides``, a list of texts.

        Args:
          describe: Text of ``--help-fields [KIND]``: the fields, of one kind or of all.
        """

        class Fields(argparse.Action):
            def __call__(
                self, parser: Any, namespace: Any, values: Any, option: Any = None
            ) -> None:
                print(describe(values))
                parser.exit()

        self._has_overrides = True
        self.set_defaults(overrides=[])
        self.add_argument(
            "--help-fields",
            action=Fields,
            nargs="?",
            metavar="KIND",
            help="list the fields that FIELD=VALUE changes",
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Arguments; options may stand between files, also where there may be no file at all."""
        words = list(sys.argv[1:] if args is None else args)
        overrides = [w for w in words if _ASSIGNMENT.match(w)] if self._has_overrides else []
        parsed = self.parse_intermixed_args([w for w in words if w not in overrides], namespace)
        if self._has_overrides:
            parsed.overrides = overrides
        return parsed

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2 and a message, which names the nearest option or choice."""
        near = ""
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            near = nearest(choice[1], re.findall(r"[^', ]+", choice[2]))
        elif option := re.match(r"unrecognized arguments: ([^\s=]+)", message):
            near = nearest(option[1], re.findall(r"--[\w-]+", self.format_help()))
        super().error(printable(f"{message}{near}"))
