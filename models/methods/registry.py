"""The methods, by the name that a config gives them (`method.name`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.methods.base import Method
from models.methods.deepcluster import DeepCluster, DeepClusterConfig
from models.methods.moco import Moco, MocoConfig
from models.methods.sela import Sela, SelaConfig
from models.methods.simclr import Simclr, SimclrConfig
from models.methods.supervised import ClassifierNet, Supervised, SupervisedConfig
from models.methods.swav import Swav, SwavConfig
from models.networks.heads import MultiCropNet
from models.networks.resnet import BLOCKS_R50
from reproduce.config.schema import Network
from reproduce.config.validate import to_dataclass
from reproduce.errors import UserError, did_you_mean

Build = Callable[[Any, Any, int, int], Method]
"""From a method's config, its network, the number of pictures and the global batch size to the method."""

METHODS: dict[str, tuple[type[Any], Build]] = {
    "deepcluster_v2": (DeepClusterConfig, DeepCluster),
    "moco": (MocoConfig, Moco),
    "sela_v2": (SelaConfig, Sela),
    "simclr": (SimclrConfig, Simclr),
    "supervised": (SupervisedConfig, Supervised),
    "swav": (SwavConfig, Swav),
}


def network(
    sizes: Network, config: Any, num_classes: int, blocks: Sequence[int] = BLOCKS_R50
) -> MultiCropNet | ClassifierNet:
    """What a method trains, from its checked config (None: nothing is trained), at random initial weights."""
    if isinstance(config, SupervisedConfig):
        return ClassifierNet(sizes.width, num_classes, blocks)
    num_prototypes = config.prototypes if config else 0
    return MultiCropNet(
        sizes.width, sizes.head_hidden_dim, sizes.embedding_dim, num_prototypes, sizes.head_batchnorm, blocks=blocks
    )


def find(section: Mapping[str, Any]) -> tuple[Any, Build]:
    """The checked config of a `method` section, and what builds the method; `UserError` where there is no such."""
    if section["name"] not in METHODS:
        raise UserError(f"there is no method.name {section['name']!r}: {did_you_mean(section['name'], list(METHODS))}")
    schema, build = METHODS[section["name"]]
    return to_dataclass(section, schema, "method"), build
