"""Read YAML files as dataclasses. A value of another type is an error that names the file and the key."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

from reproduce import parsing
from reproduce.errors import UserError, did_you_mean


def load_yaml(kind: Any, path: Path) -> Any:
    """Return a YAML file as an instance of `kind`. Raises `UserError` with the file and the key that does not fit."""
    return parse_yaml(kind, read_text(path), str(path))


def read_text(path: Path) -> str:
    """Return a file's text. Raises `UserError` if it is not in UTF-8."""
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from error


def parse_yaml(kind: Any, text: str, file: str) -> Any:
    """Return the text of a YAML file as an instance of `kind`. Raises `UserError` as `load_yaml` does."""
    try:
        raw = parsing.parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    return convert(kind, raw, file, "")


def convert(kind: Any, raw: Any, file: str, key: str) -> Any:
    """Convert plain YAML or JSON data to `kind`: a dataclass, a container, or a plain type.

    `Any` takes all of it as it is. Raises `UserError` with `file` and the `key` that does not fit.
    """
    if kind is Any:
        return raw
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if hasattr(kind, "__dataclass_fields__"):
        return _convert_dataclass(kind, raw, file, key)
    if origin is dict and isinstance(raw, Mapping):
        return {
            convert(arguments[0], name, file, f"a key of {key or 'the file'}"): convert(
                arguments[1], value, file, f"{key}.{name}"
            )
            for name, value in raw.items()
        }
    if origin is list and isinstance(raw, list):
        return [convert(arguments[0], value, file, f"{key}[{index}]") for index, value in enumerate(raw)]
    if origin is tuple and isinstance(raw, list):
        return tuple(convert(arguments[0], value, file, f"{key}[{index}]") for index, value in enumerate(raw))
    if origin is types.UnionType:
        return _convert_union(arguments, raw, file, key)
    if origin is Literal:
        if raw not in arguments:
            raise UserError(f"{file}: {key} is {raw!r}; {did_you_mean(str(raw), arguments)}")
        return raw
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        return _finite(raw, f"{file}: {key}")
    if origin is not None or not isinstance(raw, kind) or (isinstance(raw, bool) and kind is not bool):
        wanted = str(kind) if origin else kind.__name__
        raise UserError(f"{file}: {key or 'the file'} should be of type {wanted}, but it is {raw!r}")
    return raw


def _finite(raw: float, where: str) -> float:
    try:
        value = float(raw)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise UserError(f"{where} should be a finite number")
    return value


def _convert_union(options: tuple[Any, ...], raw: Any, file: str, key: str) -> Any:
    if raw is None and types.NoneType in options:
        return None
    chosen = [option for option in options if option is not types.NoneType]
    plain = {option: (int, float) if option is float else typing.get_origin(option) or option for option in chosen}
    fitting = [option for option in chosen if isinstance(raw, plain[option])]
    return convert((fitting or chosen)[0], raw, file, key)


def _convert_dataclass(kind: Any, raw: Any, file: str, key: str) -> Any:
    if not isinstance(raw, Mapping):
        raise UserError(f"{file}: {key or 'the file'} should have keys, but it is {raw!r}")
    known = {entry.name: entry for entry in fields(kind)}
    annotations = typing.get_type_hints(kind)
    for name in raw:
        if name not in known:
            raise UserError(
                f"{file}: there is no key {name!r} in {key or 'the file'}: {did_you_mean(str(name), known)}"
            )
    for name, entry in known.items():
        if name not in raw and entry.default is MISSING and entry.default_factory is MISSING:
            raise UserError(f"{file}: {key or 'the file'} needs a value for {name!r}")
    prefix = f"{key}." if key else ""
    return kind(**{name: convert(annotations[name], value, file, prefix + name) for name, value in raw.items()})
