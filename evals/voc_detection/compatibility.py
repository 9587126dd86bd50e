"""Import Detectron2, whichever build of it is installed.

The CUDA image has the official build. Elsewhere it is version 0.6's Python sources alone (requirements/detectron2.txt),
which need, before they are imported:

- a module `detectron2._C`, which may be empty: ROIAlign and NMS come from torchvision, and the other compiled code
  (deformable convolution, rotated boxes, the fast COCO evaluation) is not used here;
- `PIL.Image.LINEAR`, which is BILINEAR today;
- a `comm.gather` without torch's byte storages, which were removed;
- no warning about torch's old `meshgrid`, whose result has not changed.

Either build reads images by our own `read_image`: its own turns those with an EXIF orientation, away from the boxes of
VOC, and reads 16-bit files as white.

Import Detectron2 from here only.
"""

import importlib.util
import logging
import sys
import types
import warnings
from typing import Any

import numpy as np
import PIL.Image
import torch.distributed as dist

from reproduce.data.datasets import image_file
from reproduce.engine.batchnorm import CpuSyncBatchNorm
from reproduce.engine.distributed.collectives import world_size


def _gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """Return the objects of all ranks on rank `dst`, [] on the others, as Detectron2's current version does."""
    if world_size() == 1:
        return [data]
    gathered: list[Any] | None = [None] * world_size() if dist.get_rank() == dst else None
    dist.gather_object(data, gathered, dst, group)
    return gathered or []


def _read_image(file_name: str, format: str) -> np.ndarray:
    """Return a file's pixels `(H, W, 3)` uint8, as `DatasetMapper` asks for them: "BGR" or "RGB"."""
    pixels = np.asarray(image_file.read_image(file_name))
    return pixels[:, :, ::-1] if format == "BGR" else pixels


OFFICIAL: bool = importlib.util.find_spec("detectron2._C") is not None
if not OFFICIAL:
    sys.modules["detectron2._C"] = types.ModuleType("detectron2._C")
    if not hasattr(PIL.Image, "LINEAR"):
        PIL.Image.LINEAR = PIL.Image.Resampling.BILINEAR  # type: ignore[attr-defined]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fvcore compiles functions by torch.jit, which is deprecated
    from detectron2 import __version__
    from detectron2.config import CfgNode, get_cfg
    from detectron2.data import DatasetMapper, MetadataCatalog, detection_utils
    from detectron2.engine import HookBase, SimpleTrainer
    from detectron2.engine.hooks import LRScheduler
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.evaluation.pascal_voc_evaluation import voc_ap
    from detectron2.layers import get_norm
    from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, build_model
    from detectron2.modeling.roi_heads import Res5ROIHeads
    from detectron2.solver import build_lr_scheduler, build_optimizer
    from detectron2.structures import Boxes, BoxMode, Instances
    from detectron2.utils import comm
    from detectron2.utils.events import EventStorage
    from fvcore.nn import precise_bn

BUILD = f"{__version__}, {'official build' if OFFICIAL else 'Python sources only'}"

if not OFFICIAL:
    comm.gather = _gather
    warnings.filterwarnings("ignore", "torch.meshgrid")
detection_utils.read_image = _read_image
logging.getLogger("detectron2.engine.train_loop").setLevel(logging.CRITICAL)  # a run reports its errors itself
precise_bn.BN_MODULE_TYPES = (*precise_bn.BN_MODULE_TYPES, CpuSyncBatchNorm)
"""fvcore's list of modules with BatchNorm statistics, extended by ours for several processes on a CPU."""

__all__ = [
    "BUILD",
    "META_ARCH_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "BoxMode",
    "Boxes",
    "CfgNode",
    "DatasetMapper",
    "EventStorage",
    "HookBase",
    "Instances",
    "LRScheduler",
    "MetadataCatalog",
    "PascalVOCDetectionEvaluator",
    "Res5ROIHeads",
    "SimpleTrainer",
    "build_lr_scheduler",
    "build_model",
    "build_optimizer",
    "get_cfg",
    "get_norm",
    "precise_bn",
    "voc_ap",
]
