"""Average precision by COCO's own code, and a few test pictures with their boxes for people to look at."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from reproduce.data.coco import Split
from reproduce.files import write_json

METRICS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")
"""The first of COCO's twelve numbers: over IoU .5 to .95, at .5, at .75; and of small, medium and large objects."""
NUM_EXAMPLES = 6
NUM_BOXES_SHOWN = 10
"""Of one example, those with the highest scores."""


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


def write_examples(path: Path, split: Split, detections: np.ndarray) -> None:
    """Write the first few pictures of a split with their true and predicted boxes, corners in pixels, as JSON."""
    examples = []
    for picture in split.pictures[:NUM_EXAMPLES]:
        found = detections[detections[:, 0] == picture.id]
        best = found[np.argsort(-found[:, 5], kind="stable")][:NUM_BOXES_SHOWN]
        best[:, 3:5] += best[:, 1:3]
        truth = zip(picture.boxes.tolist(), picture.labels.tolist(), strict=True)
        examples.append(
            {
                "picture": picture.path,
                "width": picture.width,
                "height": picture.height,
                "truth": [{"box": box, "label": split.names[label]} for box, label in truth],
                "predicted": [
                    {"box": row[1:5], "label": split.names.get(int(row[6]), "none"), "score": row[5]}
                    for row in best.tolist()
                ],
            }
        )
    write_json(path, {"examples": examples})
