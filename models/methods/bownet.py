"""BoWNet: predict from a perturbed crop which visual words an earlier network sees in the image (Gidaris et al. 2020).

The authors' code was never released; this follows their paper's section 3, and the code of their next one (OBoW) where
the paper is silent. The earlier network is a RotNet, which the first epochs of a run train. Then its local features of
all images are clustered into a vocabulary, and the network starts again from its initial weights.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.methods.base import CropsNeeded, Method, trunk_layers
from models.methods.diagnostics import embedding_spread
from models.methods.kmeans import best_kmeans, nearest_rows
from models.methods.rotnet import NUM_ROTATIONS, four_rotations
from models.methods.supervised import ClassifierNet
from models.networks.resnet import BLOCKS_R50, STEM_R50
from reproduce.config.schema import Network
from reproduce.data.pipeline.upload import upload
from reproduce.engine.distributed.collectives import all_gather, all_reduce_sum
from reproduce.engine.precision import at_least_fp32
from reproduce.errors import UserError


class BownetNet(ClassifierNet):
    """A trunk with a classifier of rotations `fc` and a predictor of words, both on its pooled features.

    `forward` maps crops, a list of `(B, 3, S, S)` of one size, to features `(num_crops * B, num_features)`, crop by
    crop, and logits `(num_crops * B, 4 + num_words)`, those of rotations first. Logits of words are
    `word_scale * cosine * |features|`: the words' weights have unit length, so that frequent words get no larger ones
    (section 3.3).
    """

    def __init__(self, width: float, num_words: int, blocks: Sequence[int] = BLOCKS_R50, stem: str = STEM_R50) -> None:
        super().__init__(width, NUM_ROTATIONS, blocks, stem)
        self.words = nn.Linear(self.num_features, num_words, bias=False)
        self.word_scale = nn.Parameter(torch.ones(()))

    def forward(self, crops: list[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return features and logits of all crops (shapes: see the class)."""
        features = self.pooled_features(torch.cat(crops))
        words = self.word_scale * F.linear(features, F.normalize(self.words.weight, dim=1))
        return features, torch.cat([self.fc(features), words], dim=1)

    def local_features(self, images: Tensor, stage: int) -> Tensor:
        """Return the features `(B, U, C)` of stage 1 to 4 at U places of the images, without those at the border."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4)[:stage]:
            x = layer(x)
        return x[:, :, 1:-1, 1:-1].flatten(2).transpose(1, 2)


def bag_of_words(words: Tensor, num_words: int) -> Tensor:
    """Return the share `(B, num_words)` of each word among those of an image, given its words `(B, U)`.

    A word counts once, however often an image has it: the paper's binary bags (section 3.2).
    """
    bags = torch.zeros(len(words), num_words, device=words.device).scatter_(1, words, 1)
    return F.normalize(bags, p=1, dim=1)


def cutmix_box(rng: np.random.Generator, size_px: int) -> tuple[slice, slice, float]:
    """Draw rows and columns of a box in a square crop, and the share of the crop outside of it (Yun et al. 2019)."""
    side = size_px * np.sqrt(1 - rng.uniform())
    center = rng.integers(0, size_px, 2)
    (top, left), (bottom, right) = (np.clip(center + sign * side / 2, 0, size_px).astype(int) for sign in (-1, 1))
    return slice(top, bottom), slice(left, right), 1 - float((bottom - top) * (right - left)) / size_px**2


@dataclass
class BownetConfig:
    """conf/method/bownet.yaml."""

    name: str
    rotation_epochs: int
    """Epochs of RotNet, before those of words."""
    num_words: int
    stage: int
    """Stage of RotNet whose features are words; 4 is the last."""
    num_vocabulary_features: int
    """Features that are clustered, one of each image that is drawn."""
    num_kmeans_iterations: int
    resize_px: int
    """Side to which an image is resized before its center is cut to `size_px`, for its words."""
    size_px: int


class Bownet(Method):
    """BoWNet as a method of the training loop."""

    crops_needed = CropsNeeded("bownet", max_crops=1)
    collapse_hints = "more method.rotation_epochs, fewer method.num_words"

    @classmethod
    def build_network(cls, sizes: Network, config: BownetConfig, num_classes: int) -> BownetNet:  # noqa: ARG003
        """Build a `BownetNet`."""
        return BownetNet(sizes.width, config.num_words, *trunk_layers(sizes))

    def __init__(self, config: BownetConfig, net: BownetNet, num_images: int, batch_size: int) -> None:
        if config.num_words > min(config.num_vocabulary_features, num_images):
            raise UserError(
                f"method.num_words {config.num_words} should be at most method.num_vocabulary_features "
                f"{config.num_vocabulary_features} and the {num_images} images"
            )
        self.config, self.net, self.num_images = config, net, num_images
        self.loss_jump_step = self.first_step_of_words = config.rotation_epochs * (num_images // batch_size)
        self.initial = copy.deepcopy(net.state_dict())
        self.words: Tensor | None = None
        """Each image's words `(num_images, U)`, from the end of RotNet's epochs on; -1 of an unreadable image."""

    @torch.no_grad()
    def before_step(self, step: int, crops: list[Tensor], labels: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Return all rotations of a crop or, after RotNet's epochs, the crop with a box of another image's.

        Between the two, make the vocabulary and the words of all images, and start again from the initial weights.
        """
        if step < self.first_step_of_words:
            return four_rotations(crops[0])
        if step == self.first_step_of_words:
            self.words = self._make_words()
            self.net.load_state_dict(self.initial)
            self.reset_optimizer()
        rng = np.random.default_rng((self.sampler.seed, step))
        rows, columns, self.kept = cutmix_box(rng, crops[0].shape[-1])
        mixed = crops[0].clone()
        mixed[:, :, rows, columns] = crops[0][self._partners(crops[0])][:, :, rows, columns]
        return [mixed]

    def loss(self, features: Tensor, logits: Tensor, num_crops: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy of rotations or of bags of words over this rank's crops, and metrics."""
        rotations, words = at_least_fp32(logits).split([NUM_ROTATIONS, self.config.num_words], dim=1)
        if self.words is None:
            targets = torch.arange(num_crops, device=logits.device).repeat_interleave(len(logits) // num_crops)
            loss = F.cross_entropy(rotations, targets)
        else:
            own = self.words[upload(self.sampler.indices_at(step), logits.device)].long()
            bags = bag_of_words(own.clamp_min(0), self.config.num_words) * (own[:, :1] >= 0)
            bags = self.kept * bags + (1 - self.kept) * bags[self._partners(features)]
            loss = F.cross_entropy(words, bags.to(words.dtype))
        # DDP expects a gradient of both heads.
        return loss + 0 * (rotations.sum() + words.sum()), {
            "embedding_spread": embedding_spread(F.normalize(features.detach(), dim=1))
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the images' words, once there are any; equal on all ranks."""
        return {"words": self.words}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, saved by any number of processes."""
        self.words = None if state["words"] is None else state["words"].to(next(self.net.parameters()).device)

    def _partners(self, rows: Tensor) -> Tensor:
        """Return the row that each row is mixed with: of two neighbors the other one, which is on the same rank."""
        return (torch.arange(len(rows), device=rows.device) ^ 1).clamp_max(len(rows) - 1)

    def _make_words(self) -> Tensor:
        """Cluster features of drawn images, and return the nearest cluster at each place of all images. A collective.

        BatchNorm's running statistics are rank 0's on every rank.
        """
        config = self.config
        for buffer in self.net.buffers():
            buffer.copy_(all_gather(buffer)[0])
        self.net.eval()
        seed = (self.sampler.seed, self.first_step_of_words)
        drawn = np.random.default_rng(seed).permutation(self.num_images)[: config.num_vocabulary_features]
        row_of = np.full(self.num_images, -1)
        row_of[drawn] = np.arange(len(drawn))
        places = np.random.default_rng((*seed, 1)).random(self.num_images)
        features: Tensor | None = None
        for indices, found in self._read_features():
            if features is None:
                features = found.new_zeros(len(drawn), found.shape[-1])
            at = torch.from_numpy((places[indices] * found.shape[1]).astype(np.int64)).to(found.device)
            rows = torch.from_numpy(row_of[indices]).to(found.device)
            features[rows[rows >= 0]] = found[torch.arange(len(found), device=found.device), at][rows >= 0]
        assert features is not None, "no image of this rank's share could be read"
        features = all_reduce_sum(features)
        features = features[(features != 0).any(dim=1)]  # those of unreadable images are all zero
        vocabulary = best_kmeans(features, config.num_words, config.num_kmeans_iterations, 1, seed).centroids
        words: Tensor | None = None
        for indices, found in self._read_features():
            if words is None:
                words = torch.zeros(self.num_images, found.shape[1], dtype=torch.int32, device=found.device)
            labels, _ = nearest_rows(found.flatten(0, 1), vocabulary)
            words[indices.to(found.device)] = labels.view(found.shape[:2]).int() + 1
        self.net.train()
        assert words is not None
        return all_reduce_sum(words) - 1

    def _read_features(self) -> Iterable[tuple[Tensor, Tensor]]:
        for indices, pixels in self.center_crops(self.config.resize_px, self.config.size_px):
            yield indices, at_least_fp32(self.net.local_features(pixels, self.config.stage))
