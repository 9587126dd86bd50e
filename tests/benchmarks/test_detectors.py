"""A training step of each detector, at the paper's sizes but one or two pictures, and its share of the peak."""

import time
from collections.abc import Callable

import pytest
import torch

from tests.benchmarks.detector_steps import detr_step, faster_rcnn_step
from tests.benchmarks.share import shares_of_peak

HEIGHT, WIDTH = 480, 640


@pytest.mark.parametrize(("make", "num_images"), [(detr_step, 2), (faster_rcnn_step, 1)], ids=["detr", "c4"])
@pytest.mark.benchmark(timer=time.process_time)
def test_detector(
    seconds: Callable[..., float],
    tell: Callable[..., None],
    make: Callable[[int, int, int], Callable[[], None]],
    num_images: int,
) -> None:
    torch.manual_seed(0)
    step = make(num_images, HEIGHT, WIDTH)
    taken = seconds(step)
    tell(seconds=taken, **shares_of_peak(step, taken, torch.float32))
