"""What can happen to a file."""

import os
import pathlib


def cut(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: pathlib.Path) -> None:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def binary(path: pathlib.Path) -> None:
    path.write_bytes(bytes(range(256)) * 2)


def missing(path: pathlib.Path) -> None:
    path.unlink()
