"""Check that a run's dataset exists as its config describes it, without torch and without reading images."""

from pathlib import Path

from reproduce.config.schema import ABSENT, Dataset
from reproduce.errors import did_you_mean

LAYOUTS = ("folders", "voc", "coco", "shards")
"""How a dataset can be stored: class folders, Pascal VOC, COCO, or WebDataset shards."""
VOC_FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Main")


def missing_data(dataset: Dataset, data_root: str | None, data_config: str) -> list[str]:
    """List the folders and files that `dataset` lacks below `data_root`, one phrase each.

    `data_config` names the config that describes the dataset (`data.name`).
    """
    if dataset.layout == ABSENT:
        return [f"data config {data_config!r} has no {dataset.name}"]
    if not data_root:
        return [
            f"no DATA given, the folder that contains {dataset.root} (make: DATA=DIR; python -m reproduce: --data DIR)"
        ]
    data = Path(data_root)
    if not data.is_dir():
        return [f"DATA folder {data} does not exist"]
    if dataset.layout not in LAYOUTS:
        return [layout_error(data_config, dataset.layout)]
    root = data / dataset.root
    if not root.is_dir():
        return [f"folder {root} is missing ({dataset.name} of data config {data_config!r})"]
    folders = VOC_FOLDERS if dataset.layout == "voc" else [dataset.train, dataset.val]
    missing = [f"folder {root / name} is missing" for name in folders if not (root / name).is_dir()]
    if dataset.layout == "voc":
        missing += _missing_lists(root, dataset.train, dataset.val)
    if dataset.extra_train_root:
        extra = data / dataset.extra_train_root
        missing += _missing_lists(extra, dataset.train) if extra.is_dir() else [f"folder {extra} is missing"]
    if dataset.layout == "coco":
        files = [root / "annotations" / f"instances_{split}.json" for split in (dataset.train, dataset.val)]
        missing += [f"annotation file {path} is missing" for path in files if not path.is_file()]
    return missing


def layout_error(data_config: str, layout: str) -> str:
    """Return a phrase on an unknown layout in a data config; "" if the layout is known."""
    if layout in LAYOUTS:
        return ""
    return f"data config {data_config}: unknown layout {layout!r}: {did_you_mean(layout, LAYOUTS)}"


def _missing_lists(root: Path, *splits: str) -> list[str]:
    lists = [root / "ImageSets" / "Main" / f"{split}.txt" for split in splits]
    return [f"image list {path} is missing" for path in lists if not path.is_file()]
