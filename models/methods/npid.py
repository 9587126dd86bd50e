"""NPID and NPID++: tell each image from all others by a memory bank of embeddings (Wu et al. 2018, section 3).

NPID++ is NPID with more negatives, trained longer (Misra and van der Maaten 2020): the methods differ in configs only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.methods.base import CropsNeeded, Method
from models.methods.diagnostics import embedding_spread, unit_length_error
from models.methods.memory_bank import InstanceBank, log_normalizer, nce_loss, nce_uniform_loss, require_negatives
from models.networks.heads import MultiCropNet
from reproduce.data.pipeline.upload import upload


@dataclass
class NpidConfig:
    """conf/method/npid.yaml and npid_pp.yaml."""

    name: str
    num_negatives: int
    temperature: float
    bank_momentum: float
    """Share of the old embedding in the bank's next one."""


class Npid(Method):
    """NPID as a method of the training loop; a crop per image is enough, compared with the bank."""

    crops_needed = CropsNeeded("npid")
    plateau_grace_epochs = 1
    """The first epoch's positives are the bank's random rows, so there is nothing to learn from."""
    collapse_hints = "more method.num_negatives, a method.bank_momentum nearer to 1"

    def __init__(self, config: NpidConfig, net: MultiCropNet, num_images: int, _batch_size: int) -> None:
        require_negatives(config.num_negatives)
        self.config, self.num_images = config, num_images
        self.uniform_loss = nce_uniform_loss(config.num_negatives)
        weight = list(net.projection_head.parameters())[-1]
        self.bank = InstanceBank(num_images, len(weight), config.bank_momentum, weight)
        self.log_z = torch.zeros((), device=self.bank.rows.device, dtype=self.bank.rows.dtype)
        """Logarithm of the normalizer Z, which the first batch sets once and for all (section 3.2)."""

    def loss(self, embeddings: Tensor, _scores: None, num_crops: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of this rank's images, and metrics; the first crop's embeddings go to the bank."""
        logits = [self.logits(crop, step, number) for number, crop in enumerate(embeddings.chunk(num_crops))]
        if step == 0:
            self.log_z = log_normalizer(logits[-1], self.num_images)
        losses = torch.stack([nce_loss(each, self.log_z, self.num_images) for each in logits])
        images = upload(self.sampler.indices_at(step), embeddings.device)
        own = embeddings[: len(images)]
        self.bank.update(images, own)
        return self.combine(losses), {
            "embedding_spread": embedding_spread(own),
            "unit_length_error": unit_length_error(embeddings.detach(), self.bank.rows[images]),
        }

    def logits(self, embeddings: Tensor, step: int, number: int) -> Tensor:
        """Return what tells each image of crop `number` `(B, D)` from noise drawn for it: `(B, 1 + num_negatives)`."""
        seed, images = (self.sampler.seed, step, number), self.sampler.indices_at(step)
        candidates = self.bank.draw(seed, images, self.config.num_negatives)
        return self.bank.cosines(embeddings, candidates) / self.config.temperature

    def combine(self, losses: Tensor) -> Tensor:
        """Return the loss of an image, given those of its crops `(num_crops,)`."""
        return losses.mean()

    def state_dict(self) -> dict[str, Any]:
        """Return the bank and its normalizer; equal on all ranks."""
        return {"bank": self.bank.rows, "log_z": self.log_z}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, saved by any number of processes."""
        self.bank.rows.copy_(state["bank"])
        self.log_z.copy_(state["log_z"])
