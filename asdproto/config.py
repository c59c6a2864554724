"""Configurations are frozen dataclasses; this turns them to json and applies dotted overrides."""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import math
import re
import textwrap
import types
import typing
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_HUGE = 10**308  # whole numbers beyond it are no floats


class ConfigError(ValueError):
    """A configuration names no field, or has a value of the wrong kind or out of its range."""


# --- ranges of fields


@dataclasses.dataclass(frozen=True)
class Interval:
    """The numbers from ``low`` to ``high``, with these ends or without; nan is in none."""

    low: float
    high: float
    has_low: bool = True
    has_high: bool = True

    def __contains__(self, number: float) -> bool:
        above = number >= self.low if self.has_low else number > self.low
        return above and (number <= self.high if self.has_high else number < self.high)

    def __str__(self) -> str:
        left, right = "[" if self.has_low else "(", "]" if self.has_high else ")"
        return f"{left}{self.low:.10g}, {self.high:.10g}{right}"


def between(low: float, high: float) -> Interval:
    """Numbers between two ends, both of which belong to it."""
    return Interval(low, high)


def strictly_between(low: float, high: float) -> Interval:
    """Numbers between two ends, neither of which belongs to it."""
    return Interval(low, high, False, False)


def at_least(low: float, *, below: float = math.inf) -> Interval:
    """Finite numbers from ``low`` on, and below an end."""
    return Interval(low, below, True, False)


def positive(high: float) -> Interval:
    """Numbers above 0, to an end that belongs to it."""
    return Interval(0, high, False)


def check_fields(config: Any, **ranges: Interval) -> None:
    """Refuses values that a configuration's fields cannot have; for ``__post_init__``.

    Args:
      config: The instance. Every field must be of its annotated kind, and one of its choices.
      ranges: Field -> interval of its number, or of each of its numbers; ``None`` is in every one.

    Raises:
      ConfigError: Names the first field at fault, what it is and what was expected.
    """
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not dataclasses.is_dataclass(value):
            _convert(hints[field.name], value, field.name)
    for name, interval in ranges.items():
        value = getattr(config, name)
        if not _is_in(value, interval):
            many = "numbers" if isinstance(value, tuple | list) else "a number"
            raise ConfigError(f"{name}={_shown(value)}: expected {many} in {interval}")


def _is_in(value: Any, interval: Interval) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_in(item, interval) for item in value)
    return value is None or value in interval


# --- json


def to_dict(config: Any) -> dict[str, Any]:
    """Configuration as nested dictionaries that json can hold; tuples become lists."""
    return {one.name: _plain(getattr(config, one.name)) for one in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Configuration from nested dictionaries, as :func:`to_dict` makes them.

    Other fields keep their defaults; ``where`` stands before the names in messages.

    Raises:
      ConfigError: A field is unknown or a value has the wrong kind.
    """
    hints = _hints(cls)
    converted = {}
    for name, value in values.items():
        _check_name(cls, name, where)
        converted[name] = _convert(hints[name], value, f"{where}{name}")
    try:
        return cls(**converted)
    except ValueError as error:
        raise ConfigError(f"{where}{error}") from error


# --- overrides


def override(config: T, assignments: Sequence[str]) -> T:
    """Applies ``field.subfield=value`` assignments, all at once; of one field the last one counts.

    Args:
      config: A dataclass instance, perhaps of nested dataclasses.
      assignments: Such as ``"pretrain.epochs=10"`` or ``"finetune.mix_range=(0.25, 0.5)"``. Values
        are Python literals; what is none is taken as text. Of a field that holds several
        dataclasses, all are changed.

    Returns:
      New configuration.

    Raises:
      ConfigError: No ``=``, an unknown field (the nearest one is named), or a value of the wrong
        kind or out of its range.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not sign:
            expected = "expected field=value, such as pretrain.epochs=10"
            raise ConfigError(f"{_shown(assignment)} is no assignment; {expected}")
        changes[name.strip()] = _literal(text.strip())
    return _changed(config, changes, "")


def _changed(config: Any, changes: Mapping[str, Any], where: str) -> Any:
    """A configuration with other values, by dotted name below ``where``."""
    hints = _hints(type(config))
    values: dict[str, Any] = {}
    for dotted in changes:
        name, dot, _ = dotted.partition(".")
        _check_name(type(config), name, where)
        full, before = f"{where}{name}", getattr(config, name)
        nested = dataclasses.is_dataclass(before) or _holds_several(before)
        if dot and not nested:
            raise ConfigError(f"{full} is a value and has no fields; assign it as a whole")
        if nested and not dot:
            raise ConfigError(f"{full} holds several fields; assign {full}.FIELD=value")
        if not nested:
            values[name] = _convert(hints[name], changes[dotted], full)
            continue
        start = f"{name}."
        inner = {x.removeprefix(start): changes[x] for x in changes if x.startswith(start)}
        if isinstance(before, tuple):
            values[name] = tuple(_changed(one, inner, f"{full}.") for one in before)
        else:
            values[name] = _changed(before, inner, f"{full}.")
    try:
        return dataclasses.replace(config, **values)
    except ValueError as error:
        raise ConfigError(f"{where}{error}") from error


def _holds_several(value: Any) -> bool:
    """Whether a value is a tuple of dataclasses."""
    return isinstance(value, tuple) and bool(value) and dataclasses.is_dataclass(value[0])


def _literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        with warnings.catch_warnings():  # of the parser, about odd literals
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean NAME?"`` with the most similar of the known names, or ``""``."""
    originals = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), originals, 1)
    return f"; did you mean {originals[near[0]]}?" if near else ""


def describe_fields(config: Any, prefix: str = "") -> str:
    """A line ``field=default`` for each field, nested ones with dots, and below it its meaning.

    The meaning is that of the section ``Attributes`` of the docstrings.
    """
    texts: list[str] = []
    meanings = _meanings(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        value = value[0] if _holds_several(value) else value
        if dataclasses.is_dataclass(value):
            texts.append(describe_fields(value, f"{prefix}{field.name}."))
        else:
            meaning = meanings.get(field.name, "")
            wrapped = textwrap.indent(textwrap.fill(meaning, 74), " " * 6)
            texts.append(f"  {prefix}{field.name}={value}\n{wrapped}")
    return "\n".join(texts)


def _meanings(cls: type) -> dict[str, str]:
    """Field -> its text in the docstring of the class, or of one that it is made of."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(one.__doc__ or "").partition("\nAttributes:\n")
        for name, text in re.findall(r"^  (\w+): ((?:.|\n(?=    ))*)", section, re.M):
            found[name] = re.sub(r"`+|:\w+:(?=`)", "", " ".join(text.split()))
    return found


# --- fields and kinds


_KNOWN_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    """Kinds of a class's fields, which take long to find out."""
    if cls not in _KNOWN_HINTS:
        _KNOWN_HINTS[cls] = typing.get_type_hints(cls)
    return _KNOWN_HINTS[cls]


def _check_name(cls: Any, name: str, where: str) -> None:
    """Refuses a name that no field has; the error names the nearest one."""
    fields = [field.name for field in dataclasses.fields(cls)]
    if name not in fields:
        hint = nearest(name, fields).replace("mean ", f"mean {where}")
        shown = name if name.isidentifier() else _shown(name)
        available = ", ".join(fields)
        raise ConfigError(f"unknown field {where}{shown}{hint or '.'} Available: {available}")


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint`` wants it, or an error that says what was wanted."""
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        if isinstance(value, Mapping):
            return from_dict(typing.cast(type, hint), value, f"{where}.")
        raise _wrong(where, value, hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            with contextlib.suppress(ConfigError):
                return _convert(option, value, where)
        raise _wrong(where, value, hint)
    if origin is typing.Literal:
        if value not in args:
            expected = f"{', '.join(map(repr, args))}{nearest(str(value), map(str, args))}"
            raise ConfigError(f"{where}={_shown(value)}: expected one of {expected}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        if args[1:] == (Ellipsis,):
            args = args[:1] * len(value)
        if len(args) != len(value):
            raise _wrong(where, value, hint)
        return tuple(_convert(arg, item, where) for arg, item in zip(args, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < _HUGE else math.inf * (-1 if value < 0 else 1)
    is_kind = origin is None and isinstance(hint, type) and isinstance(value, hint)
    if is_kind and not (hint is int and isinstance(value, bool)):
        return value
    raise _wrong(where, value, hint)


def _wrong(where: str, value: Any, hint: Any) -> ConfigError:
    name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    return ConfigError(f"{where}={_shown(value)}: expected {name}, found {type(value).__name__}")


def _shown(value: Any) -> str:
    """A value in a message: on one line, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a huge number"
    return text if len(text) <= 60 else f"{text[:60]}..."
