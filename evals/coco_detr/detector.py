"""DETR: a trunk, a transformer over its last feature map, and a set of queries that each become one box or none.

Names of weights are those of the original's public checkpoints, but for the trunk's, which are ours.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from models.networks.resnet import ResNet

POSITION_TEMPERATURE = 10_000
POSITION_EPSILON = 1e-6
"""Keeps a coordinate's division by its axis' length finite where padding leaves no pixel."""
BOX_LAYERS = 3


@dataclass
class Size:
    """How big the transformer is. `num_layers` are of the encoder, and as many of the decoder."""

    num_layers: int
    hidden_dim: int
    num_heads: int
    feedforward_dim: int
    num_queries: int
    dropout: float


class Backbone(nn.Module):
    """A trunk up to its last feature map; BatchNorm is a fixed scale and shift, stem and layer1 do not train."""

    def __init__(self, trunk: ResNet) -> None:
        super().__init__()
        freeze_batchnorm(trunk)
        self.trunk, self.num_channels = trunk, trunk.num_features
        for part in (trunk.conv1, trunk.layer1):
            part.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """The map `(N, C, H / 32, W / 32)` of images `(N, 3, H, W)`, sizes rounded up."""
        trunk = self.trunk
        x = trunk.layer1(trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images)))))
        return trunk.layer4(trunk.layer3(trunk.layer2(x)))


def freeze_batchnorm(module: nn.Module) -> None:
    """Put in place of every BatchNorm below `module` one that applies its running statistics and never changes."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen.to(child.weight))
        else:
            freeze_batchnorm(child)


def sine_positions(padding: Tensor, channels: int) -> Tensor:
    """The code `(N, channels, H, W)` of each place of maps with `padding (N, H, W)`: half of it of y, half of x.

    Places count from 1 among those that are no padding, as shares of their number times 2 pi; channel 2i of a half is
    the sine of that over 10000^(4i / channels), channel 2i + 1 its cosine.
    """
    half = channels // 2
    rates = POSITION_TEMPERATURE ** (2 * (torch.arange(half, device=padding.device) // 2) / half)
    codes = []
    for axis in (1, 2):
        place = (~padding).cumsum(axis, dtype=rates.dtype)
        place = place / (place.narrow(axis, -1, 1) + POSITION_EPSILON) * 2 * math.pi
        angle = place.unsqueeze(-1) / rates
        codes.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2))
    return torch.cat(codes, dim=-1).permute(0, 3, 1, 2)


class _Layer(nn.Module):
    """What both kinds of layers share: attention and a feed-forward net, each added and then normalised (post-norm)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(size.hidden_dim, size.num_heads, size.dropout, batch_first=True)
        self.linear1, self.linear2 = (
            nn.Linear(size.hidden_dim, size.feedforward_dim),
            nn.Linear(size.feedforward_dim, size.hidden_dim),
        )
        self.norm1, self.norm2 = nn.LayerNorm(size.hidden_dim), nn.LayerNorm(size.hidden_dim)
        self.dropout = nn.Dropout(size.dropout)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x)))))


class EncoderLayer(_Layer):
    """Self-attention among the places of the map."""

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        """`x` and `positions (N, L, C)`, `padding (N, L)` -> `(N, L, C)`; positions go into queries and keys only."""
        placed = x + positions
        attended, _ = self.self_attn(placed, placed, x, key_padding_mask=padding, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        return self.norm2(x + self._feed_forward(x))


class DecoderLayer(_Layer):
    """Self-attention among the queries, then attention to the places of the map."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.multihead_attn = nn.MultiheadAttention(size.hidden_dim, size.num_heads, size.dropout, batch_first=True)
        self.norm3 = nn.LayerNorm(size.hidden_dim)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, placed: Tensor, padding: Tensor) -> Tensor:
        """`x` and `queries (N, Q, C)`; `memory`, the encoder's output, and `placed`, it with positions `(N, L, C)`."""
        asking = x + queries
        attended, _ = self.self_attn(asking, asking, x, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        seen, _ = self.multihead_attn(x + queries, placed, memory, key_padding_mask=padding, need_weights=False)
        x = self.norm2(x + self.dropout(seen))
        return self.norm3(x + self._feed_forward(x))


class _Encoder(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(size) for _ in range(size.num_layers))


class _Decoder(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(size) for _ in range(size.num_layers))
        self.norm = nn.LayerNorm(size.hidden_dim)


class Transformer(nn.Module):
    """Encoder and decoder; matrices start from Xavier's uniform distribution."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.encoder, self.decoder = _Encoder(size), _Decoder(size)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, memory: Tensor, positions: Tensor, padding: Tensor, queries: Tensor) -> Tensor:
        """What each decoder layer makes of the queries, normalised: `(layers, N, Q, C)`.

        `memory` and `positions (N, L, C)`, `padding (N, L)` True where there is no picture, `queries (Q, C)`.
        """
        for layer in self.encoder.layers:
            memory = layer(memory, positions, padding)
        placed, asking = memory + positions, queries.expand(len(memory), -1, -1)
        x, out = torch.zeros_like(asking), []
        for layer in self.decoder.layers:
            x = layer(x, asking, memory, placed, padding)
            out.append(self.decoder.norm(x))
        return torch.stack(out)


class BoxHead(nn.Module):
    """Three linear layers to a box's four numbers, before the sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels] * BOX_LAYERS
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, [*widths[1:], 4], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., C)` -> `(..., 4)`."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Detr(nn.Module):
    """The detector. Classes are numbered 0 to `num_classes - 1`; one more logit says that there is no object."""

    def __init__(self, trunk: ResNet, size: Size, num_classes: int) -> None:
        super().__init__()
        self.backbone = Backbone(trunk)
        self.input_proj = nn.Conv2d(self.backbone.num_channels, size.hidden_dim, kernel_size=1)
        self.transformer = Transformer(size)
        self.query_embed = nn.Embedding(size.num_queries, size.hidden_dim)
        self.class_embed = nn.Linear(size.hidden_dim, num_classes + 1)
        self.bbox_embed = BoxHead(size.hidden_dim)

    def forward(self, images: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Of images `(N, 3, H, W)` padded where `padding (N, H, W)` is True, by decoder layer, the last one last:
        logits `(layers, N, Q, num_classes + 1)`, and boxes `(layers, N, Q, 4)` as shares of the padless picture,
        centre x, centre y, width, height.
        """
        x = self.backbone(images)
        # A place of the map is padding where the pixel at its corner is: nearest neighbour, as the original has it.
        padding = F.interpolate(padding[:, None].float(), x.shape[-2:]).squeeze(1).bool()
        x = self.input_proj(x)
        positions = sine_positions(padding, x.shape[1]).to(x.dtype)
        rows = [tensor.flatten(2).transpose(1, 2) for tensor in (x, positions)]
        out = self.transformer(*rows, padding.flatten(1), self.query_embed.weight)
        return self.class_embed(out), self.bbox_embed(out).sigmoid()
