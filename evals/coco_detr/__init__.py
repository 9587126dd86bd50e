"""Finetuning of DETR on COCO from a trunk (B.4, Table 5; Table 3's last column)."""

from evals.coco_detr.protocol import ProtocolConfig, estimate_memory, evaluate

__all__ = ["ProtocolConfig", "estimate_memory", "evaluate"]
