"""What every evaluation is given besides the trunk: its run, config and dataset."""

from dataclasses import dataclass

from reproduce.config.schema import Dataset, Normalize
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.image_folder import ImageList, read_train_and_val
from reproduce.engine.distributed.collectives import is_main
from reproduce.engine.preemption import Preemption
from reproduce.engine.runs.run import Run


@dataclass
class CenterCropConfig:
    """The test-time pipeline: resize the shorter side to `resize_px`, cut the central `crop_px`."""

    resize_px: int
    crop_px: int


class EvalContext:
    """The evaluation's run, its resolved config `cfg`, and the config's dataset, located and checked."""

    def __init__(self, run: Run, preemption: Preemption) -> None:
        self.run, self.cfg, self.preemption = run, run.cfg, preemption
        self.dataset = to_dataclass(run.cfg.dataset, Dataset, "dataset")
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
