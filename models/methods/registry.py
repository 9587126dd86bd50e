"""The pretraining methods by `method.name` of a config."""

from collections.abc import Mapping
from typing import Any

from models.methods.base import Method
from models.methods.bownet import Bownet, BownetConfig
from models.methods.cmc import Cmc, CmcConfig
from models.methods.deepcluster import DeepCluster, DeepClusterConfig
from models.methods.local_aggregation import LocalAggregation, LocalAggregationConfig
from models.methods.moco import Moco, MocoConfig
from models.methods.npid import Npid, NpidConfig
from models.methods.pcl import Pcl, PclConfig
from models.methods.pirl import Pirl, PirlConfig
from models.methods.rotnet import Rotnet, RotnetConfig
from models.methods.sela import Sela, SelaConfig
from models.methods.simclr import Simclr, SimclrConfig
from models.methods.supervised import Supervised, SupervisedConfig
from models.methods.swav import Swav, SwavConfig
from models.networks.trunk import Trunk
from reproduce.config.schema import Network
from reproduce.config.validate import to_dataclass
from reproduce.errors import UserError, did_you_mean

METHODS: dict[str, tuple[type[Any], type[Method]]] = {
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


def build_network(sizes: Network, config: Any, num_classes: int) -> Trunk:
    """Build the network that a method trains, with random initial weights.

    `config` is the method's config from `parse_config`; None builds a network without prototypes (method `none`).
    Raises `UserError` for a network that no method trains.
    """
    method = METHODS[config.name][1] if config else Method
    if sizes.architecture not in (None, method.architecture):
        raise UserError(
            f"network.architecture={sizes.architecture} is not trained here: its parameters are counted "
            "(measurement=parameters); leave it out to train a ResNet"
        )
    return method.build_network(sizes, config, num_classes)


def parse_config(section: Mapping[str, Any]) -> tuple[Any, type[Method]]:
    """Return the typed config of a `method` section, and the method's class.

    Raises `UserError` if the method or one of the keys is unknown.
    """
    if section["name"] not in METHODS:
        hint = did_you_mean(section["name"], list(METHODS))
        raise UserError(f"method.name {section['name']!r} is not in models/methods/registry.py: {hint}")
    schema, method = METHODS[section["name"]]
    return to_dataclass(section, schema, "method"), method
