"""No config key that nothing reads, and no code that reads a key that no config has."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

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


def schemas() -> list[type]:
    """The dataclasses that configs are checked against."""
    modules = [importlib.import_module(module.name) for package in (evals, models.methods)
               for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]  # fmt: skip
    found = {
        item
        for module in (schema, measure, *modules)
        for _, item in inspect.getmembers(module, dataclasses.is_dataclass)
        if isinstance(item, type) and item.__module__.split(".")[0] in ("reproduce", "models", "evals")
    }
    return sorted(found, key=lambda item: f"{item.__module__}.{item.__qualname__}")


@pytest.mark.parametrize("section", schemas(), ids=lambda item: f"{item.__module__}.{item.__qualname__}")
def test_every_key_of_a_schema_is_read(section: type) -> None:
    read = "\n".join(CODE.values()) + "\n".join(CONFIGS.values())
    for field in dataclasses.fields(section):
        assert re.search(rf"(\.{field.name}\b|[\"']{field.name}[\"'])", read), field.name


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
