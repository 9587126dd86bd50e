"""How large the measurements are: as in the paper, or tiny, so that a test can run them on a CPU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Sizes of all measurements."""

    scale: str
    """Scale of the configs: crops, network, detectors."""
    overrides: tuple[str, ...]
    """Further overrides of the pretraining's config."""
    num_images: tuple[int, ...]
    """Images of a training step, one column of the table each."""
    num_workers: tuple[int, ...]
    num_steps: int
    """Steps that are timed, after `num_warmup_steps`."""
    num_warmup_steps: int
    photograph_px: tuple[int, int]
    """Width and height of generated photographs, if no folder is given."""
    matrix: int
    """Side of the square matrices whose product measures the peak."""
    feature_images: int
    """Images of a forward pass."""
    feature_px: int
    num_queries: int
    num_bank_rows: int
    num_neighbors: int
    detr_images: int
    rcnn_images: int
    detection_px: tuple[int, int]
    """Height and width of an image of the detectors."""


PAPER = Size(
    scale="paper",
    overrides=(),
    num_images=(64, 256),
    num_workers=(4, 8, 16),
    num_steps=20,
    num_warmup_steps=5,
    photograph_px=(500, 375),
    matrix=8192,
    feature_images=128,
    feature_px=224,
    num_queries=50_000,
    num_bank_rows=1_281_167,
    num_neighbors=200,
    detr_images=4,
    rcnn_images=2,
    detection_px=(800, 1066),
)
TINY = Size(
    scale="smoke",
    overrides=("network.width=0.0625", "network.head_hidden_dim=16", "network.embedding_dim=8"),
    num_images=(4,),
    num_workers=(1,),
    num_steps=1,
    num_warmup_steps=1,
    photograph_px=(64, 48),
    matrix=64,
    feature_images=2,
    feature_px=40,
    num_queries=8,
    num_bank_rows=100,
    num_neighbors=5,
    detr_images=1,
    rcnn_images=2,
    detection_px=(64, 96),
)
SIZES = {"paper": PAPER, "tiny": TINY}
