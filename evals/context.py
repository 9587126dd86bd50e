"""What every evaluation is given besides the trunk: its run, config and dataset."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from reproduce.config.schema import Normalize
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.image_folder import ImageList, read_train_and_val
from reproduce.data.pipeline.center_crop import INTERPOLATIONS
from reproduce.engine.distributed.collectives import is_main
from reproduce.engine.preemption import Preemption
from reproduce.engine.runs.run import Run
from reproduce.errors import UserError, did_you_mean


@dataclass
class CenterCropConfig:
    """The test-time pipeline: resize the shorter side to `resize_px`, cut the central `crop_px`.

    `interpolation` is a key of `INTERPOLATIONS`. Raises `UserError` for an unknown one.
    """

    resize_px: int
    crop_px: int
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            hint = did_you_mean(self.interpolation, INTERPOLATIONS)
            raise UserError(f"unknown protocol.center_crop.interpolation {self.interpolation!r}: {hint}")


class EvalContext:
    """The evaluation's run, its resolved config `cfg`, and the config's dataset, located and checked.

    `load_projection_head()` returns the checkpoint's head, and raises `UserError` if there is none.
    """

    def __init__(self, run: Run, preemption: Preemption, load_projection_head: Callable[[], nn.Module]) -> None:
        self.run, self.cfg, self.preemption = run, run.cfg, preemption
        self.load_projection_head = load_projection_head
        self.dataset = run.dataset
        self.normalize = to_dataclass(run.cfg.normalize, Normalize, "normalize")
        self.root = run.dataset_root

    def train_and_val(self) -> tuple[ImageList, ImageList]:
        """Read the training and validation images of a dataset in classes, and record both splits in the result."""
        train, val = read_train_and_val(self.root, self.dataset)
        for split, images in ((self.dataset.train, train), (self.dataset.val, val)):
            self.run.record_split(split, images)
        return train, val

    def lr_scale(self, batch_size: int, base_batch_size: int) -> float:
        """Return `batch_size / base_batch_size`, the factor of a protocol's learning rates; record it if it is not 1.

        `base_batch_size` is the batch size that the learning rates are for.
        """
        scale = batch_size / base_batch_size
        if scale != 1:
            note = f"learning rates x {scale:g}: batch {batch_size} in place of the protocol's {base_batch_size}"
            self.run.provenance["lr_scaled"] = note
            if is_main():
                print(note, flush=True)
        return scale
