"""The network of pretraining: a trunk with projection head and prototypes (A.1)."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.resnet import BLOCKS_R50, STEM_R50, ResNet


class MultiPrototypes(nn.Module):
    """Several heads of prototypes, as DeepCluster-v2 and SeLa-v2 use (D). Tensor names as in the released weights."""

    def __init__(self, embedding_dim: int, sizes: Sequence[int]) -> None:
        super().__init__()
        for number, size in enumerate(sizes):
            self.add_module(f"prototypes{number}", nn.Linear(embedding_dim, size, bias=False))

    @property
    def weight(self) -> Tensor:
        """The prototypes of all heads, concatenated: `(sum(sizes), embedding_dim)`."""
        return torch.cat(list(self.parameters()))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the scores `(N, sum(sizes))` of embeddings `(N, embedding_dim)`, head by head."""
        return F.linear(embeddings, self.weight)


def build_projection_head(
    num_features: int, hidden_dim: int | None, embedding_dim: int, batchnorm: bool = True
) -> nn.Sequential:
    """Build a head from features `(N, num_features)` to embeddings `(N, embedding_dim)`, which are not normalized.

    It has one hidden layer, with BatchNorm or without, or none if `hidden_dim` is None.
    """
    hidden: list[nn.Module] = []
    if hidden_dim is not None:
        norm = nn.BatchNorm1d(hidden_dim) if batchnorm else nn.Identity()
        hidden = [nn.Linear(num_features, hidden_dim), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*hidden, nn.Linear(hidden_dim or num_features, embedding_dim))


class MultiCropNet(ResNet):
    """A trunk with a projection head and, if the method has them, prototypes. Tensor names as in the released weights.

    `forward` maps crops, a list of `(B, 3, S_v, S_v)`, to embeddings `(num_crops * B, embedding_dim)` of unit length,
    crop by crop, and scores `(num_crops * B, num_prototypes)`, or None without prototypes. If `num_prototypes` is a
    sequence, there is one head of prototypes per number, and the scores are concatenated along the last dimension.
    `head_hidden_dim` None makes the projection head a single linear layer.

    Consecutive crops of one size pass the trunk as one batch, as in the released code, so its BatchNorm sees them
    together; the head sees all crops as one batch.
    """

    def __init__(
        self,
        width: float,
        head_hidden_dim: int | None,
        embedding_dim: int,
        num_prototypes: int | Sequence[int] = 0,
        head_batchnorm: bool = True,
        blocks: Sequence[int] = BLOCKS_R50,
        stem: str = STEM_R50,
    ) -> None:
        super().__init__(width, blocks, stem=stem)
        self.projection_head = build_projection_head(self.num_features, head_hidden_dim, embedding_dim, head_batchnorm)
        self.prototypes: nn.Linear | MultiPrototypes | None = None
        if isinstance(num_prototypes, Sequence):
            self.prototypes = MultiPrototypes(embedding_dim, num_prototypes)
        elif num_prototypes:
            self.prototypes = nn.Linear(embedding_dim, num_prototypes, bias=False)

    def forward(self, crops: list[Tensor]) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """Return unit embeddings and scores of all crops (shapes: see the class)."""
        features = torch.cat([self.pooled_features(torch.cat(group)) for group in _by_size(crops)])
        embeddings = F.normalize(self.projection_head(features), dim=1)
        return embeddings, self.prototypes(embeddings) if self.prototypes is not None else None


def _by_size(crops: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield runs of consecutive crops of equal size."""
    group: list[Tensor] = []
    for crop in crops:
        if group and group[-1].shape[-1] != crop.shape[-1]:
            yield group
            group = []
        group.append(crop)
    yield group
