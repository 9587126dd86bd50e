"""Steps of every method, with their input, never make the host wait for the device, but for the loss scaler's look."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from reproduce.config.schema import Augment, Crops, Normalize, View
from reproduce.data.datasets.image_folder import ImageList, read_image_folder
from reproduce.data.pipeline.dataloader import multicrop_batches
from reproduce.data.pipeline.sampler import StepSampler
from tests.gpu.trainings import (
    BATCH,
    CONFIGS,
    NUM_EPOCHS,
    NUM_IMAGES,
    STEPS_PER_EPOCH,
    Batch,
    build_training,
    no_host_sync,
    sizes_px,
)

AUGMENT = Augment(0.5, [0.4, 0.4, 0.4, 0.1], 0.8, 0.2, 0.5, [0.1, 1.0])


class Done(Exception):
    """Ends a training before its last check, which waits for the device."""


@pytest.fixture(scope="module")
def images(data: Path) -> ImageList:
    """As many images as the trainings have, some of them several times."""
    found = read_image_folder(data / "imagenet" / "train")
    chosen = found.subset([number % len(found) for number in range(NUM_IMAGES)])
    return ImageList(chosen.paths, [label % 4 for label in chosen.labels], chosen.classes)


def batches_of(name: str, images: ImageList, device: torch.device) -> Iterator[Batch]:
    sizes = sizes_px(name)
    views = [View(sizes.count(size), size, [0.3, 1.0]) for size in dict.fromkeys(sizes)]
    return multicrop_batches(
        images, Crops("", views, AUGMENT), Normalize([0.5] * 3, [0.2] * 3),
        StepSampler(NUM_IMAGES, BATCH, NUM_EPOCHS, seed=0),
        num_workers=2 if device.type == "cuda" else 0, device=device, on_unreadable=lambda _: None,
    )  # fmt: skip


def until_done(batches: Iterable[Batch]) -> Iterator[Batch]:
    yield from batches
    raise Done


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "fp32") for name in CONFIGS), ("swav", "bf16"), ("swav", "fp16")]
)
def test_steps_with_their_input_never_wait_for_the_device(
    device: torch.device, images: ImageList, name: str, precision: str
) -> None:
    training = build_training(name, device, precision=precision)
    batches = batches_of(name, images, device)
    training.trainer.train(islice(batches, 1), 0, 99)  # the clustering methods label all images in an epoch's first
    num_waits = STEPS_PER_EPOCH - 1 if precision == "fp16" else 0  # the scaler's, which skips steps that overflow
    with no_host_sync(device, num_waits), pytest.raises(Done):
        training.trainer.train(until_done(islice(batches, STEPS_PER_EPOCH - 1)), 1, 99)


def test_a_wait_would_be_detected(device: torch.device) -> None:
    loss = torch.ones(2, device=device).sum()
    with no_host_sync(device), pytest.raises((AssertionError, RuntimeError), match=r"waits for|synchronizing"):
        loss.item()
