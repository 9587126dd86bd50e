"""Published facts that costs are estimated from: tables/costs.yaml, and the times that the paper prints."""

import re
from dataclasses import dataclass

from reproduce.harness.spec import tables
from reproduce.harness.spec.tables import Table
from reproduce.typed_yaml import load_yaml

REFERENCE_GPU = "V100"
"""The paper's GPU, which all published and estimated hours are for."""
REFERENCE_CROPS = "2x224+6x96"
"""The crops whose published training time is scaled to estimate those of others."""


@dataclass(frozen=True)
class GpuSpeed:
    """How many times as fast as `REFERENCE_GPU` a GPU is, and how that is known."""

    speedup: float
    source: str


@dataclass(frozen=True)
class Throughput:
    """Images per second in the forward pass of a ResNet-50 of width 1, on `REFERENCE_GPU`."""

    images_per_second: float
    source: str


@dataclass(frozen=True)
class CpuSpeed:
    """Pixels of crops per second, of one process on a CPU, for a scale's trunk of this width."""

    training: float
    evaluation: float
    """Forward pass only, but with reading and augmenting images."""
    width: float
    source: str


@dataclass(frozen=True)
class FinetuningTime:
    """Wall-clock hours of an evaluation that trains a whole network, on `REFERENCE_GPU`."""

    hours: float
    num_gpus: int
    epochs: float
    source: str


@dataclass(frozen=True)
class DatasetSize:
    """The size of a data set, unpacked."""

    num_train: int
    num_val: int
    gb: float

    @property
    def num_images(self) -> int:
        """The number of images of both splits."""
        return self.num_train + self.num_val


@dataclass(frozen=True)
class CostFacts:
    """The content of `tables/costs.yaml`, which explains its keys."""

    gpus: dict[str, GpuSpeed]
    images_per_gpu: dict[str, int]
    forward: Throughput
    cpu: dict[str, CpuSpeed]
    """By scale."""
    evaluations: dict[str, str]
    trainings: dict[str, FinetuningTime]
    trunk_weights_millions: float
    log_gb: float
    data: dict[str, DatasetSize]


def load() -> CostFacts:
    """Load the facts. Raises `UserError` for an error in their file."""
    facts: CostFacts = load_yaml(CostFacts, tables.TABLES_DIR / "costs.yaml")
    return facts


def printed_time(table: Table, method: str, variant: str, column: str) -> tuple[float, str] | None:
    """Return the time of a recipe in a table of the paper, in the column's unit and as printed, or None."""
    for row in table.rows:
        same = re.sub(r"\W", "", row.method.lower()) == re.sub(r"\W|_", "", method)
        value = tables.parse_printed(row.cells.get(column))
        if same and row.variant == variant and value is not None:
            return value, str(row.cells[column])
    return None


def num_pixels(crops: str) -> int:
    """Return the number of pixels of crops by their name, such as 2x224+6x96."""
    sizes = (part.split("x") for part in crops.split("+"))
    return sum(int(num) * int(px) ** 2 for num, px in sizes)
