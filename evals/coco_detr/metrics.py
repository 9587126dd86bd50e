"""Average precision by COCO's own code, and example images with true and predicted boxes for the report."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from reproduce.data.datasets.coco import CocoSplit
from reproduce.engine.runs.detection_examples import DetectionExample, ExampleBox, example_indices

METRICS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")
"""The first six of COCO's twelve numbers: AP over IoU .5 to .95, at .5, at .75; AP of small, medium, large objects."""


def average_precision(
    ground_truth: dict[str, Any], detections: np.ndarray, image_ids: Sequence[int]
) -> dict[str, float]:
    """Return `METRICS` in percent over the images `image_ids` of `ground_truth`, the content of a COCO JSON.

    `detections (n, 7)`: image id, left, top, width, height in pixels, score, category id. A metric of a size without
    objects is left out.
    """
    if not len(detections):
        return dict.fromkeys(METRICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = COCO()
        coco.dataset = ground_truth
        coco.createIndex()
        coco_eval = COCOeval(coco, coco.loadRes(detections), "bbox")
        coco_eval.params.imgIds = sorted(image_ids)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    values = zip(METRICS, coco_eval.stats.tolist(), strict=False)
    return {name: 100 * value for name, value in values if value >= 0}


def detection_examples(split: CocoSplit, image_ids: Sequence[int], detections: np.ndarray) -> list[DetectionExample]:
    """Return a few of the images `image_ids` with their true boxes and those of `detections`, for the report."""
    image_of = {image.id: image for image in split.images}
    examples = []
    for image in (image_of[image_ids[number]] for number in example_indices(len(image_ids))):
        predicted = [
            ExampleBox(split.category_names.get(int(label), "none"), (left, top, left + width, top + height), score)
            for _, left, top, width, height, score, label in detections[detections[:, 0] == image.id].tolist()
        ]
        true_boxes = zip(image.boxes.tolist(), image.labels.tolist(), strict=True)
        truth = [ExampleBox(split.category_names[label], tuple(box)) for box, label in true_boxes]
        examples.append(DetectionExample(image.path, predicted, truth))
    return examples
