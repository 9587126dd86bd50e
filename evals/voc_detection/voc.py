"""Detectron2's evaluation of VOC (AP, AP50 and AP75, each by 11 points) on ground truth of ours."""

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


class Evaluator:
    """Takes detections of any rank's pictures; the main rank gets the metrics."""

    def __init__(self, pictures: list[VocImage], folder: Path) -> None:
        """Give Detectron2 the test set as files: the pictures and boxes that count, and nothing of what is broken."""
        self._judged = {box.label for picture in pictures for box in picture.boxes if not box.difficult}
        if is_main():
            _write(pictures, folder)
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
    def num_classes_judged(self) -> int:
        """Classes that have an object in the test set that is not difficult: all 20 of VOC07."""
        return len(self._judged)

    def metrics(self) -> dict[str, float]:
        """`ap`, `ap50` and `ap75` in percent, on the main rank; {} on others. A collective.

        Detectron2 counts classes without an object as 0; they are left out of the mean here.
        """
        with np.errstate(invalid="ignore"):  # recall of a class without an object is 0 / 0
            found = self._evaluator.evaluate()
        MetadataCatalog.remove(self._name)
        if found is None:
            return {}
        share = self.num_classes_judged / len(VOC_CLASSES)
        return {name: float(found["bbox"][theirs]) / share for name, theirs in METRICS.items()}


@contextmanager
def evaluator(pictures: list[VocImage]) -> Iterator[Evaluator]:
    """An `Evaluator` whose files are there as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="voc-") as folder:
        yield Evaluator(pictures, Path(folder))


def _write(pictures: list[VocImage], root: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Main" / "test.txt").write_text("".join(f"{picture.name}\n" for picture in pictures))
    for picture in pictures:
        annotation = ElementTree.Element("annotation")
        for box in picture.boxes:
            node = ElementTree.SubElement(annotation, "object")
            left, top, right, bottom = box.corners
            about = {
                "name": VOC_CLASSES[box.label],
                "pose": "Unspecified",
                "truncated": 0,
                "difficult": int(box.difficult),
            }
            for key, value in about.items():
                ElementTree.SubElement(node, key).text = str(value)
            corners = ElementTree.SubElement(node, "bndbox")
            # VOC counts pixels from one and includes both ends.
            for key, corner in zip(CORNER_TAGS, (left + 1, top + 1, right, bottom), strict=True):
                ElementTree.SubElement(corners, key).text = str(round(corner))
        (root / "Annotations" / f"{picture.name}.xml").write_bytes(ElementTree.tostring(annotation))
