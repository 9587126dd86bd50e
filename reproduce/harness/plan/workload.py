"""What a run's price follows from, read off its config."""

import itertools
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from models.zoo import entries


@dataclass(frozen=True)
class Work:
    """How much a run has to do. An evaluation's trunk is its pretraining's: `width` is 0, but for public weights."""

    method: str
    """Of a pretraining, or the protocol of an evaluation."""
    epochs: float
    batch_size: int
    crops: str
    pixels: int
    """Of all crops of a picture together."""
    dataset: dict[str, str]
    """Empty where no pictures are read."""
    width: float = 0.0
    head_weights: int = 0
    """Of the projection head and the prototypes."""
    queue_numbers: int = 0
    """What the queues of both large crops hold."""


def of(cfg: DictConfig) -> Work:
    """The work of a composed config."""
    if cfg.kind == "measure":
        return Work(cfg.measurement.name, 0, 0, "", 0, {})
    dataset: Any = OmegaConf.to_container(cfg.dataset)
    if cfg.kind == "evaluate":
        protocol = cfg.protocol
        pixels = protocol.center_crop.crop_px**2 if "center_crop" in protocol else 0
        public = str(cfg.checkpoint).startswith(entries.PREFIX)
        width = entries.entry(cfg.checkpoint.removeprefix(entries.PREFIX)).width if public else 0.0
        epochs, batch_size = protocol.get("epochs", 1), protocol.get("batch_size", 0)
        return Work(protocol.name, epochs, batch_size, "", pixels, dataset, width)
    network, method = cfg.network, cfg.method
    trunk_out = round(2048 * network.width)
    layers = [trunk_out, *([network.head_hidden_dim] if network.head_hidden_dim else []), network.embedding_dim]
    return Work(
        method=method.name,
        epochs=cfg.epochs,
        batch_size=cfg.batch_size,
        crops=cfg.crops.name,
        pixels=sum(view.num * view.size_px**2 for view in cfg.crops.views),
        dataset=dataset,
        width=network.width,
        head_weights=sum(a * b for a, b in itertools.pairwise(layers))
        + network.embedding_dim * method.get("num_prototypes", 0),
        queue_numbers=2 * network.embedding_dim * method.get("queue_length", 0),
    )
