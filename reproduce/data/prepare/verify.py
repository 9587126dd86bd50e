"""Verify that DATA contains the datasets it should: report what is missing, unexpected or broken.

The name and size of every file is checked, and a sample of each split is decoded, or all of it. A dataset without
problems gets a manifest below DATA/.manifests: later verifications list each file that was removed, added or changed
since.
"""

import hashlib
import time
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from reproduce.config.schema import DataCatalog, Dataset
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.catalog import layout_error
from reproduce.data.datasets.content import split_content_sha256
from reproduce.data.datasets.image_folder import SHARDS
from reproduce.data.datasets.manifest import manifest_path, read_size_list, summarize_files, write_size_list
from reproduce.data.prepare.inspection import (
    Decode,
    Inspection,
    decode_images,
    inspect_coco,
    inspect_folders,
    inspect_shards,
    inspect_voc,
)
from reproduce.data.prepare.official import DATASET_SPECS, DatasetSpec
from reproduce.data.prepare.progress import LogFn
from reproduce.errors import UserError
from reproduce.files import read_json, write_json

DETECTION_DATASETS = (Dataset("voc12", "VOC2012", "voc", "VOCdevkit/VOC2012", "trainval", "trainval"),)
"""Datasets that finetuned detectors need beside those of the standard catalog."""
COMBINED_DATASETS = ("voc0712",)
"""Datasets that consist of others, which are verified themselves."""


def verify_datasets(
    data: Path, catalog: DictConfig, names: list[str], decode: Decode = "sample", log: LogFn = print
) -> bool:
    """Verify the datasets `names` below `data` (all of the catalog if empty); return whether they have no problems."""
    if not data.is_dir():
        raise UserError(f"DATA folder {data} does not exist")
    datasets = select_datasets(catalog, names)
    passed = [verify_dataset(data, dataset, DATASET_SPECS.get(dataset.source), decode, log) for dataset in datasets]
    return all(passed)


def select_datasets(catalog: DictConfig, names: list[str]) -> list[Dataset]:
    """Return the datasets `names` of a catalog, or all if empty; the standard catalog also has the detectors'.

    Raises `UserError` for an unknown name.
    """
    extra = DETECTION_DATASETS if catalog.name == "standard" else ()
    datasets = {dataset.name: dataset for dataset in [*catalog_datasets(catalog), *extra]}
    if unknown := [name for name in names if name not in datasets]:
        raise UserError(
            f"unknown dataset {unknown[0]!r} in the catalog {catalog.name!r}: choose from {', '.join(datasets)}"
        )
    return [datasets[name] for name in names or datasets]


def catalog_datasets(catalog: DictConfig) -> list[Dataset]:
    """Return the datasets that a catalog defines; a user's own may lack some.

    Raises `UserError` for an unknown layout.
    """
    names = [field.name for field in fields(DataCatalog) if field.name not in ("name", *COMBINED_DATASETS)]
    defined = [name for name in names if not OmegaConf.is_missing(catalog[name], "root")]
    datasets = [to_dataclass(catalog[name], Dataset, f"data.{name}") for name in defined]
    if errors := [error for each in datasets if (error := layout_error(catalog.name, each.layout))]:
        raise UserError(errors[0])
    return datasets


def verify_dataset(data: Path, dataset: Dataset, spec: DatasetSpec | None, decode: Decode, log: LogFn) -> bool:
    """Verify one dataset, log what was found, and return whether it has no problems.

    Without `spec` its numbers of classes and images are not checked.
    """
    root = data / dataset.root
    log(f"{dataset.name}: {dataset.source} in {root}" + (f" (from {spec.home})" if spec else ""))
    if root.is_dir():
        found = _inspect(root, dataset, spec, decode, log)
        _compare_or_write_manifest(data, dataset, found, log)
    else:
        found = Inspection()
        found.add("missing", f"folder {root} is missing")
    for kind, problem in found.problems:
        log(f"  {kind}: {problem}")
    log(f"  {dataset.name} is {'not ' if found.problems else ''}fine")
    return not found.problems


def _inspect(root: Path, dataset: Dataset, spec: DatasetSpec | None, decode: Decode, log: LogFn) -> Inspection:
    if dataset.layout == SHARDS:
        found = inspect_shards(root, dataset, spec, decode, log)
    else:
        inspect = {"folders": inspect_folders, "voc": inspect_voc, "coco": inspect_coco}[dataset.layout]
        found = inspect(root, dataset, spec, log)
    for split, files in found.files.items():
        log(f"  {split}: {len(files):,} images, {sum(files.values()) / 1e6:,.0f} MB")
        found.add_names("broken", f"empty files in {split}", [name for name, size in files.items() if not size])
        if dataset.layout != SHARDS:
            decode_images(root, split, found, decode, log)
    return found


def _compare_or_write_manifest(data: Path, dataset: Dataset, found: Inspection, log: LogFn) -> None:
    """Add the differences from the dataset's manifest to `found`; without a manifest and problems, write one."""
    path = manifest_path(data, dataset)
    sizes_path = path.with_suffix(".tsv.gz")
    now = {name: size for files in found.files.values() for name, size in files.items()}
    if path.is_file() and sizes_path.is_file():
        manifest, then = read_json(path), read_size_list(sizes_path)
        if manifest["source"] == dataset.source:
            since = f"since the manifest of {manifest['written']}"
            found.add_names("missing", f"files removed {since}", list(then.keys() - now.keys()))
            found.add_names("unexpected", f"files added {since}", list(now.keys() - then.keys()))
            changed = [name for name in then.keys() & now.keys() if then[name] != now[name]]
            found.add_names("broken", f"files that changed size {since}", changed)
            if then == now:
                known = {split: entry.get("content_sha256") for split, entry in manifest["splits"].items()}
                others = [
                    split
                    for split in found.files
                    if known.get(split) not in (None, split_content_sha256(data, dataset, split))
                ]
                found.add_names("broken", f"splits with other content, but files of the same sizes, {since}", others)
            return
    if found.problems:
        return
    splits = {
        split: summarize_files(files) | {"content_sha256": split_content_sha256(data, dataset, split)}
        for split, files in found.files.items()
    }
    sha256 = hashlib.sha256("".join(str(split["sha256"]) for split in splits.values()).encode()).hexdigest()
    content = {"source": dataset.source, "written": time.strftime("%Y-%m-%d"), "sha256": sha256, "splits": splits}
    try:
        write_size_list(sizes_path, now)
        write_json(path, content)
        log(f"  manifest: {path} (sha256 {sha256[:12]})")
    except UserError as error:
        log(f"  no manifest was written: {error}")
