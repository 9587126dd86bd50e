"""Finetuning of Faster R-CNN on VOC07+12 in Detectron2 (B.4, Tables 3 and 4)."""

from evals.voc_detection.protocol import ProtocolConfig, estimate_memory, evaluate

__all__ = ["ProtocolConfig", "estimate_memory", "evaluate"]
