"""The multi-crop pipeline against torchvision, and its independence of workers and processes."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from scipy.ndimage import correlate1d
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as reference

from reproduce.config.schema import Augment, Crops, Normalize, View
from reproduce.data.datasets.image_file import UnreadableImage, read_image
from reproduce.data.datasets.image_folder import ImageList, read_image_folder
from reproduce.data.pipeline import augment
from reproduce.data.pipeline.center_crop import CenterCropDataset
from reproduce.data.pipeline.dataloader import multicrop_batches
from reproduce.data.pipeline.image_io import decode_image
from reproduce.data.pipeline.multicrop import (
    AUGMENT_PARAMETERS,
    MultiCropDataset,
    collate_multicrop,
    crop_and_resize,
    draw_augment_parameters,
    multi_crop,
    random_crop_box,
    random_patch_boxes,
)
from reproduce.data.pipeline.sampler import StepSampler, rng_for
from reproduce.errors import UserError
from tests.host_sync import NoHostSync

BYTE = 1 / 255
FULL = Augment(0.5, [0.8, 0.8, 0.8, 0.2], 0.8, 0.2, 0.5, [0.1, 2.0])
VIEWS = [View(2, 32, [0.3, 1.0]), View(3, 16, [0.1, 0.3])]


def make_image(seed: int, width: int = 60, height: int = 44) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), least=st.floats(0.01, 1.0), index=st.integers(0, 999))
def test_crop_box_lies_within_the_image(width: int, height: int, least: float, index: int) -> None:
    """It also has at least one pixel, and an aspect ratio within bounds up to the rounding of its sides."""
    left, top, right, bottom = random_crop_box(rng_for(0, 0, index), width, height, (least, 1.0))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    assert (w - 1) / (h + 1) <= 4 / 3 or h == height
    assert (h - 1) / (w + 1) <= 4 / 3 or w == width


def test_crop_boxes_reach_every_edge() -> None:
    """Crops of a third of 12 x 12 pixels begin at the first and end at the last row and column, all of them."""
    boxes = np.array([random_crop_box(rng_for(0, 0, index), 12, 12, (0.3, 0.4)) for index in range(2000)])
    assert boxes.min(axis=0)[:2].tolist() == [0, 0]
    assert boxes.max(axis=0)[2:].tolist() == [12, 12]
    for low, high in ((0, 2), (1, 3)):
        starts = boxes[boxes[:, high] - boxes[:, low] == 7][:, low]
        assert sorted(set(starts.tolist())) == list(range(6))  # each place of a crop of 7 pixels, the last one too


@given(width=st.integers(9, 900), height=st.integers(9, 900), index=st.integers(0, 999))
def test_patches_of_a_jigsaw_lie_in_its_cells_in_random_order(width: int, height: int, index: int) -> None:
    """Each cell has one patch, of three quarters of its side, up to the rounding of pixels."""
    boxes = random_patch_boxes(rng_for(0, 0, index), width, height, View(9, 64, [1.0, 1.0], cell_share=0.75))
    left, top, right, bottom = random_crop_box(rng := rng_for(0, 0, index), width, height, [1.0, 1.0])
    w, h = (right - left) / 3, (bottom - top) / 3
    for number, (x, y, x_end, y_end) in zip(rng.permutation(9), boxes, strict=True):
        row, column = divmod(int(number), 3)
        assert left + w * column - 1 <= x < x_end <= left + w * (column + 1) + 1.5 and x_end <= width
        assert top + h * row - 1 <= y < y_end <= top + h * (row + 1) + 1.5 and y_end <= height
        assert x_end - x == max(1, round(w * 0.75)) and y_end - y == max(1, round(h * 0.75))


def test_a_jigsaw_of_eight_patches_raises() -> None:
    with pytest.raises(UserError, match="num: 8"):
        random_patch_boxes(rng_for(0, 0, 0), 60, 60, View(8, 16, [0.6, 1.0], cell_share=0.75))


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    for number in range(12):
        folder = tmp_path / f"class{number % 3}"
        folder.mkdir(exist_ok=True)
        make_image(number).save(folder / f"{number}.jpg")
    return read_image_folder(tmp_path)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


@pytest.mark.parametrize(
    ("ours", "theirs", "factor"),
    [
        (augment.adjust_brightness_, reference.adjust_brightness, 1.6),
        (augment.adjust_brightness_, reference.adjust_brightness, 0.3),
        (augment.adjust_contrast_, reference.adjust_contrast, 1.7),
        (augment.adjust_contrast_, reference.adjust_contrast, 0.2),
        (augment.adjust_saturation_, reference.adjust_saturation, 1.8),
        (augment.adjust_saturation_, reference.adjust_saturation, 0.4),
        (augment.adjust_hue_, reference.adjust_hue, 0.17),
        (augment.adjust_hue_, reference.adjust_hue, -0.2),
    ],
)
def test_each_operation_equals_torchvisions(ours, theirs, factor: float) -> None:  # type: ignore[no-untyped-def]
    x = torch.stack([as_tensor(make_image(seed)) for seed in range(3)]).float() / 255
    expected = torch.stack([theirs(image, factor) for image in x])
    ours(x, torch.full((3,), factor))
    assert (x - expected).abs().max() <= BYTE


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [12, 40, 130])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_is_opencvs_of_23_pixels_with_mirrored_edges(sigma: float, size: int, layout: torch.memory_format) -> None:
    """By its definition: a Gaussian kernel of radius 11, edges mirrored without the edge pixel (REFLECT_101)."""
    x = torch.stack([as_tensor(make_image(seed, size, size)) for seed in range(2)]).float() / 255
    kernel = np.exp(-0.5 * (np.arange(-11, 12) / sigma) ** 2)
    kernel /= kernel.sum()
    rows = correlate1d(x.numpy().astype(np.float64), kernel, axis=3, mode="mirror")
    expected = torch.from_numpy(correlate1d(rows, kernel, axis=2, mode="mirror")).float()
    blurred = x.clone(memory_format=layout)
    augment.gaussian_blur_(blurred, torch.full((2,), sigma))
    torch.testing.assert_close(blurred, expected, rtol=0, atol=1e-6)
    flat = torch.ones(1, 3, size, size)
    augment.gaussian_blur_(flat, torch.tensor([sigma]))
    torch.testing.assert_close(flat, torch.ones(1, 3, size, size))


@pytest.mark.parametrize("sigma", [1.3, 6.0])
def test_blur_equals_opencvs(sigma: float) -> None:
    """`cv2.GaussianBlur(image, (23, 23), sigma)` by OpenCV's documentation: the weights of `getGaussianKernel`, and
    `BORDER_DEFAULT`, which continues a row `abc...xyz` by `...dcb|abc...xyz|yxw...`.
    """
    image = np.asarray(make_image(0, 96, 96), dtype=np.float64).transpose(2, 0, 1) / 255
    weights = np.exp(-((np.arange(23) - (23 - 1) / 2) ** 2) / (2 * sigma**2))  # at 6, all 23 count
    bordered = np.concatenate([image[..., 11:0:-1], image, image[..., -2:-13:-1]], axis=2)
    rows = sum(weight * bordered[..., at : at + 96] for at, weight in enumerate(weights / weights.sum()))
    bordered = np.concatenate([rows[:, 11:0:-1], rows, rows[:, -2:-13:-1]], axis=1)
    expected = sum(weight * bordered[:, at : at + 96] for at, weight in enumerate(weights / weights.sum()))
    x = torch.from_numpy(image).float()[None]
    augment.gaussian_blur_(x, torch.tensor([sigma]))
    torch.testing.assert_close(x[0], torch.from_numpy(expected).float(), rtol=0, atol=1e-5)


def test_augment_equals_torchvisions_in_each_crops_own_order() -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.228, 0.224, 0.225])
    crops = torch.stack([as_tensor(make_image(seed, 32, 32)) for seed in range(40)])
    rows = np.stack([draw_augment_parameters(rng_for(0, 0, seed), FULL) for seed in range(40)])
    rows[:, AUGMENT_PARAMETERS.index("blur")] = 0
    ours = augment.augment(crops, torch.from_numpy(rows), mean, std)
    operations = [
        reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue
    ]  # fmt: skip
    for crop, row, got in zip(crops, rows, ours, strict=True):
        x = crop.float() / 255
        x = x.flip(2) if row[0] else x
        for number in row[5:9].astype(int):
            x = operations[number](x, float(row[1 + number]))
        x = reference.rgb_to_grayscale(x, 3) if row[9] else x
        expected = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        assert (got - expected).abs().max() <= 2 * BYTE / 0.224


def test_crop_box_distribution_equals_torchvisions() -> None:
    from scipy.stats import ks_2samp

    image, area = torch.zeros(3, 40, 70), [0.14, 0.6]
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, area, [3 / 4, 4 / 3]) for _ in range(4000)])
    boxes = [random_crop_box(rng_for(0, 0, index), 70, 40, area) for index in range(4000)]
    ours = np.array([(top, left, bottom - top, right - left) for left, top, right, bottom in boxes])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


def test_crop_and_resize_equals_torchvisions() -> None:
    image = make_image(3)
    for size_px in (24, 50):
        ours = crop_and_resize(as_tensor(image), (7, 5, 41, 33), size_px)
        expected = as_tensor(reference.resized_crop(image, 5, 7, 28, 34, [size_px, size_px]))
        assert (ours.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("mode", "file_format"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG")]
)
def test_decoded_pixels_equal_pils(mode: str, file_format: str) -> None:
    stored = BytesIO()
    make_image(1).convert(mode).save(stored, file_format)
    expected = as_tensor(Image.open(stored).convert("RGB"))
    assert torch.equal(decode_image(stored.getvalue(), "there"), expected)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_exif_rotation_is_ignored(orientation: int) -> None:
    """The reference ignores it, and so do the evaluations' center crops, which PIL decodes."""
    exif, stored = Image.Exif(), BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    make_image(1).resize((60, 40)).save(stored, "JPEG", exif=exif)
    expected = as_tensor(Image.open(stored).convert("RGB"))
    assert expected.shape == (3, 40, 60)
    assert torch.equal(decode_image(stored.getvalue(), "there"), expected)


def test_unreadable_image_error_text_is_deterministic() -> None:
    """Unreadable files are counted by their error text."""
    said = set()
    for _ in range(2):
        with pytest.raises(UnreadableImage) as error:
            decode_image(bytes(100), "there")
        said.add(str(error.value))
    assert said == {"there (not an image format that PIL knows)"}


def test_truncated_image_is_unreadable() -> None:
    stored = BytesIO()
    make_image(1).save(stored, "JPEG")
    for length in (0, 10, 500, len(stored.getvalue()) // 2):
        with pytest.raises(UnreadableImage, match="there"):
            decode_image(stored.getvalue()[:length], "there")


def test_center_crops_equal_torchvisions(images: ImageList) -> None:
    _, ours, _ = CenterCropDataset(images, 40, 32)[5]
    image = Image.open(images.paths[5]).convert("RGB")
    expected = as_tensor(reference.center_crop(reference.resize(image, 40), [32, 32]))
    assert ours is not None
    assert torch.equal(torch.from_numpy(ours.copy()), expected)


def test_center_crops_can_be_resized_bicubically(images: ImageList) -> None:
    _, ours, _ = CenterCropDataset(images, 40, 32, "bicubic")[5]
    image = Image.open(images.paths[5]).convert("RGB")
    expected = as_tensor(reference.center_crop(reference.resize(image, 40, InterpolationMode.BICUBIC), [32, 32]))
    assert ours is not None
    assert torch.equal(torch.from_numpy(ours.copy()), expected)


def test_parameters_have_the_configured_ranges_and_probabilities() -> None:
    rows = np.stack([draw_augment_parameters(rng_for(1, 0, index), FULL) for index in range(3000)])
    jittered = (rows[:, 1:4] != 1).any(axis=1)
    assert abs(jittered.mean() - 0.8) < 0.03
    assert abs(rows[:, AUGMENT_PARAMETERS.index("flip")].mean() - 0.5) < 0.04
    assert abs(rows[:, AUGMENT_PARAMETERS.index("gray")].mean() - 0.2) < 0.03
    assert abs((rows[:, AUGMENT_PARAMETERS.index("blur")] > 0).mean() - 0.5) < 0.04
    assert rows[:, 1:4].min() >= 0.2
    assert rows[:, 1:4].max() <= 1.8
    assert np.abs(rows[:, 4]).max() <= 0.2
    assert {tuple(order) for order in rows[:, 5:9].astype(int)} >= {(3, 2, 1, 0), (0, 1, 2, 3), (1, 3, 0, 2)}


def test_jitter_above_one_gives_no_negative_factor() -> None:
    strong = Augment(0.5, [1.5, 1.5, 1.5, 0.2], 1.0, 0.2, 0.5, [0.1, 2.0])
    rows = np.stack([draw_augment_parameters(rng_for(0, 0, index), strong) for index in range(200)])
    assert 0 <= rows[:, 1:4].min() < 0.1 and 2.4 < rows[:, 1:4].max() <= 2.5


def test_color_factors_are_drawn_as_torchvision_draws_them() -> None:
    from scipy.stats import ks_2samp

    torch.manual_seed(0)
    jitter = ColorJitter(*FULL.color_jitter)
    drawn = [jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(4000)]
    theirs = np.array([factors for _, *factors in drawn])
    rows = np.stack([draw_augment_parameters(rng_for(2, 0, index), FULL) for index in range(5000)])
    ours = rows[rows[:, 1] != 1]
    for column in range(4):
        assert ks_2samp(ours[:, 1 + column], theirs[:, column]).pvalue > 1e-3
    blurred = rows[rows[:, 10] > 0, 10]
    assert ks_2samp(blurred, np.linspace(0.1, 2.0, 4000)).pvalue > 1e-3
    _, counts = np.unique(ours[:, 5:9], axis=0, return_counts=True)
    assert len(counts) == 24
    assert counts.std() / counts.mean() < 0.15  # orders are alike in number: a share of 1 / sqrt(170), give or take


def test_batches_do_not_depend_on_the_number_of_workers(images: ImageList) -> None:
    def batches(num_workers: int, first_step: int = 0) -> list[list[torch.Tensor]]:
        sampler = StepSampler(len(images), 4, epochs=2, seed=5, first_step=first_step)
        made = multicrop_batches(
            images, Crops("", VIEWS, FULL), Normalize([0.5] * 3, [0.2] * 3), sampler,
            num_workers=num_workers, device=torch.device("cpu"), on_unreadable=lambda _: None,
        )  # fmt: skip
        return [crops for crops, _ in made]

    alone = batches(0)
    assert [tuple(crop.shape) for crop in alone[0]] == 2 * [(4, 3, 32, 32)] + 3 * [(4, 3, 16, 16)]
    assert all(crop.is_contiguous(memory_format=torch.channels_last) for crop in alone[0])
    for others, expected in ((batches(2), alone), (batches(1, first_step=4), alone[4:])):
        for other, crops in zip(others, expected, strict=True):
            torch.testing.assert_close(other, crops, rtol=0, atol=0)


def test_augmentation_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = torch.stack([as_tensor(make_image(seed, 32, 32)) for seed in range(24)])
    before = crops.clone()
    rows = torch.from_numpy(np.stack([draw_augment_parameters(rng_for(0, 0, seed), FULL) for seed in range(24)]))
    made = []
    for pixels in (1, 5 * 32 * 32, 2**20):
        monkeypatch.setitem(augment.BLOCK_PIXELS, "cpu", pixels)
        made.append(augment.augment(crops, rows, torch.full((3,), 0.5), torch.full((3,), 0.2)))
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(made[2], made[0], rtol=0, atol=1e-5)
    assert torch.equal(crops, before)


def test_augment_never_synchronizes_with_the_device() -> None:
    crops = torch.stack([as_tensor(make_image(seed, 32, 32)) for seed in range(24)])
    rows = torch.from_numpy(np.stack([draw_augment_parameters(rng_for(0, 0, seed), FULL) for seed in range(24)]))
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.2)
    augment.augment(crops, rows, mean, std)  # constants are uploaded once
    with NoHostSync():
        augment.augment(crops, rows, mean, std)


def test_crops_depend_on_seed_epoch_and_index_only() -> None:
    def drawn(*key: int) -> bytes:
        return multi_crop(as_tensor(make_image(0)), VIEWS, FULL, rng_for(*key))[0][0].numpy().tobytes()

    assert drawn(0, 1, 2) == drawn(0, 1, 2)
    assert len({drawn(0, 1, 2), drawn(1, 1, 2), drawn(0, 2, 2), drawn(0, 1, 3)}) == 4


def test_random_numbers_are_unique_across_images_and_epochs() -> None:
    first = {rng_for(0, 0, 1 << bit).integers(2**63) for bit in range(40)}
    assert len(first) == 40
    assert rng_for(0, 1, 0).integers(2**63) not in first


def test_ranks_together_read_the_batch_of_one_process() -> None:
    alone = list(StepSampler(20, 4, epochs=2, seed=3))
    shares = [list(StepSampler(20, 4, epochs=2, seed=3, rank=rank, world_size=2)) for rank in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == alone
    assert sorted(index for step in alone[:5] for _, index in step) == list(range(20))


def test_each_epoch_and_seed_has_its_own_order() -> None:
    steps = [list(StepSampler(20, 4, epochs=3, seed=seed)) for seed in (0, 1)]
    epochs = [made[5 * epoch : 5 * epoch + 5] for made in steps for epoch in range(3)]
    orders = [[index for step in epoch for _, index in step] for epoch in epochs]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(set(map(tuple, orders))) == 6


@pytest.mark.parametrize("drop_last", [True, False])
def test_sampler_resumes_in_mid_epoch(drop_last: bool) -> None:
    whole = list(StepSampler(22, 4, epochs=3, seed=0, drop_last=drop_last))
    assert list(StepSampler(22, 4, epochs=3, seed=0, first_step=7, drop_last=drop_last)) == whole[7:]


@pytest.mark.parametrize(
    ("num_images", "steps"), [(12_811, 51), (128_116, 501), (437_513, 1710), (1_281_167, 5005), (512, 2), (513, 2)]
)
def test_a_kept_last_batch_gives_the_released_number_of_steps(num_images: int, steps: int) -> None:
    """1%, 10%, iNaturalist18 and ImageNet. One image alone is dropped: BatchNorm has no statistics of it."""
    assert StepSampler(num_images, 256, epochs=1, seed=0, drop_last=False).steps_per_epoch == steps


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_an_epoch_with_its_last_batch_has_every_image_whatever_the_number_of_ranks(world_size: int) -> None:
    shares = [
        list(StepSampler(27, 8, epochs=2, seed=3, rank=rank, world_size=world_size, drop_last=False))
        for rank in range(world_size)
    ]
    steps = [[index for share in step for _, index in share] for step in zip(*shares, strict=True)]
    assert [len(step) for step in steps[:4]] == [8, 8, 8, max(3, world_size)]
    sizes = [sorted(len(share) for share in step) for step in zip(*shares, strict=True)]
    assert sizes[3] == {1: [3], 2: [1, 2], 4: [1, 1, 1, 1]}[world_size]
    assert all(size[0] == size[-1] for size in sizes[:3])
    for epoch in (steps[:4], steps[4:]):
        order = [index for step in epoch for index in step]
        assert sorted(order[:27]) == list(range(27))
        assert order[27:] == order[: len(order) - 27]  # as torch's DistributedSampler fills up


def test_fewer_images_than_a_batch_is_a_user_error() -> None:
    with pytest.raises(UserError, match="fewer than one batch of 32"):
        StepSampler(20, 32, epochs=1, seed=0)


def test_batches_are_ordered_crop_by_crop(images: ImageList) -> None:
    dataset = MultiCropDataset(images, VIEWS, FULL, seed=0)
    samples = [dataset[(0, index)] for index in (4, 9)]
    batch = collate_multicrop(samples)
    assert [tuple(crops.shape) for crops in batch.crops] == [(4, 3, 32, 32), (6, 3, 16, 16)]
    assert torch.equal(batch.crops[0][2], samples[0][0][0][0][1])  # crop 1 of the first image
    assert batch.labels.tolist() == [images.labels[4], images.labels[9]]


def test_unreadable_image_is_reported_and_replaced(images: ImageList) -> None:
    whole = Path(images.paths[4]).read_bytes()
    Path(images.paths[4]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImage, match=images.paths[4]):
        read_image(images.paths[4])
    dataset = MultiCropDataset(images, VIEWS, FULL, seed=0)
    views, label, bad = dataset[(0, 4)]
    assert views[0][0].shape == (2, 3, 32, 32)
    assert label == images.labels[5]
    assert len(bad) == 1
    assert images.paths[4] in bad[0]
    assert not torch.equal(views[0][0], dataset[(0, 5)].views[0][0])  # the step does not have the same crops twice


def test_folder_without_images_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is missing"):
        read_image_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="contains no images"):
        read_image_folder(tmp_path)
