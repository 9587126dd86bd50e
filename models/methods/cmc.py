"""CMC: the lightness of an image and its colors predict each other, among others' (Tian et al. 2020, section 3).

Follows the released code with its noise-contrastive loss: each network has a bank of embeddings, one for each image,
and is compared with the bank of the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.methods.base import CropsNeeded, Method, trunk_layers
from models.methods.diagnostics import embedding_spread, unit_length_error
from models.methods.memory_bank import InstanceBank, log_normalizer, nce_loss, nce_uniform_loss, require_negatives
from models.methods.npid import NpidConfig
from models.networks.cmc import CmcPair
from models.networks.resnet import BLOCKS_R50, STEM_R50
from reproduce.config.schema import Network
from reproduce.data.pipeline.upload import upload

NUM_VIEWS = 2


@dataclass
class CmcConfig(NpidConfig):
    """conf/method/cmc.yaml: the keys of NPID, for two banks."""


class CmcNet(CmcPair):
    """CMC's pair with a linear head for each network.

    `forward` maps one crop of each image, `[(B, 3, S, S)]`, to unit embeddings `(2 * B, embedding_dim)`: those of
    lightness, then those of colors.
    """

    def __init__(
        self, width: float, embedding_dim: int, blocks: Sequence[int] = BLOCKS_R50, stem: str = STEM_R50
    ) -> None:
        super().__init__(width, blocks, stem)
        self.l_head = nn.Linear(self.num_features // NUM_VIEWS, embedding_dim)
        self.ab_head = nn.Linear(self.num_features // NUM_VIEWS, embedding_dim)

    def forward(self, crops: list[Tensor]) -> tuple[Tensor, None]:  # type: ignore[override]
        """Return the embeddings of both views of the only crop (shapes: see the class)."""
        (images,) = crops
        lightness, colors = self.views(images)
        return F.normalize(torch.cat([self.l_head(lightness), self.ab_head(colors)]), dim=1), None


class Cmc(Method):
    """CMC as a method of the training loop."""

    architecture = "cmc"
    crops_needed = CropsNeeded("cmc", max_crops=1)
    plateau_grace_epochs = 1
    """The first epoch's positives are the banks' random rows, so there is nothing to learn from."""
    collapse_hints = "more method.num_negatives, a method.bank_momentum nearer to 1"

    @classmethod
    def build_network(cls, sizes: Network, config: CmcConfig, num_classes: int) -> CmcNet:  # noqa: ARG003
        """Build a `CmcNet`."""
        return CmcNet(sizes.width, sizes.embedding_dim, *trunk_layers(sizes))

    def __init__(self, config: CmcConfig, net: CmcNet, num_images: int, _batch_size: int) -> None:
        require_negatives(config.num_negatives)
        self.config, self.num_images = config, num_images
        self.uniform_loss = NUM_VIEWS * nce_uniform_loss(config.num_negatives)
        bias = net.l_head.bias
        self.banks = [InstanceBank(num_images, len(bias), config.bank_momentum, bias) for _ in range(NUM_VIEWS)]
        self.log_z = torch.zeros(NUM_VIEWS, device=bias.device, dtype=self.banks[0].rows.dtype)
        """Logarithms of each view's normalizer Z, which the first batch sets once and for all."""

    def loss(self, embeddings: Tensor, _scores: None, _num_crops: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of both views' losses over this rank's images, and metrics; then update both banks."""
        indices = self.sampler.indices_at(step)
        candidates = self.banks[0].draw((self.sampler.seed, step), indices, self.config.num_negatives)
        views, others = embeddings.chunk(NUM_VIEWS), self.banks[::-1]
        logits = [
            bank.cosines(view, candidates) / self.config.temperature for view, bank in zip(views, others, strict=True)
        ]
        if step == 0:
            self.log_z = torch.stack([log_normalizer(each, self.num_images) for each in logits])
        losses = [nce_loss(each, log_z, self.num_images) for each, log_z in zip(logits, self.log_z, strict=True)]
        images = upload(indices, embeddings.device)
        for bank, view in zip(self.banks, views, strict=True):
            bank.update(images, view.detach())
        return torch.stack(losses).sum(), {
            "embedding_spread": embedding_spread(views[0].detach()),
            "unit_length_error": unit_length_error(embeddings.detach(), *(bank.rows[images] for bank in self.banks)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return both banks and their normalizers; equal on all ranks."""
        return {"banks": torch.stack([bank.rows for bank in self.banks]), "log_z": self.log_z}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, saved by any number of processes."""
        for bank, rows in zip(self.banks, state["banks"], strict=True):
            bank.rows.copy_(rows)
        self.log_z.copy_(state["log_z"])
