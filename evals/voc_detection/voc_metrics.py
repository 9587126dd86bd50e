"""Detectron2's evaluation of VOC (11-point AP, AP50 and AP75) on our ground truth."""

import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from evals.voc_detection.compatibility import MetadataCatalog, PascalVOCDetectionEvaluator
from reproduce.data.datasets.voc import CORNER_TAGS, VOC_CLASSES, VocImage
from reproduce.engine.distributed.collectives import is_main

METRICS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}


class VocEvaluator:
    """Collects the detections of all ranks; rank 0 gets the metrics."""

    def __init__(self, images: list[VocImage], folder: Path) -> None:
        """Write images and boxes to `folder` in VOC's format, from which Detectron2 reads the ground truth."""
        self._scored_classes = {box.label for image in images for box in image.boxes if not box.difficult}
        if is_main():
            _write_ground_truth(images, folder)
        self._name = str(folder)
        MetadataCatalog.get(self._name).set(
            thing_classes=list(VOC_CLASSES),
            dirname=str(folder),
            split="test",
            year=2007,  # 2007: 11 points
        )
        self._evaluator = PascalVOCDetectionEvaluator(self._name)
        self._evaluator.reset()
        self.process = self._evaluator.process

    @property
    def num_classes_scored(self) -> int:
        """The number of classes with an object in the test set that is not difficult: all 20 in VOC07."""
        return len(self._scored_classes)

    def metrics(self) -> dict[str, float]:
        """Return `ap`, `ap50` and `ap75` in percent on rank 0, {} on the others. A collective.

        Detectron2 counts classes without an object as 0; here they are left out of the mean.
        """
        with np.errstate(invalid="ignore"):  # recall of a class without an object is 0 / 0
            results = self._evaluator.evaluate()
        MetadataCatalog.remove(self._name)
        if results is None:
            return {}
        share = self.num_classes_scored / len(VOC_CLASSES)
        return {name: float(results["bbox"][key]) / share for name, key in METRICS.items()}


@contextmanager
def voc_evaluator(images: list[VocImage]) -> Iterator[VocEvaluator]:
    """Yield a `VocEvaluator` in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="voc-") as folder:
        yield VocEvaluator(images, Path(folder))


def _write_ground_truth(images: list[VocImage], root: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Main" / "test.txt").write_text("".join(f"{image.key}\n" for image in images))
    for image in images:
        annotation = ElementTree.Element("annotation")
        for box in image.boxes:
            node = ElementTree.SubElement(annotation, "object")
            left, top, right, bottom = box.corners
            fields = {
                "name": VOC_CLASSES[box.label],
                "pose": "Unspecified",
                "truncated": 0,
                "difficult": int(box.difficult),
            }
            for key, value in fields.items():
                ElementTree.SubElement(node, key).text = str(value)
            corners = ElementTree.SubElement(node, "bndbox")
            # VOC counts pixels from one and includes both ends.
            for key, corner in zip(CORNER_TAGS, (left + 1, top + 1, right, bottom), strict=True):
                ElementTree.SubElement(corners, key).text = str(round(corner))
        (root / "Annotations" / f"{image.key}.xml").write_bytes(ElementTree.tostring(annotation))
