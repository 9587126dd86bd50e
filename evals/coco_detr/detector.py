"""DETR: a trunk, a transformer over its last feature map, and queries that each become one box or none.

Weights have the names of the original's public checkpoints, except the trunk's, which have ours.
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
"""Keeps the division by an axis' length finite if an image is all padding."""
BOX_LAYERS = 3


@dataclass
class TransformerConfig:
    """Sizes of the transformer. Encoder and decoder have `num_layers` layers each."""

    num_layers: int
    hidden_dim: int
    num_heads: int
    feedforward_dim: int
    num_queries: int
    dropout: float


class Backbone(nn.Module):
    """A trunk up to its last feature map, with frozen BatchNorm; stem and layer1 do not train."""

    def __init__(self, trunk: ResNet) -> None:
        super().__init__()
        freeze_batchnorm(trunk)
        self.trunk, self.num_channels = trunk, trunk.num_features
        for part in (trunk.conv1, trunk.layer1):
            part.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map `(N, C, H / 32, W / 32)` of images `(N, 3, H, W)`; sizes are rounded up."""
        trunk = self.trunk
        x = trunk.layer1(trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images)))))
        return trunk.layer4(trunk.layer3(trunk.layer2(x)))


class FrozenBatchNorm(FrozenBatchNorm2d):  # type: ignore[misc]
    """BatchNorm by its running statistics, none of which ever changes. The output has the input's dtype.

    torchvision's multiplies by fp32 buffers, so under autocast every activation of the trunk would become fp32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `(N, C, H, W)` per channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(-1, 1, 1).to(x.dtype) + shift.view(-1, 1, 1).to(x.dtype)


def freeze_batchnorm(module: nn.Module) -> None:
    """Replace every BatchNorm below `module` by one that applies its running statistics and never changes."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen.to(child.weight))
        else:
            freeze_batchnorm(child)


def sine_positions(padding: Tensor, channels: int) -> Tensor:
    """Return sine positional encodings `(N, channels, H, W)` of maps with `padding (N, H, W)`: half for y, half for x.

    A position counts from 1 among those that are not padding, and is divided by their number and multiplied by 2 pi.
    Channel 2i of a half is the sine of that over 10000^(4i / channels), channel 2i + 1 its cosine.
    """
    half = channels // 2
    rates = POSITION_TEMPERATURE ** (2 * (torch.arange(half, device=padding.device) // 2) / half)
    codes = []
    for axis in (1, 2):
        place = (~padding).cumsum(axis).to(rates.dtype)  # in integers, whose sum has one result in any order
        place = place / (place.narrow(axis, -1, 1) + POSITION_EPSILON) * 2 * math.pi
        angle = place.unsqueeze(-1) / rates
        codes.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2))
    return torch.cat(codes, dim=-1).permute(0, 3, 1, 2)


class _Layer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and then normalized (post-norm)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(config.hidden_dim, config.num_heads, config.dropout, batch_first=True)
        self.linear1, self.linear2 = (
            nn.Linear(config.hidden_dim, config.feedforward_dim),
            nn.Linear(config.feedforward_dim, config.hidden_dim),
        )
        self.norm1, self.norm2 = nn.LayerNorm(config.hidden_dim), nn.LayerNorm(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x)))))


class EncoderLayer(_Layer):
    """Self-attention among the positions of the map."""

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        """Map `x` and `positions (N, L, C)`, `padding (N, L)` to `(N, L, C)`; positions enter queries and keys only."""
        keys = x + positions
        attended, _ = self.self_attn(keys, keys, x, key_padding_mask=padding, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        return self.norm2(x + self._feed_forward(x))


class DecoderLayer(_Layer):
    """Self-attention among the queries, then cross-attention to the positions of the map."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.multihead_attn = nn.MultiheadAttention(
            config.hidden_dim, config.num_heads, config.dropout, batch_first=True
        )
        self.norm3 = nn.LayerNorm(config.hidden_dim)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, keys: Tensor, padding: Tensor) -> Tensor:
        """Map `x (N, Q, C)` to the same shape.

        `queries (N, Q, C)` are added to `x` before attention. `memory (N, L, C)` is the encoder's output, and `keys`
        the same with positions added.
        """
        self_keys = x + queries
        attended, _ = self.self_attn(self_keys, self_keys, x, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        attended, _ = self.multihead_attn(x + queries, keys, memory, key_padding_mask=padding, need_weights=False)
        x = self.norm2(x + self.dropout(attended))
        return self.norm3(x + self._feed_forward(x))


class _Encoder(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))


class _Decoder(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_dim)


class Transformer(nn.Module):
    """Encoder and decoder; matrices are initialized from Xavier's uniform distribution."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.encoder, self.decoder = _Encoder(config), _Decoder(config)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, memory: Tensor, positions: Tensor, padding: Tensor, queries: Tensor) -> Tensor:
        """Return the normalized output of every decoder layer, `(layers, N, Q, C)`.

        `memory` and `positions (N, L, C)`, `padding (N, L)` True outside the images, `queries (Q, C)`.
        """
        for layer in self.encoder.layers:
            memory = layer(memory, positions, padding)
        keys, queries = memory + positions, queries.expand(len(memory), -1, -1)
        x, outputs = torch.zeros_like(queries), []
        for layer in self.decoder.layers:
            x = layer(x, queries, memory, keys, padding)
            outputs.append(self.decoder.norm(x))
        return torch.stack(outputs)


class BoxHead(nn.Module):
    """Three linear layers that predict a box's four numbers, before the sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels] * BOX_LAYERS
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, [*widths[1:], 4], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., C)` to `(..., 4)`."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Detr(nn.Module):
    """The detector. Classes have indices 0 to `num_classes - 1`; one more logit stands for 'no object'."""

    def __init__(self, trunk: ResNet, config: TransformerConfig, num_classes: int) -> None:
        super().__init__()
        self.backbone = Backbone(trunk)
        self.input_proj = nn.Conv2d(self.backbone.num_channels, config.hidden_dim, kernel_size=1)
        self.transformer = Transformer(config)
        self.query_embed = nn.Embedding(config.num_queries, config.hidden_dim)
        self.class_embed = nn.Linear(config.hidden_dim, num_classes + 1)
        self.bbox_embed = BoxHead(config.hidden_dim)

    def forward(self, images: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Detect in images `(N, 3, H, W)` that are padded where `padding (N, H, W)` is True.

        Return for every decoder layer logits `(layers, N, Q, num_classes + 1)` and boxes (cx, cy, w, h)
        `(layers, N, Q, 4)` as fractions of the image without padding.
        """
        x = self.backbone(images)
        # A position is padding if the pixel at its corner is: nearest neighbor, as in the original.
        padding = F.interpolate(padding[:, None].float(), x.shape[-2:]).squeeze(1).bool()
        x = self.input_proj(x)
        positions = sine_positions(padding, x.shape[1]).to(x.dtype)
        rows = [tensor.flatten(2).transpose(1, 2) for tensor in (x, positions)]
        out = self.transformer(*rows, padding.flatten(1), self.query_embed.weight)
        return self.class_embed(out), self.bbox_embed(out).sigmoid()
