"""The input of a device: pinned, uploaded while steps run, channels-last, and the images of the CPU."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evals.coco_detr import transforms
from evals.coco_detr.transforms import TransformConfig
from reproduce.config.schema import Augment, Crops, Normalize, View
from reproduce.data.datasets.coco import read_coco_split
from reproduce.data.datasets.image_folder import ImageList, read_image_folder
from reproduce.data.pipeline.augment import augment
from reproduce.data.pipeline.dataloader import build_dataloader, multicrop_batches
from reproduce.data.pipeline.multicrop import MultiCropDataset, collate_multicrop
from reproduce.data.pipeline.nvjpeg import why_unusable
from reproduce.data.pipeline.sampler import StepSampler
from tests.unit.data.test_pinned_memory import tensors_of

CPU = torch.device("cpu")
RECIPE = Crops(
    "",
    [View(2, 32, [0.3, 1.0]), View(3, 16, [0.1, 0.3])],
    Augment(0.5, [0.8, 0.8, 0.8, 0.2], 0.8, 0.2, 0.5, [0.1, 2.0]),
)
NORMALIZE = Normalize([0.485, 0.456, 0.406], [0.228, 0.224, 0.225])
BATCH, NUM_EPOCHS = 5, 3
TRANSFORMS = TransformConfig([48, 56], 48, 64, 0.5, [56, 64], [32, 48])


@pytest.fixture(scope="module")
def images(data: Path) -> ImageList:
    return read_image_folder(data / "imagenet" / "train")


def sampler(images: ImageList) -> StepSampler:
    return StepSampler(len(images), BATCH, NUM_EPOCHS, seed=3)


def batches(images: ImageList, device: torch.device, num_workers: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    return multicrop_batches(
        images, RECIPE, NORMALIZE, sampler(images),
        num_workers=num_workers, device=device, on_unreadable=lambda _: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(images: ImageList) -> list[tuple[list[Tensor], Tensor]]:
    """Every batch, without a loader, on the CPU."""
    dataset = MultiCropDataset(images, RECIPE.views, RECIPE.augment, seed=3)
    mean, std = torch.tensor(NORMALIZE.mean), torch.tensor(NORMALIZE.std)
    made = []
    for step in sampler(images):
        batch = collate_multicrop([dataset[at] for at in step])
        crops: list[Tensor] = []
        for pixels, rows, view in zip(batch.crops, batch.parameters, RECIPE.views, strict=True):
            crops += augment(pixels, rows, mean, std).chunk(view.num)
        made.append((crops, batch.labels))
    return made


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_cpus_while_the_device_is_busy(
    device: torch.device, images: ImageList, expected: list[tuple[list[Tensor], Tensor]], num_workers: int
) -> None:
    """A batch that is uploaded ahead overwrites none that is still in use."""
    work = torch.randn(1024 if device.type == "cuda" else 32, 1024, device=device)
    kept = []
    for crops, labels in batches(images, device, num_workers):
        for _ in range(50):
            work = (work @ work.T @ work).tanh()  # queued before the copies below
        kept.append(([crop.clone() for crop in crops], labels.clone()))
        assert all(crop.device.type == device.type for crop in (*crops, labels))
        assert all(crop.is_contiguous(memory_format=torch.channels_last) for crop in crops)
        del crops, labels  # their memory may be used again as soon as the stream allows
    assert len(kept) == len(expected) == NUM_EPOCHS * len(images) // BATCH
    for (crops, labels), (their_crops, their_labels) in zip(kept, expected, strict=True):
        assert torch.equal(labels.cpu(), their_labels)
        for crop, theirs in zip(crops, their_crops, strict=True):
            assert (crop.cpu() - theirs).abs().max() < 0.01


def test_the_loaders_batches_are_pinned(gpu: torch.device, images: ImageList, data: Path) -> None:
    multi_crop = MultiCropDataset(images, RECIPE.views, RECIPE.augment, seed=3)
    coco = read_coco_split(data / "coco", "train2017", "", lambda _: None).images
    detection = transforms.TrainDataset(coco, TRANSFORMS, seed=3)
    steps = StepSampler(len(coco), BATCH, 1, seed=3)
    loaders = (
        build_dataloader(multi_crop, 1, batch_sampler=sampler(images), collate_fn=collate_multicrop),
        build_dataloader(detection, 1, batch_sampler=steps, collate_fn=transforms.collate),
    )
    for loader in loaders:
        tensors = list(tensors_of(next(iter(loader))))
        assert len(tensors) >= 5
        assert all(tensor.is_pinned() for tensor in tensors)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_crops_decoded_on_the_gpu_are_nearly_the_cpus(
    gpu: torch.device, images: ImageList, expected: list[tuple[list[Tensor], Tensor]], num_workers: int
) -> None:
    assert why_unusable(gpu) == ""
    found = multicrop_batches(
        images, replace(RECIPE, jpeg_decoder="nvjpeg"), NORMALIZE, sampler(images),
        num_workers=num_workers, device=gpu, on_unreadable=lambda names: pytest.fail(str(names)) if names else None,
    )  # fmt: skip
    for (crops, labels), (their_crops, their_labels) in zip(found, expected, strict=True):
        assert torch.equal(labels.cpu(), their_labels)
        for crop, theirs in zip(crops, their_crops, strict=True):
            assert (crop.cpu() - theirs).abs().mean() < 3 / 255 / 0.22  # three levels
