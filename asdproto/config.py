"""Configurations are frozen dataclasses; this turns them to json and applies dotted overrides."""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

# Fields that had another name in earlier versions: old name -> new name.
_RENAMED = {
    "mels": "n_mels",
    "window": "n_fft",
    "hop": "hop_length",
    "neighbours": "neighbors",
    "standardise": "standardize",
}


class ConfigError(ValueError):
    """An override or a stored configuration names no field, or has a value of the wrong kind."""


def to_dict(config: Any) -> dict[str, Any]:
    """Configuration as nested dictionaries that json can hold; tuples become lists.

    A field with the metadata ``{"by_value": True}`` holds something that json cannot, such as a
    module; its ``repr`` is written, and :func:`from_dict` leaves the field at its default.
    """
    return {
        field.name: _described(field, getattr(config, field.name))
        for field in dataclasses.fields(config)
    }


def _described(field: dataclasses.Field, value: Any) -> Any:
    if field.metadata.get("by_value"):
        return None if value is None else repr(value)
    return _plain(value)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Configuration from nested dictionaries, as :func:`to_dict` makes them.

    Args:
      cls: A dataclass.
      values: Fields; those not given keep their defaults.
      where: Dotted place of ``values``, for messages.

    Returns:
      Instance of ``cls``.

    Raises:
      ConfigError: A field is unknown or a value has the wrong kind.
    """
    hints = typing.get_type_hints(cls)
    by_value = {f.name for f in dataclasses.fields(cls) if f.metadata.get("by_value")}  # type: ignore[arg-type]
    given = {}
    for name, value in values.items():
        _check_name(cls, name, where)
        if name in by_value:
            continue
        given[name] = _convert(hints[name], value, f"{where}{name}")
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where.rstrip('.') or cls.__name__}: {error}") from error


def describe_fields(config: Any, prefix: str = "") -> list[str]:
    """``field=default`` of a dataclass instance, nested ones with dots."""
    found: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("by_value"):
            continue
        if dataclasses.is_dataclass(value):
            found += describe_fields(value, f"{prefix}{field.name}.")
        else:
            found.append(f"{prefix}{field.name}={value}")
    return found


def override(config: T, assignments: Sequence[str]) -> T:
    """Applies ``field.subfield=value`` assignments, later ones over earlier ones.

    Args:
      config: A dataclass instance, perhaps of nested dataclasses.
      assignments: Such as ``"pretrain.epochs=10"`` or ``"finetune.mix_range=(0.25, 0.5)"``. Values
        are Python literals; what is none is taken as text.

    Returns:
      New configuration.

    Raises:
      ConfigError: No ``=``, an unknown field (the nearest one is named), or a value of the wrong
        kind.
    """
    for assignment in assignments:
        name, found, text = assignment.partition("=")
        if not found:
            raise ConfigError(
                f"{assignment!r} is no assignment; expected field=value, such as pretrain.epochs=10"
            )
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            value = {"true": True, "false": False, "none": None}.get(text.strip().lower(), text)
        config = _set(config, name.strip().split("."), value, "")
    return config


def _set(config: Any, path: list[str], value: Any, where: str) -> Any:
    name, *rest = path
    if not dataclasses.is_dataclass(config):
        raise ConfigError(
            f"{where.rstrip('.')} is a value and has no field {name!r}; assign it as a whole"
        )
    _check_name(type(config), name, where)
    fields = {field.name: field for field in dataclasses.fields(config)}
    if fields[name].metadata.get("by_value"):
        raise ConfigError(f"{where}{name} is an object of your program; it has no text form")
    if rest:
        changed = _set(getattr(config, name), rest, value, f"{where}{name}.")
    else:
        hint = typing.get_type_hints(type(config))[name]
        changed = _convert(hint, value, f"{where}{name}")
    try:
        return dataclasses.replace(config, **{name: changed})  # type: ignore[type-var]
    except ValueError as error:
        raise ConfigError(f"{where}{name}: {error}") from error


def _check_name(cls: Any, name: str, where: str) -> None:
    known = [field.name for field in dataclasses.fields(cls)]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        if _RENAMED.get(name) in known:
            near = [_RENAMED[name]]
        hint = f"; did you mean {where}{near[0]}?" if near else ""
        raise ConfigError(f"{where}{name} is no field{hint} Fields here: {', '.join(known)}")


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint`` wants it, or an error that says what was wanted."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_dict(typing.cast(type, hint), value, f"{where}.")
        raise ConfigError(f"{where} holds several fields; assign {where}.FIELD=value")
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _convert(option, value, where)
            except ConfigError:
                continue
        raise _wrong(where, value, hint)
    if origin is typing.Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(arg) for arg in args], 1)
            more = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{where}={value!r}: expected one of {', '.join(map(repr, args))}{more}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, value, hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], item, where) for item in value)
        if len(args) != len(value):
            raise _wrong(where, value, hint)
        return tuple(_convert(arg, item, where) for arg, item in zip(args, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is type(None) and value is None:
        return None
    if isinstance(hint, type) and isinstance(value, hint):
        if hint is int and isinstance(value, bool):
            raise _wrong(where, value, hint)
        return value
    raise _wrong(where, value, hint)


def _wrong(where: str, value: Any, hint: Any) -> ConfigError:
    name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    return ConfigError(f"{where}={value!r}: expected {name}, found {type(value).__name__}")
