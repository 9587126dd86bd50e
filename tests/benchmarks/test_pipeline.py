"""The input pipeline against plain torchvision transforms of PIL pictures. Goals: CPU part 4.5, the whole 2."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms

from reproduce.config.schema import Augment, View
from reproduce.data.pipeline.augment import augment
from reproduce.data.pipeline.image_io import decode_image
from reproduce.data.pipeline.multicrop import MultiCropBatch, MultiCropSample, collate_multicrop, multi_crop
from reproduce.data.pipeline.sampler import rng_for
from tests.benchmarks.conftest import Compare

NUM_PICTURES = 32
PAPER = [View(2, 224, [0.14, 1.0]), View(6, 96, [0.05, 0.14])]
SMOKE = [View(2, 40, [0.3, 1.0]), View(6, 24, [0.14, 0.3])]
AUGMENT = Augment(0.5, [0.8, 0.8, 0.8, 0.2], 0.8, 0.2, 0.5, [0.1, 2.0])
MEAN, STD = [0.485, 0.456, 0.406], [0.228, 0.224, 0.225]


def generated(width: int, height: int) -> list[bytes]:
    """Soft colours with some noise: as long to decode as a photograph of that size, about."""
    encoded = []
    for seed in range(NUM_PICTURES):
        rng = np.random.default_rng(seed)
        soft = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        pixels = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(
            0, 6, (height, width, 3)
        )
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


@pytest.fixture(params=["paper", "smoke"])
def case(request: pytest.FixtureRequest) -> tuple[list[bytes], list[View]]:
    if request.param == "smoke":
        return generated(64, 64), SMOKE
    folder = request.config.getoption("--pictures")
    files = sorted(Path(folder).rglob("*.[jJ][pP]*[gG]"))[:NUM_PICTURES] if folder else []
    return [file.read_bytes() for file in files] or generated(500, 375), PAPER


def plain(encoded: list[bytes], views: list[View]) -> list[Tensor]:
    """Each crop by PIL, one after the other, as the released code does it."""
    made = []
    for view in views:
        steps = [
            transforms.RandomResizedCrop(view.size_px, scale=view.scale),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(*AUGMENT.color_jitter)], AUGMENT.color_jitter_probability),
            transforms.RandomGrayscale(AUGMENT.grayscale_probability),
            transforms.Lambda(_blur),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
        made += [transforms.Compose(steps)] * view.num
    pictures = (Image.open(io.BytesIO(picture)).convert("RGB") for picture in encoded)
    return [transform(picture) for picture in pictures for transform in made]


def _blur(picture: Image.Image) -> Image.Image:
    if random.random() > AUGMENT.blur_probability:
        return picture
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(*AUGMENT.blur_sigma_px)))


def cpu_part(encoded: list[bytes], views: list[View]) -> MultiCropBatch:
    samples: list[MultiCropSample] = [
        MultiCropSample(multi_crop(decode_image(picture, ""), views, AUGMENT, rng_for(0, 0, index)), 0, [])
        for index, picture in enumerate(encoded)
    ]
    return collate_multicrop(samples)


def whole(encoded: list[bytes], views: list[View]) -> list[Tensor]:
    batch = cpu_part(encoded, views)
    made = zip(batch.crops, batch.parameters, strict=True)
    return [augment(crops, rows, torch.tensor(MEAN), torch.tensor(STD)) for crops, rows in made]


def test_cpu_part(compare: Compare, case: tuple[list[bytes], list[View]]) -> None:
    compare(lambda: cpu_part(*case), lambda: plain(*case))


def test_whole_on_the_cpu(compare: Compare, case: tuple[list[bytes], list[View]]) -> None:
    compare(lambda: whole(*case), lambda: plain(*case))
