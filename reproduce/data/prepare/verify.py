"""Is a folder of pictures what its data sets should be? Says in plain words what is missing, surplus or broken.

Every file is looked at (its name and size), a sample of each split is decoded, or all. What was found is written once
as a manifest below DATA/.manifests: later verifications name each file that has gone, come or changed since.
"""

import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf

from reproduce.config.schema import Catalogue, Dataset
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets import manifest
from reproduce.data.datasets.image_file import SUFFIXES, UnreadableImage, read_image
from reproduce.data.datasets.image_folder import SHARDS
from reproduce.data.datasets.shards import CONTENTS_FILE, read_index
from reproduce.data.datasets.voc import read_voc_objects
from reproduce.data.prepare.official import OFFICIAL, Official
from reproduce.errors import UserError
from reproduce.files import read_json, write_atomic, write_json

Kind = Literal["missing", "surplus", "broken"]
Decode = Literal["sample", "all"]
Tell = Callable[[str], None]
T = TypeVar("T")
SAMPLE = 1000
"""Pictures of a split that are decoded, evenly spread over it."""
NUM_NAMED = 10
TELL_EVERY_SECONDS = 5.0
SAMPLE_SHARDS = 20
"""Of as many shards one is held against its SHA-256."""
BLOCK = 10_000
"""Pictures handed to the threads at once: a million of them would fill the memory with what is still to do."""

DETECTION = (Dataset("voc12", "VOC2012", "voc", "VOCdevkit/VOC2012", "trainval", "trainval"),)
"""What finetuned detectors need beside a catalogue's data sets."""
COMBINED = ("voc0712",)
"""Made of sets that are verified by themselves."""


@dataclass
class Findings:
    """What is wrong, in sentences, and the files that are there: by split, name below the set's folder to size."""

    sentences: list[tuple[Kind, str]] = field(default_factory=list)
    files: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, kind: Kind, what: str, names: list[str] | None = None) -> None:
        """Add a sentence; of many names, the first few are said."""
        if names is None:
            self.sentences.append((kind, what))
        elif names:
            more = f" and {len(names) - NUM_NAMED:,} more" if len(names) > NUM_NAMED else ""
            self.sentences.append((kind, f"{what} ({len(names):,}): {', '.join(sorted(names)[:NUM_NAMED])}{more}"))


def verify_all(
    data: Path, catalogue: DictConfig, names: list[str], decode: Decode = "sample", tell: Tell = print
) -> bool:
    """Verify data sets below `data` (all of them where none is named); whether all are fine."""
    if not data.is_dir():
        raise UserError(f"the folder {data} given as DATA is not there")
    sets = chosen(catalogue, names)
    fine = [verify(data, dataset, OFFICIAL.get(dataset.source), decode, tell) for dataset in sets]
    return all(fine)


def chosen(catalogue: DictConfig, names: list[str]) -> list[Dataset]:
    """Data sets of a catalogue by name, or all of them, with those of the detectors where it is the standard one."""
    sets = {
        item.name: item for item in [*of_catalogue(catalogue), *(DETECTION if catalogue.name == "standard" else ())]
    }
    if unknown := [name for name in names if name not in sets]:
        raise UserError(f"there is no data set {unknown[0]!r} in the catalogue {catalogue.name!r}: {', '.join(sets)}")
    return [sets[name] for name in names or sets]


def of_catalogue(catalogue: DictConfig) -> list[Dataset]:
    """The data sets that a catalogue has; a person's own may lack some."""
    names = [item.name for item in fields(Catalogue) if item.name != "name"]
    given = [name for name in names if name not in COMBINED and not OmegaConf.is_missing(catalogue[name], "root")]
    return [to_dataclass(catalogue[name], Dataset, f"data.{name}") for name in given]


def verify(data: Path, dataset: Dataset, official: Official | None, decode: Decode, tell: Tell) -> bool:
    """Verify one data set and say what was found; without `official` numbers, only that it is whole in itself."""
    root = data / dataset.root
    tell(f"{dataset.name}: {dataset.source} in {root}" + (f" (from {official.home})" if official else ""))
    found = Findings()
    if root.is_dir():
        if dataset.layout == SHARDS:
            _shards(root, dataset, official, decode, found, tell)
        else:
            look = {"folders": _folders, "voc": _voc, "coco": _coco}[dataset.layout]
            look(root, dataset, official, found, tell)
        for split, files in found.files.items():
            tell(f"  {split}: {len(files):,} pictures, {sum(files.values()) / 1e6:,.0f} MB")
            found.add("broken", f"files of {split} are empty", [name for name, size in files.items() if not size])
            if dataset.layout != SHARDS:
                _decode(root, split, files, decode, found, tell)
        _manifest(data, dataset, found, tell)
    else:
        found.add("missing", f"the folder {root} is not there")
    for kind, sentence in found.sentences:
        tell(f"  {kind}: {sentence}")
    tell(f"  {dataset.name} is {'not ' if found.sentences else ''}fine")
    return not found.sentences


def _folders(root: Path, dataset: Dataset, official: Official | None, found: Findings, tell: Tell) -> None:
    """`root/split/class/picture`."""
    classes = {}
    for split in dict.fromkeys((dataset.train, dataset.val)):
        if not (root / split).is_dir():
            found.add("missing", f"the folder {root / split} is not there")
            continue
        entries = list(os.scandir(root / split))
        names = sorted(entry.name for entry in entries if entry.is_dir())
        classes[split] = set(names)
        stray = [entry.name for entry in entries if not entry.is_dir()]
        found.add("surplus", f"files lie in {root / split} beside the class folders", stray)
        counts: dict[str, int] = {}
        files: dict[str, int] = {}
        with ThreadPoolExecutor(manifest.STAT_THREADS) as pool:
            listed = pool.map(_listed, [root / split / name for name in names])
            for name, (pictures, others) in zip(
                names, told(listed, len(names), f"class folders of {split} looked at", tell), strict=True
            ):
                counts[name] = len(pictures)
                files |= {f"{split}/{name}/{file}": size for file, size in pictures.items()}
                found.add("surplus", f"files in {split}/{name} are no pictures and are passed over", others)
        found.files[split] = files
        found.add("missing", f"class folders of {split} hold no picture", [name for name, n in counts.items() if not n])
        if official:
            _compare(f"class folders in {split}", len(names), official.classes, found)
            _count(split, files, official, found)
            each = official.splits[split].per_class if split in official.splits else None
            wrong = f"classes of {split} have another number of pictures than {each}"
            found.add("missing", wrong, [f"{name} ({n})" for name, n in counts.items() if each and n < each])
            found.add("surplus", wrong, [f"{name} ({n})" for name, n in counts.items() if each and n > each])
    for split, other in ((dataset.train, dataset.val), (dataset.val, dataset.train)):
        if split in classes and other in classes:
            found.add("missing", f"classes of {other} have no folder in {split}", list(classes[other] - classes[split]))


def _listed(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Pictures of a folder with their sizes, and what else lies there."""
    pictures, others = {}, []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                pictures[entry.name] = entry.stat().st_size
            else:
                others.append(entry.name)
    return pictures, others


def _voc(root: Path, dataset: Dataset, official: Official | None, found: Findings, tell: Tell) -> None:
    """Lists of names, and for each name a picture and an annotation."""
    there, _ = _listed(root / "JPEGImages") if (root / "JPEGImages").is_dir() else ({}, [])
    for split in dict.fromkeys((dataset.train, dataset.val)):
        names_file = root / "ImageSets" / "Main" / f"{split}.txt"
        if not names_file.is_file():
            found.add("missing", f"the list {names_file} is not there")
            continue
        ids = names_file.read_text().split()
        files = {f"JPEGImages/{name}.jpg": there[f"{name}.jpg"] for name in ids if f"{name}.jpg" in there}
        found.files[split] = files
        absent = [f"{name}.jpg" for name in ids if f"{name}.jpg" not in there]
        found.add("missing", f"pictures that the list {split} names are not there", absent)
        if official:
            _compare(f"names in the list {split}", len(ids), official.splits[split].pictures, found)
        broken = []
        for name in told(iter(ids), len(ids), f"annotations of {split} read", tell):
            try:
                read_voc_objects(root / "Annotations" / f"{name}.xml")
            except UserError as error:
                broken.append(str(error))
        found.add("broken", f"annotations of {split} can't be used", broken)


def _coco(root: Path, dataset: Dataset, official: Official | None, found: Findings, _tell: Tell) -> None:
    """`split/picture`, and one JSON file that names the pictures of each split and their boxes."""
    for split in (dataset.train, dataset.val):
        annotations = root / "annotations" / f"instances_{split}.json"
        if not (root / split).is_dir():
            found.add("missing", f"the folder {root / split} is not there")
            continue
        pictures, others = _listed(root / split)
        found.files[split] = {f"{split}/{name}": size for name, size in pictures.items()}
        found.add("surplus", f"files in {split} are no pictures", others)
        if official:
            _count(split, found.files[split], official, found)
        try:
            content = json.loads(annotations.read_text())
            named = {image["file_name"] for image in content["images"]}
        except FileNotFoundError:
            found.add("missing", f"{annotations} is not there")
        except (ValueError, KeyError, TypeError) as error:
            found.add("broken", f"{annotations} is not COCO's JSON ({error!r})")
        else:
            found.add("missing", f"pictures that {annotations.name} names are not there", list(named - set(pictures)))
            found.add("surplus", f"pictures are not in {annotations.name}", list(set(pictures) - named))
            if official:
                _compare(f"categories in {annotations.name}", len(content["categories"]), official.classes, found)


def _shards(
    root: Path, dataset: Dataset, official: Official | None, decode: Decode, found: Findings, tell: Tell
) -> None:
    """`root/split` with shards and what they are. Not decoded: what is in them was, where it was packed."""
    for split in dict.fromkeys((dataset.train, dataset.val)):
        try:
            about, _, names, shard_index = read_index(root / split)
        except UserError as error:
            found.add("missing", str(error))
            continue
        found.files[split] = dict(zip(names, shard_index.size.tolist(), strict=True))
        if official:
            _count(split, found.files[split], official, found)
        some = about["shards"] if decode == "all" else about["shards"][::SAMPLE_SHARDS]
        with ThreadPoolExecutor(manifest.STAT_THREADS) as pool:
            wrong = pool.map(lambda shard, folder=root / split: _other_sha256(folder, shard), some)
            broken = [name for name in told(wrong, len(some), f"shards of {split} read", tell) if name]
        found.add(
            "broken", f"of {len(some):,} shards of {split}, some have another SHA-256 than in {CONTENTS_FILE}", broken
        )


def _other_sha256(folder: Path, shard: dict[str, Any]) -> str:
    with open(folder / shard["name"], "rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
    return "" if same else shard["name"]


def _count(split: str, files: dict[str, int], official: Official, found: Findings) -> None:
    if split in official.splits:
        _compare(f"pictures in {split}", len(files), official.splits[split].pictures, found)


def _compare(what: str, number: int, expected: int, found: Findings) -> None:
    if number != expected:
        kind: Kind = "missing" if number < expected else "surplus"
        word = "too few" if number < expected else "too many"
        found.add(kind, f"{number:,} {what}, {abs(number - expected):,} {word}: it should be {expected:,}")


def _decode(root: Path, split: str, files: dict[str, int], decode: Decode, found: Findings, tell: Tell) -> None:
    names = [name for name, size in sorted(files.items()) if size]
    some = names if decode == "all" else names[:: max(1, len(names) // SAMPLE)]
    with ThreadPoolExecutor(manifest.STAT_THREADS) as pool:
        blocks = (some[start : start + BLOCK] for start in range(0, len(some), BLOCK))
        wrong = (said for block in blocks for said in pool.map(lambda name: _undecodable(root / name), block))
        broken = [said for said in told(wrong, len(some), f"pictures of {split} decoded", tell) if said]
    found.add("broken", f"of {len(some):,} pictures of {split}, some can't be decoded", broken)


def _undecodable(path: Path) -> str:
    try:
        read_image(str(path)).close()
    except UnreadableImage as error:
        return str(error)
    return ""


def told(items: Iterable[T], total: int, what: str, tell: Tell) -> Iterator[T]:
    """The items, with a line about how far it is every few seconds."""
    told = time.monotonic()
    for number, item in enumerate(items, 1):
        if time.monotonic() - told > TELL_EVERY_SECONDS:
            told = time.monotonic()
            tell(f"  {number:,} of {total:,} {what}")
        yield item


def _manifest(data: Path, dataset: Dataset, found: Findings, tell: Tell) -> None:
    """Compare with the manifest, or write it where there is none and all is fine."""
    path = manifest.manifest_path(data, dataset)
    names = path.with_suffix(".tsv.gz")
    now = {name: size for files in found.files.values() for name, size in files.items()}
    if path.is_file() and names.is_file():
        kept = read_json(path)
        lines = gzip.decompress(names.read_bytes()).decode().splitlines()
        then = {name: int(size) for size, name in (line.split("\t", 1) for line in lines)}
        if kept["source"] == dataset.source:
            found.add("missing", f"files of the manifest of {kept['written']} are gone", list(then.keys() - now.keys()))
            found.add("surplus", f"files came after the manifest of {kept['written']}", list(now.keys() - then.keys()))
            changed = [name for name in then.keys() & now.keys() if then[name] != now[name]]
            found.add("broken", f"files have another size than on {kept['written']}", changed)
            return
    if found.sentences:
        return
    splits = {split: manifest.summarize_files(files) for split, files in found.files.items()}
    whole = hashlib.sha256("".join(str(split["sha256"]) for split in splits.values()).encode()).hexdigest()
    content = {"source": dataset.source, "written": time.strftime("%Y-%m-%d"), "sha256": whole, "splits": splits}
    lines = [f"{size}\t{name}" for name, size in sorted(now.items())]
    try:
        write_atomic(names, gzip.compress("\n".join(lines).encode(), mtime=0))
        write_json(path, content)
        tell(f"  manifest: {path} (sha256 {whole[:12]})")
    except UserError as error:
        tell(f"  no manifest is kept: {error}")
