"""The size of a run, read from its config; `cost` estimates hours and disk from it."""

import itertools
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from models.zoo import entries

# Facts about methods, which a plan can't build: tests/contracts/test_workloads.py holds them against what is built.
BANKS = {"npid": 1, "pirl": 1, "local_aggregation": 1, "cmc": 2}
"""Memory banks of the methods that have no key for their number."""
NETWORKS = {"cmc": 2}
"""Trunks of the methods that train more than one."""
NUM_ROTATIONS = 4
"""The times that RotNet passes each crop through the network."""
KEY_ENCODERS = ("moco", "pcl")


@dataclass(frozen=True)
class Workload:
    """How much a run has to do. `width` is 0 for an evaluation of our own pretraining, which has the width."""

    method: str
    """The method of a pretraining, the protocol of an evaluation, or the name of a measurement."""
    epochs: float
    batch_size: int
    crops: str
    pixels: int
    """The number of pixels that a trunk gets of one image, over all its crops and their rotations."""
    dataset: dict[str, str]
    """The config's `dataset`; empty for a run that reads no images."""
    width: float = 0.0
    head_weights: int = 0
    """The number of weights of the projection head and the prototypes."""
    queue_values: int = 0
    """The number of values in the queues of both large crops, or in MoCo's of keys."""
    values_per_image: int = 0
    """The number of values that a method keeps of each image: rows of memory banks, and pseudo-labels."""
    has_key_encoder: bool = False
    """Whether a second network is kept, without momentum of an optimizer."""
    num_networks: int = 1
    """The number of trunks that are trained side by side."""
    label_list: str = ""
    """The file in ImageNet's folder that lists the images with labels; other data sets have none (`evals.finetune`)."""


def workload_of(cfg: DictConfig) -> Workload:
    """Return the workload of a composed config."""
    if cfg.kind == "measure":
        return Workload(cfg.measurement.name, 0, 0, "", 0, {})
    dataset: Any = OmegaConf.to_container(cfg.dataset)
    if cfg.kind == "evaluate":
        protocol = cfg.protocol
        pixels = protocol.center_crop.crop_px**2 if "center_crop" in protocol else 0
        public = str(cfg.checkpoint).startswith(entries.PREFIX)
        width = entries.get_entry(cfg.checkpoint.removeprefix(entries.PREFIX)).width if public else 0.0
        epochs, batch_size = protocol.get("epochs", 1), protocol.get("batch_size", 0)
        label_list = OmegaConf.select(protocol, "subset.file") or ""
        return Workload(protocol.name, epochs, batch_size, "", pixels, dataset, width, label_list=label_list)
    network, method = cfg.network, cfg.method
    keys = method.name in KEY_ENCODERS
    trunk_out = round(2048 * network.width)
    layers = [trunk_out, *([network.head_hidden_dim] if network.head_hidden_dim else []), network.embedding_dim]
    return Workload(
        method=method.name,
        epochs=cfg.epochs,
        batch_size=cfg.batch_size,
        crops=cfg.crops.name,
        pixels=round(sum(view.num * view.size_px**2 for view in cfg.crops.views) * _passes(cfg)),
        dataset=dataset,
        width=network.width,
        head_weights=sum(a * b for a, b in itertools.pairwise(layers))
        + network.embedding_dim * method.get("num_prototypes", 0),
        queue_values=(1 if keys else 2) * network.embedding_dim * method.get("queue_length", 0),
        values_per_image=network.embedding_dim * method.get("num_banks", BANKS.get(method.name, 0))
        + (method.num_heads if "num_banks" in method else 0),
        has_key_encoder=keys,
        num_networks=NETWORKS.get(method.name, 1),
    )


def _passes(cfg: DictConfig) -> float:
    """Return how often a crop is passed through the network, as a mean over the epochs. BoWNet begins as RotNet."""
    if cfg.method.name == "rotnet":
        return NUM_ROTATIONS
    rotation_epochs = min(cfg.method.get("rotation_epochs", 0), cfg.epochs)
    return 1 + (NUM_ROTATIONS - 1) * rotation_epochs / max(cfg.epochs, 1)
