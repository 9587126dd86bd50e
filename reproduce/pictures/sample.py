"""The images that pictures of a pretraining are made of, and what its network computes of them."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from evals.context import CenterCropConfig
from models.zoo.load import load_projection_head, load_trunk
from reproduce.config.compose import compose
from reproduce.config.schema import Dataset, Normalize
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.image_folder import ImageList, read_image_list
from reproduce.data.pipeline.center_crop import CenterCropDataset
from reproduce.data.pipeline.dataloader import center_crop_batches
from reproduce.engine import checkpoint
from reproduce.engine.distributed.collectives import device
from reproduce.engine.runs.picture_files import Tile
from reproduce.errors import UserError

NUM_IMAGES, NUM_CLASSES = 1000, 20
"""Images that the pictures choose from, of at most so many classes: a map of more can't be read."""
TILE_PX = 60
BATCH_SIZE = 128


@dataclass(frozen=True)
class Sample:
    """The images that pictures are made of, and what the network computes of those that can be decoded."""

    images: ImageList
    words: str
    """Which images these are."""
    crop: CenterCropConfig
    indices: Tensor
    """`(n,)` int64: the image of each row."""
    features: Tensor
    """`(n, num_features)` fp32, on the CPU."""
    scores: Tensor | None
    """Cosines with the prototypes of the first head, `(n, K)`; None if the network has no prototypes."""
    checkpoint_sha256: str

    def class_of(self, row: int) -> str:
        """Return the name of the class of a row's image."""
        return self.images.classes[self.images.labels[int(self.indices[row])]]

    def tile(self, row: int, *, marked: bool = False) -> Tile:
        """Return the center crop of a row's image, as the network gets it."""
        dataset = CenterCropDataset(self.images, self.crop.resize_px, self.crop.crop_px, self.crop.interpolation)
        pixels = dataset[int(self.indices[row])].pixels
        assert pixels is not None  # a row is of an image that was decoded
        return Tile(pixels.transpose(1, 2, 0), min(TILE_PX, self.crop.crop_px), marked)


def compute_sample(cfg: DictConfig, path: Path, sha256: str, data_root: Path) -> Sample:
    """Compute features and scores of the chosen images' center crops."""
    dataset = to_dataclass(cfg.dataset, Dataset, "dataset")
    images, words = choose_images(*_read_split(data_root / dataset.root, dataset))
    knn = compose("evaluate", ["eval=knn", "checkpoint=none", f"scale={cfg.scale}"])
    crop = to_dataclass(knn.protocol.center_crop, CenterCropConfig, "center_crop")
    trunk = load_trunk(path, depth=cfg.network.get("depth"), stem=cfg.network.get("stem"))
    trunk.set_normalization(cfg.normalize.mean, cfg.normalize.std)
    trunk = trunk.to(device()).to(memory_format=torch.channels_last)
    to_scores = load_scoring(path)
    indices, features, scores = [], [], []
    with torch.no_grad():
        for index, pixels in center_crop_batches(
            images,
            crop.resize_px,
            crop.crop_px,
            crop.interpolation,
            to_dataclass(cfg.normalize, Normalize, "normalize"),
            batch_size=BATCH_SIZE,
            num_workers=cfg.cluster.num_workers,
            device=device(),
            on_unreadable=lambda _: None,  # the runs report them
        ):
            rows = trunk(pixels)
            indices.append(index)
            features.append(rows.cpu())
            scores += [to_scores(rows).cpu()] if to_scores else []
    if not indices:
        raise UserError(f"none of the images in {data_root / dataset.root} can be decoded")
    known = torch.cat(scores) if scores else None
    return Sample(images, words, crop, torch.cat(indices), torch.cat(features), known, sha256)


def _read_split(root: Path, dataset: Dataset) -> tuple[ImageList, str]:
    """Return the validation images, or the training images of a dataset that has no others, and their name."""
    try:
        return read_image_list(root, dataset, dataset.val), "validation images"
    except UserError:
        return read_image_list(root, dataset, dataset.train), "training images"


def choose_images(images: ImageList, name: str) -> tuple[ImageList, str]:
    """Return at most `NUM_IMAGES` images of at most `NUM_CLASSES` classes, evenly spread, and words for them."""
    classes = set(spread(len(images.classes), NUM_CLASSES))
    of_these = [index for index, label in enumerate(images.labels) if label in classes]
    chosen = images.subset([of_these[each] for each in spread(len(of_these), NUM_IMAGES)])
    some = f" of {len(classes)} of the {len(images.classes)} classes" if len(classes) < len(images.classes) else ""
    return chosen, f"{len(chosen)} {name}{some}"


def spread(total: int, number: int) -> list[int]:
    """Return `number` of the integers below `total`, or all if there are fewer, evenly spread."""
    number = min(total, number)
    return [(2 * each + 1) * total // (2 * number) for each in range(number)]


class Scoring(nn.Module):
    """Maps features `(N, num_features)` to cosines with the prototypes `(N, K)`."""

    def __init__(self, head: nn.Module, prototypes: Tensor) -> None:
        super().__init__()
        self.head, self.prototypes = head, nn.Parameter(F.normalize(prototypes, dim=1), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the scores."""
        return F.linear(F.normalize(self.head(features), dim=1), self.prototypes)


def load_scoring(path: Path) -> Scoring | None:
    """Load the head and the prototypes of a checkpoint, of several heads the first; None if it has no prototypes."""
    model = checkpoint.load(path)["model"]
    prototypes = next((value for name, value in model.items() if name.startswith("prototypes")), None)
    head = load_projection_head(path) if prototypes is not None else None
    return Scoring(head, prototypes).to(device()) if head is not None and prototypes is not None else None
