"""The methods, by the name that a config gives them (`method.name`)."""

from collections.abc import Callable, Mapping
from typing import Any

from models.deepcluster import DeepCluster, DeepClusterConfig
from models.heads import MultiCropNet
from models.sela import Sela, SelaConfig
from models.simclr import Simclr, SimclrConfig
from models.swav import Swav, SwavConfig
from reproduce.config import typed
from reproduce.engine.loop import Method
from reproduce.errors import UserError, nearest

Build = Callable[[Any, MultiCropNet, int, int], Method]
"""From a method's config, its network, the number of pictures and the global batch size to the method."""

METHODS: dict[str, tuple[type[Any], Build]] = {
    "deepcluster_v2": (DeepClusterConfig, DeepCluster),
    "sela_v2": (SelaConfig, Sela),
    "simclr": (SimclrConfig, Simclr),
    "swav": (SwavConfig, Swav),
}


def find(section: Mapping[str, Any]) -> tuple[Any, Build]:
    """The checked config of a `method` section, and what builds the method; `UserError` where there is no such."""
    if section["name"] not in METHODS:
        raise UserError(f"there is no method.name {section['name']!r}: {nearest(section['name'], list(METHODS))}")
    schema, build = METHODS[section["name"]]
    return typed(section, schema, "method"), build
