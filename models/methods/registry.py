"""The pretraining methods by `method.name` of a config."""

from collections.abc import Callable, Mapping
from typing import Any

from models.methods.base import Method
from models.methods.bownet import Bownet, BownetConfig, BownetNet
from models.methods.cmc import Cmc, CmcConfig, CmcNet
from models.methods.deepcluster import DeepCluster, DeepClusterConfig
from models.methods.local_aggregation import LocalAggregation, LocalAggregationConfig
from models.methods.moco import Moco, MocoConfig
from models.methods.npid import Npid, NpidConfig
from models.methods.pcl import Pcl, PclConfig
from models.methods.pirl import Pirl, PirlConfig, PirlNet
from models.methods.rotnet import NUM_ROTATIONS, Rotnet, RotnetConfig
from models.methods.sela import Sela, SelaConfig
from models.methods.simclr import Simclr, SimclrConfig
from models.methods.supervised import ClassifierNet, Supervised, SupervisedConfig
from models.methods.swav import Swav, SwavConfig
from models.networks.heads import MultiCropNet
from models.networks.resnet import blocks_of_depth, require_stem
from reproduce.config.schema import Network
from reproduce.config.validate import to_dataclass
from reproduce.errors import UserError, did_you_mean

BuildMethod = Callable[[Any, Any, int, int], Method]
"""Build a method from its config, its network, the number of images and the global batch size."""

METHODS: dict[str, tuple[type[Any], BuildMethod]] = {
    "bownet": (BownetConfig, Bownet),
    "cmc": (CmcConfig, Cmc),
    "deepcluster_v2": (DeepClusterConfig, DeepCluster),
    "local_aggregation": (LocalAggregationConfig, LocalAggregation),
    "moco": (MocoConfig, Moco),
    "npid": (NpidConfig, Npid),
    "pcl": (PclConfig, Pcl),
    "pirl": (PirlConfig, Pirl),
    "rotnet": (RotnetConfig, Rotnet),
    "sela_v2": (SelaConfig, Sela),
    "simclr": (SimclrConfig, Simclr),
    "supervised": (SupervisedConfig, Supervised),
    "swav": (SwavConfig, Swav),
}


def build_network(sizes: Network, config: Any, num_classes: int) -> MultiCropNet | ClassifierNet | CmcNet:
    """Build the network that a method trains, with random initial weights.

    `config` is the method's config from `parse_config`; None builds a network without prototypes (method `none`).
    Raises `UserError` for a network that no method trains.
    """
    blocks, stem = blocks_of_depth(sizes.depth), require_stem(sizes.stem)
    if isinstance(config, CmcConfig):
        return CmcNet(sizes.width, sizes.embedding_dim, blocks, stem)
    if sizes.architecture:
        raise UserError(
            f"network.architecture={sizes.architecture} is not trained here: its parameters are counted "
            "(measurement=parameters); leave it out to train a ResNet"
        )
    if isinstance(config, SupervisedConfig):
        return ClassifierNet(sizes.width, num_classes, blocks, stem)
    if isinstance(config, BownetConfig):
        return BownetNet(sizes.width, config.num_words, blocks, stem)
    if isinstance(config, RotnetConfig):
        return ClassifierNet(sizes.width, NUM_ROTATIONS, blocks, stem)
    if isinstance(config, PirlConfig):
        return PirlNet(sizes.width, sizes.embedding_dim, config.num_patches, blocks, stem)
    num_prototypes = config.network_prototypes if config else 0
    return MultiCropNet(
        sizes.width, sizes.head_hidden_dim, sizes.embedding_dim, num_prototypes, sizes.head_batchnorm, blocks, stem
    )


def parse_config(section: Mapping[str, Any]) -> tuple[Any, BuildMethod]:
    """Return the typed config of a `method` section, and the method's constructor.

    Raises `UserError` if the method or one of the keys is unknown.
    """
    if section["name"] not in METHODS:
        hint = did_you_mean(section["name"], list(METHODS))
        raise UserError(f"method.name {section['name']!r} is not in models/methods/registry.py: {hint}")
    schema, build = METHODS[section["name"]]
    return to_dataclass(section, schema, "method"), build
