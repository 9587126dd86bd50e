"""Crops of JPEG files that are decoded in the main process, by the CPU in nvJPEG's place, against the usual crops."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from reproduce import pretrain
from reproduce.config.schema import Augment, Crops, Normalize, View
from reproduce.data.datasets.image_file import UnreadableImage
from reproduce.data.datasets.image_folder import ImageList, read_image_folder
from reproduce.data.pipeline import nvjpeg
from reproduce.data.pipeline.dataloader import multicrop_batches
from reproduce.data.pipeline.multicrop import MultiCropDataset, collate_multicrop
from reproduce.data.pipeline.nvjpeg import EncodedDataset, decoded_batches, read_encoded
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.errors import UserError
from reproduce.files import read_json
from tests.runs import TINY, call, losses

CPU = torch.device("cpu")
VIEWS = [View(2, 32, [0.3, 1.0]), View(3, 16, [0.1, 0.3])]
AUGMENT = Augment(0.5, [0.4, 0.4, 0.4, 0.1], 0.8, 0.2, 0.5, [0.1, 1.0])


def encoded(mode: str = "RGB", file_format: str = "JPEG", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 15, 3), dtype=np.uint8)
    stored = BytesIO()
    Image.fromarray(pixels).resize((60, 44), Image.Resampling.BICUBIC).convert(mode).save(
        stored, file_format, **options
    )
    return stored.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return encoded(exif=exif)


@pytest.mark.parametrize("content", [encoded(), encoded("L"), encoded(progressive=True)])
def test_plain_jpeg_files_stay_encoded(content: bytes) -> None:
    image, width, height = read_encoded(content, "there")
    assert bytes(image.numpy()) == content
    assert (width, height) == (60, 44)


@pytest.mark.parametrize("content", [encoded("CMYK"), encoded(file_format="PNG"), rotated()])
def test_what_nvjpeg_decodes_otherwise_is_decoded_by_the_workers(content: bytes) -> None:
    image, width, height = read_encoded(content, "there")
    assert image.shape == (3, height, width) == (3, 44, 60)


@pytest.mark.parametrize("length", [10, 500])
def test_truncated_files_are_unreadable(length: int) -> None:
    with pytest.raises(UnreadableImage, match="there"):
        read_encoded(encoded()[:length], "there")


@pytest.fixture
def images(data: Path) -> ImageList:
    return read_image_folder(data / "imagenet" / "train")


def datasets(images: ImageList) -> tuple[EncodedDataset, MultiCropDataset]:
    return EncodedDataset(images, VIEWS, AUGMENT, seed=1), MultiCropDataset(images, VIEWS, AUGMENT, seed=1)


def test_crops_are_those_of_the_cpu_up_to_rounding(images: ImageList) -> None:
    encoded_images, usual = datasets(images)
    at = [(1, index) for index in (4, 9, 2)]
    batch = nvjpeg.collate_encoded([encoded_images[each] for each in at])
    assert all(len(shape) == 1 for shape in batch.shapes)
    (found,) = decoded_batches([batch], usual, CPU)
    expected = collate_multicrop([usual[each] for each in at])
    assert found.labels.tolist() == expected.labels.tolist()
    for crops, theirs in zip(found.crops, expected.crops, strict=True):
        assert crops.dtype == torch.uint8
        assert crops.shape == theirs.shape
        assert (crops.int() - theirs.int()).abs().max() <= 1
    for rows, their_rows in zip(found.parameters, expected.parameters, strict=True):
        assert torch.equal(rows, their_rows)


def test_a_batch_that_nvjpeg_refuses_is_decoded_on_the_cpu(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("nvjpegDecode failed: 4")

    encoded_images, usual = datasets(images)
    batch = nvjpeg.collate_encoded([encoded_images[(0, index)] for index in (3, 7)])
    monkeypatch.setattr(nvjpeg, "decode_jpeg", refuse)
    (found,) = decoded_batches([batch], usual, CPU)
    expected = collate_multicrop([usual[(0, index)] for index in (3, 7)])
    assert all(torch.equal(one, other) for one, other in zip(found.crops, expected.crops, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_of_the_loader(images: ImageList, num_workers: int) -> None:
    def batches(decoder: str | None) -> list[list[torch.Tensor]]:
        made = multicrop_batches(
            images, Crops("", VIEWS, AUGMENT, decoder), Normalize([0.5] * 3, [0.2] * 3),
            StepSampler(len(images), 4, epochs=1, seed=5),
            num_workers=num_workers, device=CPU, on_unreadable=lambda names: pytest.fail(str(names)) if names else None,
        )  # fmt: skip
        return [crops for crops, _ in made]

    found, expected = batches("nvjpeg"), batches(None)
    assert len(found) == len(expected) == len(images) // 4
    for ours, theirs in zip(found, expected, strict=True):
        for crop, their_crop in zip(ours, theirs, strict=True):
            assert (crop - their_crop).abs().mean() < 0.01


def test_without_a_gpu_the_cpu_decodes_and_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (*TINY, "experiment=swav_800ep", f"paths.data_root={data}", "epochs=1")
    for decoder in ("nvjpeg", "null"):
        overrides = (*common, f"crops.jpeg_decoder={decoder}", f"paths.results={tmp_path / decoder}")
        status, said = call(pretrain.main, monkeypatch, *overrides)
        assert status == 0, said
        assert said.count("crops.jpeg_decoder=nvjpeg: there is no CUDA GPU; JPEG files are decoded on the CPU\n") == (
            decoder == "nvjpeg"
        )
    assert losses(tmp_path / "nvjpeg") == losses(tmp_path / "null")
    (asked,), (usual,) = (list((tmp_path / name).glob("smoke/*/result.json")) for name in ("nvjpeg", "null"))
    assert asked.parent.name != usual.parent.name  # the option is part of a run's name
    assert read_json(asked)["provenance"]["jpeg_decoder"].startswith("CPU: there is no CUDA GPU")


def test_an_unknown_decoder_raises() -> None:
    with pytest.raises(UserError, match=r"unknown crops\.jpeg_decoder 'nvjpg': did you mean 'nvjpeg'\?"):
        nvjpeg.require_known_decoder("nvjpg")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), torch.AcceleratorError("CUDA error")])
def test_a_gpu_that_fails_is_no_broken_file(
    images: ImageList, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    encoded_images, usual = datasets(images)
    batch = nvjpeg.collate_encoded([encoded_images[(0, 3)]])
    monkeypatch.setattr(nvjpeg, "decode_jpeg", fail)
    with pytest.raises(type(error)):
        list(decoded_batches([batch], usual, CPU))
