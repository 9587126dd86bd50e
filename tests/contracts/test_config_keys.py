"""No config key that nothing reads, and no code that reads a key that no config has."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from omegaconf import OmegaConf

import evals
import models.methods
from reproduce import measure
from reproduce.config import schema
from reproduce.config.compose import compose, group_options
from reproduce.system import CONF_DIR

REPO_ROOT = CONF_DIR.parents[1]
CODE = {
    path: path.read_text()
    for folder in ("reproduce", "models", "evals")
    for path in (REPO_ROOT / folder).rglob("*")
    if path.suffix == ".py" or path.name == "Snakefile"
}
CONFIGS = {path: path.read_text() for path in CONF_DIR.rglob("*.yaml")}
READ_BY_CODE = {"name"}
"""Keys of a scale that code reads; the others are for the other configs."""


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    if not OmegaConf.is_dict(node) or not node:
        yield prefix
        return
    for key in node:
        yield from leaves(node._get_node(key), f"{prefix}.{key}" if prefix else str(key))


@pytest.mark.parametrize("scale", group_options("scale"))
def test_every_key_of_a_scale_is_used(scale: str) -> None:
    used = {found for text in CONFIGS.values() for found in re.findall(r"\$\{scale\.([\w.]+)\}", text)}
    keys = set(leaves(OmegaConf.load(CONF_DIR / "scale" / f"{scale}.yaml").scale)) - READ_BY_CODE
    unused = {key for key in keys if not any(key == each or key.startswith(f"{each}.") for each in used)}
    assert not unused


def test_scales_have_the_same_keys() -> None:
    one, *others = (set(OmegaConf.load(CONF_DIR / "scale" / f"{scale}.yaml").scale) for scale in group_options("scale"))
    assert all(other == one for other in others)


@cache
def schemas() -> list[type]:
    """The dataclasses that configs are checked against."""
    modules = [importlib.import_module(module.name) for package in (evals, models.methods)
               for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]  # fmt: skip
    found = {
        item
        for module in (schema, measure, *modules)
        for _, item in inspect.getmembers(module, dataclasses.is_dataclass)
        if isinstance(item, type)
        and item.__module__.startswith((schema.__name__, measure.__name__, "models.", "evals."))
    }
    return sorted(found, key=lambda item: f"{item.__module__}.{item.__qualname__}")


def sections() -> dict[type, set[str]]:
    """The names under which configs have each dataclass: `Collapse` is `collapse`, a whole config is `cfg`."""
    found = {item: {"cfg"} for item in schema.SCHEMAS.values()}
    of_packages = {"models": "method", "evals": "protocol", measure.__name__: "measurement"}
    for item in schemas():
        package = item.__module__ if item.__module__ in of_packages else item.__module__.split(".")[0]
        if package in of_packages:
            found[item] = {of_packages[package]}
    for item in (*schema.SCHEMAS.values(), *schemas()):
        hints = get_type_hints(item)
        for field in dataclasses.fields(item):
            for part in (hints[field.name], *get_args(hints[field.name])):
                if dataclasses.is_dataclass(part) and isinstance(part, type):
                    found.setdefault(part, set()).add(field.name)
    return found


SECTIONS = sections()
DEFINITIONS = Path(schema.__file__)
"""Where keys are defined, and described by each other's names; nothing reads them there."""


def is_read(key: str, section: type) -> bool:
    """Whether a file has `section.key` or `section["key"]`, or takes a section over and has `.key` or `"key"`.

    It takes one over by the name of its class (or of one that has all of its keys), or by `["section"]`.
    """
    names = "|".join(SECTIONS.get(section, {section.__name__}))
    family = "|".join(each.__name__ for each in schemas() if issubclass(section, each) or issubclass(each, section))
    file = rf"|\.get\([\"']{key}[\"']" if section in schema.SCHEMAS.values() else ""  # of a YAML file's content
    beside = re.compile(rf"\b({names})(\.{key}\b|\[[\"']{key}[\"']\]){file}")
    of_class, of_dictionary = re.compile(rf"\b({family})\b"), re.compile(rf"\[[\"']({names})[\"']\]")
    attribute, item = re.compile(rf"\.{key}\b"), re.compile(rf"[\"']{key}[\"']")
    return any(
        beside.search(text)
        or (of_class.search(text) and attribute.search(text))
        or (of_dictionary.search(text) and item.search(text))
        for path, text in {**CODE, **CONFIGS}.items()
        if key in text and path != DEFINITIONS
    )


@pytest.mark.parametrize("section", schemas(), ids=lambda item: f"{item.__module__}.{item.__qualname__}")
def test_every_key_of_a_schema_is_read(section: type) -> None:
    assert [field.name for field in dataclasses.fields(section) if not is_read(field.name, section)] == []


def test_a_key_that_another_section_has_is_not_read_by_that() -> None:
    assert is_read("width", schema.Network) and not is_read("width", schema.Collapse)
    assert is_read("memory_gb", schema.Kubernetes) and not is_read("memory_gb", schema.Logging)


def test_code_reads_existing_keys() -> None:
    known = {
        key
        for cfg in (
            compose("pretrain", ["experiment=swav_800ep"]),
            compose("evaluate", ["eval=knn", "checkpoint=x"]),
            compose("measure", ["experiment=swav_800ep", "measurement=cost", "name=x"]),
        )
        for leaf in leaves(cfg)
        for key in (leaf, *(leaf.rsplit(".", depth)[0] for depth in range(1, leaf.count(".") + 1)))
    }
    asked = {
        (path.name, key) for path, text in CODE.items() for key in re.findall(r"\bcfg\.([a-z][\w.]*\w)\b(?!\()", text)
    }
    methods = {"copy", "update", "get"}
    unknown = {(name, key) for name, key in asked if key not in known and key not in methods}
    assert not unknown
