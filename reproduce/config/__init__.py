"""The config of a run: `schema` defines it, `compose` builds it, `validate` checks it, `identity` names the run."""

from typing import Literal

RunKind = Literal["pretrain", "evaluate", "measure"]
"""What a run does. Each kind has its own entry point, `reproduce.<kind>`, and its own root config."""
DETECTORS = ("coco_detr", "voc_detection")
"""Protocols that train a detector on the stages of a ResNet, and draw at random on each rank."""
