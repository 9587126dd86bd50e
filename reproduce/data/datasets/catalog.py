"""Whether a run's dataset is where its config says, without torch and without reading pictures."""

from pathlib import Path

from omegaconf import DictConfig

from reproduce.errors import did_you_mean

LAYOUTS = ("folders", "voc", "coco", "shards")
VOC_FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Main")


def missing(cfg: DictConfig) -> list[str]:
    """What of `cfg.dataset` is not below `cfg.paths.data`, one phrase per missing folder or file."""
    data = cfg.dataset
    if not cfg.paths.data:
        return [f"no DATA given, where {data.root} should lie (make: DATA=DIR; python -m reproduce: --data DIR)"]
    base = Path(cfg.paths.data)
    if not base.is_dir():
        return [f"DATA folder {base} is not there"]
    if data.layout not in LAYOUTS:
        return [
            f"data config {cfg.data.name}: there is no layout {data.layout!r}: {did_you_mean(data.layout, LAYOUTS)}"
        ]
    root = base / data.root
    if not root.is_dir():
        return [f"folder {root} is not there ({data.name} of data config {cfg.data.name!r})"]
    folders = VOC_FOLDERS if data.layout == "voc" else [data.train, data.val]
    gone = [f"folder {root / name} is not there" for name in folders if not (root / name).is_dir()]
    if data.layout == "voc":
        gone += _lists_missing(root, data.train, data.val)
    if data.get("also_train_root"):
        also = base / data.also_train_root
        gone += _lists_missing(also, data.train) if also.is_dir() else [f"folder {also} is not there"]
    if data.layout == "coco":
        files = [root / "annotations" / f"instances_{split}.json" for split in (data.train, data.val)]
        gone += [f"annotation {path} is not there" for path in files if not path.is_file()]
    return gone


def _lists_missing(root: Path, *splits: str) -> list[str]:
    lists = [root / "ImageSets" / "Main" / f"{split}.txt" for split in splits]
    return [f"list {path} is not there" for path in lists if not path.is_file()]
