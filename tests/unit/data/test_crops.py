"""The multi-crop pipeline against torchvision, and its independence of workers and processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as reference

from reproduce.config import Augment, View
from reproduce.data import augment
from reproduce.data.batches import CentreCrops
from reproduce.data.crops import PARAMETERS, colour_parameters, generator, multi_crop, random_box, resized
from reproduce.data.loader import MultiCropDataset, StepSampler, collate_crops
from reproduce.data.pictures import BadImage, Pictures, read_folders, read_image
from reproduce.errors import UserError

BYTE = 1 / 255
FULL = Augment(0.5, [0.8, 0.8, 0.8, 0.2], 0.8, 0.2, 0.5, [0.1, 2.0])
VIEWS = [View(2, 32, [0.3, 1.0]), View(3, 16, [0.1, 0.3])]


def picture(seed: int, width: int = 60, height: int = 44) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    for number in range(12):
        folder = tmp_path / f"class{number % 3}"
        folder.mkdir(exist_ok=True)
        picture(number).save(folder / f"{number}.jpg")
    return read_folders(tmp_path)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


@pytest.mark.parametrize(
    ("ours", "theirs", "factor"),
    [
        (augment.adjust_brightness, reference.adjust_brightness, 1.6),
        (augment.adjust_brightness, reference.adjust_brightness, 0.3),
        (augment.adjust_contrast, reference.adjust_contrast, 1.7),
        (augment.adjust_contrast, reference.adjust_contrast, 0.2),
        (augment.adjust_saturation, reference.adjust_saturation, 1.8),
        (augment.adjust_saturation, reference.adjust_saturation, 0.4),
        (augment.adjust_hue, reference.adjust_hue, 0.17),
        (augment.adjust_hue, reference.adjust_hue, -0.2),
    ],
)
def test_each_operation_equals_torchvisions(ours, theirs, factor: float) -> None:  # type: ignore[no-untyped-def]
    x = torch.stack([as_tensor(picture(seed)) for seed in range(3)]).float() / 255
    expected = torch.stack([theirs(image, factor) for image in x])
    assert (ours(x, torch.full((3,), factor)) - expected).abs().max() <= BYTE


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_equals_torchvisions_inside_and_keeps_the_mean_at_the_edges(sigma: float) -> None:
    x = torch.stack([as_tensor(picture(seed, 40, 40)) for seed in range(2)]).float() / 255
    ours = augment.gaussian_blur(x, torch.tensor([sigma, 0.0]))
    reach = int(np.ceil(3 * sigma))
    expected = reference.gaussian_blur(x[:1], [2 * reach + 1] * 2, [sigma, sigma])
    inside = slice(reach, 40 - reach)
    assert (ours[:1] - expected)[..., inside, inside].abs().max() <= BYTE
    torch.testing.assert_close(ours[1], x[1], rtol=0, atol=0)
    torch.testing.assert_close(
        augment.gaussian_blur(torch.ones(1, 3, 8, 8), torch.tensor([sigma])), torch.ones(1, 3, 8, 8)
    )


def test_whole_augmentation_equals_torchvisions_in_each_pictures_own_order() -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.228, 0.224, 0.225])
    crops = torch.stack([as_tensor(picture(seed, 32, 32)) for seed in range(40)])
    rows = np.stack([colour_parameters(generator(0, 0, seed), FULL) for seed in range(40)])
    rows[:, PARAMETERS.index("blur")] = 0
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


def test_boxes_are_distributed_as_torchvisions() -> None:
    from scipy.stats import ks_2samp

    image, area = torch.zeros(3, 40, 70), [0.14, 0.6]
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, area, [3 / 4, 4 / 3]) for _ in range(4000)])
    boxes = [random_box(generator(0, 0, index), 70, 40, area) for index in range(4000)]
    ours = np.array([(top, left, bottom - top, right - left) for left, top, right, bottom in boxes])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


def test_a_crop_equals_torchvisions_resized_crop() -> None:
    image = picture(3)
    ours = torch.from_numpy(resized(image, (7, 5, 41, 33), 24).copy())
    expected = as_tensor(reference.resized_crop(image, 5, 7, 28, 34, [24, 24]))
    assert torch.equal(ours, expected)


def test_centre_crops_equal_torchvisions(pictures: Pictures) -> None:
    _, ours, _ = CentreCrops(pictures, 40, 32)[5]
    image = Image.open(pictures.paths[5]).convert("RGB")
    expected = as_tensor(reference.center_crop(reference.resize(image, 40), [32, 32]))
    assert ours is not None
    assert torch.equal(torch.from_numpy(ours.copy()), expected)


def test_parameters_stay_in_their_ranges_and_come_as_often_as_asked() -> None:
    rows = np.stack([colour_parameters(generator(1, 0, index), FULL) for index in range(3000)])
    jittered = (rows[:, 1:4] != 1).any(axis=1)
    assert abs(jittered.mean() - 0.8) < 0.03
    assert abs(rows[:, PARAMETERS.index("flip")].mean() - 0.5) < 0.04
    assert abs(rows[:, PARAMETERS.index("gray")].mean() - 0.2) < 0.03
    assert abs((rows[:, PARAMETERS.index("blur")] > 0).mean() - 0.5) < 0.04
    assert rows[:, 1:4].min() >= 0.2
    assert rows[:, 1:4].max() <= 1.8
    assert np.abs(rows[:, 4]).max() <= 0.2
    assert {tuple(order) for order in rows[:, 5:9].astype(int)} >= {(3, 2, 1, 0), (0, 1, 2, 3), (1, 3, 0, 2)}


def test_a_pictures_crops_depend_on_seed_epoch_and_index_only() -> None:
    def drawn(*key: int) -> bytes:
        return multi_crop(picture(0), VIEWS, FULL, generator(*key))[0][0].tobytes()

    assert drawn(0, 1, 2) == drawn(0, 1, 2)
    assert len({drawn(0, 1, 2), drawn(1, 1, 2), drawn(0, 2, 2), drawn(0, 1, 3)}) == 4


def test_processes_share_a_step_as_one_process_makes_it() -> None:
    alone = list(StepSampler(20, 4, epochs=2, seed=3))
    shares = [list(StepSampler(20, 4, epochs=2, seed=3, rank=rank, world_size=2)) for rank in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == alone
    assert sorted(index for step in alone[:5] for _, index in step) == list(range(20))


def test_a_resumed_sampler_goes_on_in_the_middle_of_an_epoch() -> None:
    whole = list(StepSampler(20, 4, epochs=3, seed=0))
    assert list(StepSampler(20, 4, epochs=3, seed=0, first_step=7)) == whole[7:]


def test_fewer_pictures_than_a_batch_is_an_error() -> None:
    with pytest.raises(UserError, match="fewer than one batch of 32"):
        StepSampler(20, 32, epochs=1, seed=0)


def test_batches_are_ordered_crop_by_crop(pictures: Pictures) -> None:
    dataset = MultiCropDataset(pictures, VIEWS, FULL, seed=0)
    samples = [dataset[(0, index)] for index in (4, 9)]
    batch = collate_crops(samples)
    assert [tuple(crops.shape) for crops in batch.crops] == [(4, 3, 32, 32), (6, 3, 16, 16)]
    assert torch.equal(batch.crops[0][2], torch.from_numpy(samples[0][0][0][0][1]))  # crop 1 of the first picture
    assert batch.labels.tolist() == [pictures.labels[4], pictures.labels[9]]


def test_a_picture_that_cannot_be_read_is_named_and_replaced(pictures: Pictures) -> None:
    whole = Path(pictures.paths[4]).read_bytes()
    Path(pictures.paths[4]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImage, match=pictures.paths[4]):
        read_image(pictures.paths[4])
    views, label, bad = MultiCropDataset(pictures, VIEWS, FULL, seed=0)[(0, 4)]
    assert views[0][0].shape == (2, 3, 32, 32)
    assert label == pictures.labels[5]
    assert len(bad) == 1
    assert pictures.paths[4] in bad[0]


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        read_folders(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no pictures"):
        read_folders(tmp_path)
