"""The evaluations' transform: resize the shorter side, then cut the center, with PIL as torchvision does."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from reproduce.data.datasets.image_file import UnreadableImage, read_image
from reproduce.data.datasets.image_folder import ImageList

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
"""Ways to resize an image. PIL's filters grow with the image: they are antialiased."""


class CenterCropSample(NamedTuple):
    """One image: its index and pixels `(3, crop_px, crop_px)` uint8, or None and what is wrong with the file."""

    image_index: int
    pixels: np.ndarray | None
    unreadable: str


class CenterCropBatch(NamedTuple):
    """The readable images of a batch: indices `(B,)` int64 and pixels `(B, 3, crop_px, crop_px)` uint8."""

    indices: Tensor
    pixels: Tensor
    unreadable: list[str]


class CenterCropDataset(Dataset[CenterCropSample]):
    """Each image once, resized to `resize_px` on its shorter side and cut to its `crop_px` center.

    `interpolation` is a key of `INTERPOLATIONS`.
    """

    def __init__(self, images: ImageList, resize_px: int, crop_px: int, interpolation: str = "bilinear") -> None:
        self.images, self.resize_px, self.crop_px = images, resize_px, crop_px
        self.resampling = INTERPOLATIONS[interpolation]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> CenterCropSample:
        """Return the center crop of image `index`."""
        try:
            image = read_image(self.images.paths[index], self.images.read_bytes(index))
        except UnreadableImage as error:
            return CenterCropSample(index, None, str(error))
        width, height = image.size
        shorter = min(width, height)
        size = int(self.resize_px * width / shorter), int(self.resize_px * height / shorter)
        image = image.resize(size, self.resampling)
        left, top = round((image.width - self.crop_px) / 2), round((image.height - self.crop_px) / 2)
        box = (left, top, left + self.crop_px, top + self.crop_px)
        return CenterCropSample(index, np.asarray(image.crop(box)).transpose(2, 0, 1), "")


def collate_center_crops(samples: list[CenterCropSample]) -> CenterCropBatch:
    """Stack the readable images of a batch, and list the unreadable ones."""
    readable = [(sample.image_index, sample.pixels) for sample in samples if sample.pixels is not None]
    pixels = torch.from_numpy(np.stack([pixels for _, pixels in readable])) if readable else torch.empty(0)
    indices = torch.tensor([index for index, _ in readable])
    return CenterCropBatch(indices, pixels, [sample.unreadable for sample in samples if sample.unreadable])
