"""Compare the statistics of whole multi-crop batches, from files to normalized crops, with torchvision's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision import transforms

from reproduce.config.schema import Augment, Crops, Normalize, View
from reproduce.data.datasets.image_folder import read_image_folder
from reproduce.data.pipeline.dataloader import multicrop_batches
from reproduce.data.pipeline.multicrop import AUGMENT_PARAMETERS, draw_augment_parameters
from reproduce.data.pipeline.sampler import StepSampler, rng_for

FULL = Augment(0.5, [0.8, 0.8, 0.8, 0.2], 0.8, 0.2, 0.5, [0.1, 2.0])
AREA, SIZE_PX, NUM_PICTURES, NUM_EPOCHS = [0.14, 1.0], 32, 8, 75


def statistics(crops: torch.Tensor) -> dict[str, np.ndarray]:
    """Return, per crop `(n, 3, S, S)`, what color jitter, grayscale, cropping and blur change."""
    high, low = crops.amax(1), crops.amin(1)
    return {
        "brightness": crops.mean((1, 2, 3)).numpy(),
        "contrast": crops.mean(1).std((1, 2)).numpy(),
        "saturation": (high - low).mean((1, 2)).numpy(),
        "share of red": (crops[:, 0].mean((1, 2)) - crops[:, 2].mean((1, 2))).numpy(),
        "detail": crops.diff(dim=3).abs().mean((1, 2, 3)).numpy(),
        "which side is lighter": crops.mean(1).diff(dim=2).mean((1, 2)).numpy(),
    }


def test_crop_statistics_equal_torchvisions(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((72, 54), Image.Resampling.BICUBIC).save(tmp_path / "only" / f"{number}.png")
    image_list = read_image_folder(tmp_path)
    batches = multicrop_batches(
        image_list, Crops("", [View(1, SIZE_PX, AREA)], FULL), Normalize([0.0] * 3, [1.0] * 3),
        StepSampler(NUM_PICTURES, NUM_PICTURES, NUM_EPOCHS, seed=0),
        num_workers=0, device=torch.device("cpu"), on_unreadable=lambda _: None,
    )  # fmt: skip
    ours = torch.cat([crops for (crops,), _ in batches])

    torch.manual_seed(0)
    # PIL's radius, the reference's, is a standard deviation; a kernel of 13 ends at three of the largest.
    blur = [transforms.GaussianBlur(13, (0.1, 2.0))]
    theirs_of = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE_PX, AREA),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(*FULL.color_jitter)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
            transforms.RandomApply(blur, 0.5),
        ]
    )
    images = [Image.open(path).convert("RGB") for path in image_list.paths]
    theirs = torch.stack([theirs_of(image) for _ in range(NUM_EPOCHS) for image in images])
    assert ours.shape == theirs.shape == (NUM_PICTURES * NUM_EPOCHS, 3, SIZE_PX, SIZE_PX)
    expected = statistics(theirs)
    for name, values in statistics(ours).items():
        assert ks_2samp(values, expected[name]).pvalue > 1e-2, name


def test_jitter_distribution_equals_torchvisions() -> None:
    """Compare each factor, the order of operations and the blur's sigma, by Kolmogorov-Smirnov or by counts."""
    torch.manual_seed(0)
    brightness, contrast, saturation, hue = FULL.color_jitter
    ranges = ([1 - brightness, 1 + brightness], [1 - contrast, 1 + contrast], [1 - saturation, 1 + saturation])
    theirs = [transforms.ColorJitter.get_params(*ranges, [-hue, hue]) for _ in range(3000)]
    rows = np.stack([draw_augment_parameters(rng_for(0, 0, index), FULL) for index in range(4000)])
    jittered = rows[(rows[:, 1:5] != (1, 1, 1, 0)).any(axis=1)]
    assert len(jittered) / len(rows) == pytest.approx(0.8, abs=0.02)
    for number, name in enumerate(("brightness", "contrast", "saturation", "hue"), start=1):
        drawn = np.array([float(row[number]) for row in theirs])
        assert ks_2samp(jittered[:, AUGMENT_PARAMETERS.index(name)], drawn).pvalue > 1e-2, name
    first, last = AUGMENT_PARAMETERS.index("order0"), AUGMENT_PARAMETERS.index("order3")
    orders = [tuple(order) for order in jittered[:, first : last + 1].astype(int).tolist()]
    counts = np.array([orders.count(order) for order in sorted(set(orders))])
    assert len(counts) == 24
    expected = len(orders) / 24
    assert ((counts - expected) ** 2 / expected).sum() < 49.7  # chi-squared of 23 degrees of freedom at .001
    radii = rows[:, AUGMENT_PARAMETERS.index("blur")]
    blurs = np.array([transforms.GaussianBlur.get_params(0.1, 2.0) for _ in range(3000)])
    assert ks_2samp(radii[radii > 0], blurs).pvalue > 1e-2
