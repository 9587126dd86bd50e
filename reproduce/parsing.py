"""Parse YAML and JSON that anybody may have edited: whatever is in a file, it ends as plain data or in `ValueError`.

Refused are keys that stand twice (the second would win in silence), numbers that are not finite, aliases that unfold to
more than a file can hold, and nesting that no file of ours has.
"""

import json
import math
from collections import Counter
from typing import Any

import yaml

MAX_BYTES = 50_000_000
MAX_DEPTH = 100
MAX_VALUES = 200_000
"""Values of a YAML file, with each alias counted as what it stands for. Reading so many takes seconds."""
MAX_EVENTS = 2 * MAX_VALUES
"""A value is one event of the parser, a list or a mapping two."""
MERGE = "tag:yaml.org,2002:merge"
"""Tag of the key `<<`."""
MAX_DIGITS = 308
"""Digits of a whole number: a float holds no more."""


def parse_json(text: str, max_bytes: int = MAX_BYTES, finite: bool = True) -> Any:
    """Return the content of a JSON text. Raises ValueError, with a phrase on what is wrong.

    Without `finite`, NaN and infinity pass: the caller names the entry that has them.
    """
    _check_size(text, max_bytes)
    constant, number = (_not_finite, _finite) if finite else (None, None)
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=constant, parse_float=number, parse_int=_whole
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_finite_number(value: object) -> bool:
    """Return whether a parsed value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text. Raises ValueError, with a phrase on what is wrong."""
    _check_size(text)
    try:
        _check_depth(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            loader.check_unique(node, set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (RecursionError, OverflowError, TypeError, AttributeError, LookupError) as error:  # of PyYAML's constructors
        raise ValueError(f"a value can't be read ({error})") from error


class _Loader(yaml.CSafeLoader):
    """PyYAML's safe loader, with unique keys and finite numbers."""

    def check_unique(self, node: yaml.Node, checked: set[int]) -> None:
        """Raise ValueError for a key that stands twice in a mapping, or again in other words (1 and 0x1).

        Before construction: PyYAML adds merged keys (`<<`) to the nodes then, and a key may replace a merged one.
        """
        if not isinstance(node, yaml.CollectionNode) or id(node) in checked:
            return
        checked.add(id(node))
        seen: dict[Any, str] = {}
        for child in node.value:
            for each in child if isinstance(child, tuple) else (child,):
                self.check_unique(each, checked)
            if isinstance(child, tuple) and isinstance(key := child[0], yaml.ScalarNode) and key.tag != MERGE:
                name = self.construct_object(key)
                if name in seen:
                    otherwise = "" if seen[name] == key.value else ", spelled otherwise"
                    line = key.start_mark.line + 1
                    raise ValueError(f"the key {key.value!r} stands twice{otherwise}, again in line {line}")
                seen[name] = key.value

    def construct_yaml_float(self, node: Any) -> float:
        """Return a finite number."""
        value = float(super().construct_yaml_float(node))
        if not math.isfinite(value):
            raise ValueError(f"{node.value} in line {node.start_mark.line + 1} is no finite number")
        return value

    def construct_yaml_int(self, node: Any) -> int:
        """Return a whole number of a length that a float can hold."""
        _check_digits(node.value)
        return int(super().construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _check_size(text: str, max_bytes: int = MAX_BYTES) -> None:
    if len(text) > max_bytes:
        raise ValueError(f"it has more than {max_bytes // 1_000_000} MB")


def _check_depth(text: str) -> None:
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
        if number > MAX_EVENTS:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")


def _count(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return how many values a node stands for, with aliases unfolded."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise ValueError("an alias stands for what it is part of")
        return found
    known[id(node)] = None
    children = node.value if isinstance(node, yaml.CollectionNode) else ()
    below = (each for child in children for each in (child if isinstance(child, tuple) else (child,)))
    total = 1 + sum(_count(each, known) for each in below)
    if total > MAX_VALUES:
        raise ValueError(f"it stands for more than {MAX_VALUES:,} values, because aliases multiply")
    known[id(node)] = total
    return total


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _not_finite(name: str) -> float:
    raise ValueError(f"{name} is no finite number")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _not_finite(digits[:20])


def _whole(digits: str) -> int:
    _check_digits(digits)
    return int(digits)


def _check_digits(digits: str) -> None:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
