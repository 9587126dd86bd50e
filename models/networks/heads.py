"""What stands on a trunk while it is pretrained: the projection head and the prototypes (A.1)."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.resnet import BLOCKS_R50, ResNet


class PrototypeSets(nn.Module):
    """Several sets of prototypes side by side (D); names as in the released weights."""

    def __init__(self, embedding_dim: int, sizes: Sequence[int]) -> None:
        super().__init__()
        for number, size in enumerate(sizes):
            self.add_module(f"prototypes{number}", nn.Linear(embedding_dim, size, bias=False))

    @property
    def weight(self) -> Tensor:
        """All prototypes `(sum of sizes, embedding)`, set below set."""
        return torch.cat(list(self.parameters()))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores `(N, sum of sizes)`."""
        return F.linear(embeddings, self.weight)


class MultiCropNet(ResNet):
    """A trunk with a projection head and, where a method has them, prototypes; names as in the released weights.

    `forward` maps crops, a list of `(B, 3, S_v, S_v)`, to embeddings `(num_crops * B, embedding)` of unit length,
    ordered crop by crop, and to their scores `(num_crops * B, num_prototypes)` (None without prototypes). Where
    `num_prototypes` gives several sets, their scores stand side by side. Without `head_hidden_dim` the head is one
    layer.
    Neighbouring crops of one size pass the trunk together, so its BatchNorm sees them together; the head sees all.
    """

    def __init__(
        self,
        width: float,
        head_hidden_dim: int | None,
        embedding_dim: int,
        num_prototypes: int | Sequence[int] = 0,
        head_batchnorm: bool = True,
        blocks: Sequence[int] = BLOCKS_R50,
    ) -> None:
        super().__init__(width, blocks)
        hidden: list[nn.Module] = []
        if head_hidden_dim is not None:
            norm = nn.BatchNorm1d(head_hidden_dim) if head_batchnorm else nn.Identity()
            hidden = [nn.Linear(self.num_features, head_hidden_dim), norm, nn.ReLU(inplace=True)]
        self.projection_head = nn.Sequential(*hidden, nn.Linear(head_hidden_dim or self.num_features, embedding_dim))
        self.prototypes: nn.Linear | PrototypeSets | None = None
        if isinstance(num_prototypes, Sequence):
            self.prototypes = PrototypeSets(embedding_dim, num_prototypes)
        elif num_prototypes:
            self.prototypes = nn.Linear(embedding_dim, num_prototypes, bias=False)

    def forward(self, crops: list[Tensor]) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """Unit embeddings and scores of all crops; see the class."""
        features = torch.cat([super(MultiCropNet, self).forward(torch.cat(group)) for group in _by_size(crops)])
        embeddings = F.normalize(self.projection_head(features), dim=1)
        return embeddings, self.prototypes(embeddings) if self.prototypes is not None else None


def _by_size(crops: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of neighbouring crops with the same size."""
    group: list[Tensor] = []
    for crop in crops:
        if group and group[-1].shape[-1] != crop.shape[-1]:
            yield group
            group = []
        group.append(crop)
    yield group
