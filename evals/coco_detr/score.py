"""Average precision by COCO's own code, and a few test pictures with their boxes for people to look at."""

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
"""The first of COCO's twelve numbers: over IoU .5 to .95, at .5, at .75; and of small, medium and large objects."""


def average_precision(truth: dict[str, Any], detections: np.ndarray, image_ids: Sequence[int]) -> dict[str, float]:
    """`METRICS` in percent over some of the pictures of `truth`, the content of a COCO JSON.

    `detections (n, 7)`: image id, left, top, width, height in pixels, score, category id. A size of which there is no
    object is left out.
    """
    if not len(detections):
        return dict.fromkeys(METRICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        scoring = COCOeval(coco, coco.loadRes(detections), "bbox")
        scoring.params.imgIds = sorted(image_ids)
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    values = zip(METRICS, scoring.stats.tolist(), strict=False)
    return {name: 100 * value for name, value in values if value >= 0}


def shown(split: CocoSplit, image_ids: Sequence[int], detections: np.ndarray) -> list[DetectionExample]:
    """A few of the pictures `image_ids`, with their true boxes and those of `detections`, for people to look at."""
    known = {picture.id: picture for picture in split.images}
    drawn = []
    for picture in (known[image_ids[number]] for number in example_indices(len(image_ids))):
        found = detections[detections[:, 0] == picture.id].tolist()
        predicted = [
            ExampleBox(split.category_names.get(int(label), "none"), (left, top, left + width, top + height), score)
            for _, left, top, width, height, score, label in found
        ]
        truth = zip(picture.boxes.tolist(), picture.labels.tolist(), strict=True)
        drawn.append(
            DetectionExample(
                picture.path, predicted, [ExampleBox(split.category_names[label], tuple(box)) for box, label in truth]
            )
        )
    return drawn
