"""What a run leaves behind, and how people look at it: files, tables, plots, the report."""

from typing import Any


def class_name(key: Any) -> str:
    """An attribute class as text, ``""`` for none."""
    if isinstance(key, tuple | list):
        return " ".join(filter(None, map(str, key)))
    return "" if key is None else str(key)
