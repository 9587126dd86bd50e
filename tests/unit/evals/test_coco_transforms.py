"""Boxes go with their pictures; COCO's average precision of hand-made detections is the known one."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evals.coco_detr.metrics import average_precision, detection_examples
from evals.coco_detr.transforms import (
    Sample,
    TransformConfig,
    augment,
    collate,
    crop,
    flip,
    normalize_and_mask,
    resize,
    target_size,
)
from reproduce.config.schema import Normalize
from reproduce.data.datasets.coco import CocoImage, CocoSplit
from reproduce.engine.runs.detection_examples import DetectionExample, ExampleBox

VIEWS = TransformConfig([48, 64], 64, 100, 0.5, [60, 80], [40, 60])


def drawn(width: int, height: int, *boxes: tuple[int, int, int, int]) -> tuple[Image.Image, np.ndarray]:
    """A black picture with white boxes, and the boxes."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels), np.array(boxes, dtype=np.float32).reshape(-1, 4)


def seen_box(image: Image.Image) -> list[int]:
    """Where a picture is white."""
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(
    ("size", "shorter", "longest", "expected"),
    [
        ((640, 480), 800, 1333, (1066, 800)),
        ((480, 640), 800, 1333, (800, 1066)),
        ((1000, 300), 800, 1333, (1333, 400)),  # 800 would make the longer side 2666
        ((300, 300), 800, 1333, (800, 800)),
        ((640, 480), 400, None, (533, 400)),
    ],
)
def test_sizes_are_the_originals(
    size: tuple[int, int], shorter: int, longest: int | None, expected: tuple[int, int]
) -> None:
    assert target_size(*size, shorter, longest) == expected


def test_boxes_go_with_flip_resize_and_crop() -> None:
    image, boxes = drawn(60, 40, (10, 5, 30, 25))
    mirrored, moved = flip(image, boxes)
    assert seen_box(mirrored) == moved[0].tolist() == [30, 5, 50, 25]
    larger, scaled = resize(image, boxes, (120, 120))
    assert scaled[0].tolist() == [20, 15, 60, 75]
    assert seen_box(larger) == [20, 15, 60, 75]
    part, cut, kept = crop(image, np.array([*boxes, [0, 0, 9, 9]], dtype=np.float32), (20, 10, 50, 40))
    assert part.size == (30, 30)
    assert seen_box(part) == cut[0].tolist() == [0, 0, 10, 15]
    assert kept.tolist() == [True, False]


def test_a_training_view_shows_its_boxes_and_keeps_within_its_sizes() -> None:
    image, boxes = drawn(96, 72, (20, 16, 70, 60))
    labels, shapes, flips, crops = np.array([4]), set(), 0, 0
    for number in range(60):
        seen = augment(image, boxes, labels, VIEWS, np.random.default_rng(number))
        height, width = seen.pixels.shape[1:]
        shapes.add(min(height, width))
        assert max(height, width) <= VIEWS.max_size_px
        assert seen.labels.tolist() == [4]
        expected = seen_box(Image.fromarray(seen.pixels.transpose(1, 2, 0)))
        assert seen.boxes[0] == pytest.approx(expected, abs=1.5)  # resampled edges are soft
        crops += (width, height) not in ((64, 48), (85, 64))
        flips += seen.boxes[0, 0] > width - seen.boxes[0, 2]
    assert {48, 64} <= shapes
    assert 15 < crops < 45
    assert 0 < flips < 60


def test_a_batch_is_padded_and_boxes_are_shares_of_the_picture() -> None:
    one = Sample(np.full((3, 4, 8), 255, dtype=np.uint8), np.array([[2, 1, 6, 3]], dtype=np.float32), np.array([7]))
    two = Sample(
        np.full((3, 6, 5), 255, dtype=np.uint8), np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    )
    batch = collate([(one, []), (two, ["bad"])])
    assert batch.pixels.shape == (2, 3, 6, 8)
    assert (~batch.padding).sum((1, 2)).tolist() == [32, 30]
    assert torch.equal(batch.pixels[:, 0] == 0, batch.padding)
    assert batch.targets[0].boxes.tolist() == [[0.5, 0.5, 0.5, 0.5]]
    assert (batch.targets[0].labels.tolist(), len(batch.targets[1].boxes), batch.unreadable) == ([7], 0, ["bad"])
    x = normalize_and_mask(batch.pixels, batch.padding, Normalize([0.5] * 3, [0.25] * 3))
    assert x[0, 0, 0].tolist() == [2.0] * 8
    assert not x.masked_select(batch.padding[:, None].expand_as(x)).any()  # zero after, not before, normalising


def truth(*boxes: tuple[int, list[float], int]) -> dict[str, Any]:
    annotations = [
        {"id": n, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for n, (image, box, crowd) in enumerate(boxes, start=1)
    ]
    images = [{"id": image} for image in sorted({image for image, _, _ in boxes})]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}


def row(image: int, box: list[float], score: float) -> list[float]:
    return [image, *box, score, 1]


def test_average_precision_of_detections_by_hand() -> None:
    """Two objects. One is found exactly, one at IoU 0.6 (3 of 10 thresholds: .5, .55, .6), each at two sizes."""
    objects = truth((1, [0, 0, 20, 20], 0), (2, [0, 0, 50, 50], 0))
    exact, loose = row(1, [0, 0, 20, 20], 0.9), row(2, [0, 0, 50, 30], 0.8)
    found = average_precision(objects, np.array([exact, loose]), [1, 2])
    # COCO's AP averages precision at recalls 0, .01 to 1: 51 of 101 lie at or below one half.
    half = 51 / 101
    assert found["ap50"] == pytest.approx(100)
    assert found["ap75"] == pytest.approx(100 * half)
    assert found["ap"] == pytest.approx(100 * (3 + 7 * half) / 10)
    assert found["ap_s"] == pytest.approx(100)
    assert found["ap_m"] == pytest.approx(30)
    assert "ap_l" not in found  # there is no large object


def test_a_wrong_box_with_a_higher_score_costs_precision_and_a_crowd_costs_none() -> None:
    objects = truth((1, [0, 0, 50, 50], 0), (1, [100, 100, 80, 80], 1))
    right, wrong, in_crowd = row(1, [0, 0, 50, 50], 0.5), row(1, [300, 0, 50, 50], 0.9), row(1, [110, 110, 40, 40], 0.8)
    assert average_precision(objects, np.array([right, wrong, in_crowd]), [1])["ap"] == pytest.approx(50)
    assert average_precision(objects, np.array([right, in_crowd]), [1])["ap"] == pytest.approx(100)


def test_pictures_that_were_not_seen_do_not_count_and_nothing_found_is_zero() -> None:
    objects = truth((1, [0, 0, 50, 50], 0), (2, [0, 0, 50, 50], 0))
    right = np.array([row(1, [0, 0, 50, 50], 0.5)])
    assert average_precision(objects, right, [1])["ap"] == pytest.approx(100)
    assert average_precision(objects, right, [1, 2])["ap"] == pytest.approx(100 * 51 / 101)
    assert average_precision(objects, np.zeros((0, 7)), [1, 2])["ap"] == 0


def test_a_few_pictures_are_shown_with_true_and_predicted_boxes() -> None:
    picture = CocoImage(5, "a.jpg", 60, 40, np.array([[1, 2, 11, 22]], dtype=np.float32), np.array([1]))
    detections = np.array([row(5, [1, 2, 10, 20], 0.3), row(5, [0, 0, 5, 5], 0.7), row(6, [0, 0, 5, 5], 0.9)])
    predicted = [ExampleBox("cat", (1, 2, 11, 22), 0.3), ExampleBox("cat", (0, 0, 5, 5), 0.7)]
    (found,) = detection_examples(CocoSplit([picture], {1: "cat"}, {}, ""), [5], detections)
    assert found == DetectionExample("a.jpg", predicted, [ExampleBox("cat", (1, 2, 11, 22))])
