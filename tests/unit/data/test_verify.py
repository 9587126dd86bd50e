"""data-verify on generated datasets: complete ones are fine, and every problem is named."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from reproduce.__main__ import main
from reproduce.config.schema import Dataset
from reproduce.data.prepare import inspection, verify
from reproduce.data.prepare.official import DATASET_SPECS, DatasetSpec, SplitSpec
from reproduce.errors import UserError

IMAGENET = Dataset("imagenet", "tiny", "folders", "imagenet", "train", "val")
COCO = Dataset("coco17", "tiny", "coco", "coco", "train2017", "val2017")
VOC = Dataset("voc07", "tiny", "voc", "VOCdevkit/VOC2007", "trainval", "test")
TINY = DatasetSpec("tiny", "nowhere", 10, {"train": SplitSpec(20), "val": SplitSpec(20, per_class=2)})
TINY_VOC = DatasetSpec("tiny", "nowhere", 20, {"trainval": SplitSpec(60), "test": SplitSpec(30)})
TINY_COCO = DatasetSpec("tiny", "nowhere", 2, {"train2017": SplitSpec(60), "val2017": SplitSpec(30)})


@pytest.fixture
def data(data: Path, tmp_path: Path) -> Path:
    """Copy the datasets, so that a test may damage them."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    return tmp_path


def said(data: Path, dataset: Dataset = IMAGENET, official: DatasetSpec | None = TINY) -> list[str]:
    """Verify a dataset, and return its problems without the indent."""
    lines: list[str] = []
    fine = verify.verify_dataset(data, dataset, official, "all", lines.append)
    wrong = [line.strip() for line in lines if line.strip().startswith(("missing:", "unexpected:", "broken:"))]
    assert fine == (not wrong)
    assert lines[-1] == f"  {dataset.name} is {'' if fine else 'not '}fine"
    return wrong


@pytest.mark.parametrize(("dataset", "official"), [(IMAGENET, TINY), (VOC, TINY_VOC), (COCO, TINY_COCO)])
def test_complete_dataset_is_fine_and_gets_a_manifest(data: Path, dataset: Dataset, official: DatasetSpec) -> None:
    assert said(data, dataset, official) == []
    manifest = json.loads((data / ".manifests" / f"{dataset.name}.json").read_text())
    names = gzip.decompress((data / ".manifests" / f"{dataset.name}.tsv.gz").read_bytes()).decode().splitlines()
    for line in names:
        size, name = line.split("\t")
        assert (data / dataset.root / name).stat().st_size == int(size)
    assert (
        len(names)
        == sum(split["images"] for split in manifest["splits"].values())
        == sum(split.num_images for split in official.splits.values())
    )


def first(data: Path, split: str = "val") -> Path:
    return min((data / "imagenet" / split).rglob("*.jpg"))


def test_missing_image_is_counted_and_its_class_named(data: Path) -> None:
    gone = first(data)
    gone.unlink()
    assert said(data) == [
        "missing: 19 images in val, 1 too few: it should be 20",
        f"missing: classes of val that should have 2 images each (1): {gone.parent.name} (1)",
    ]


def test_differences_from_the_manifest_are_named(data: Path) -> None:
    assert said(data) == []
    gone, grown = first(data), first(data, "train")
    gone.unlink()
    grown.write_bytes(grown.read_bytes() + b"\0")
    (grown.parent / "new.jpg").write_bytes(grown.read_bytes())
    lines = [line for line in said(data) if "manifest" in line or "size" in line]
    name = str(gone.relative_to(data / "imagenet"))
    assert [line.partition(": ")[0] for line in lines] == ["missing", "unexpected", "broken"]
    assert lines[0].endswith(f"(1): {name}")
    assert lines[1].endswith(f" (1): train/{grown.parent.name}/new.jpg")
    assert lines[2].endswith(f": {grown.relative_to(data / 'imagenet')}")


def test_unexpected_classes_and_files_are_named(data: Path) -> None:
    (data / "imagenet" / "val" / "README").write_text("x")
    (first(data).parent / "notes.txt").write_text("x")
    (data / "imagenet" / "train" / "unknown").mkdir()
    assert said(data) == [
        "missing: class folders of train without images (1): unknown",
        "unexpected: 11 class folders in train, 1 too many: it should be 10",
        f"unexpected: files in {data / 'imagenet' / 'val'} beside the class folders (1): README",
        f"unexpected: files in val/{first(data).parent.name} are not images and are ignored (1): notes.txt",
        "missing: classes of train without a folder in val (1): unknown",
    ]


def test_broken_images_are_named(data: Path) -> None:
    cut, empty = first(data), first(data, "train")
    cut.write_bytes(cut.read_bytes()[:300])
    empty.write_bytes(b"")
    wrong = said(data)
    assert f"broken: empty files in train (1): {empty.relative_to(data / 'imagenet')}" in wrong
    assert any(line.startswith(f"broken: of 20 images of val, some can't be decoded (1): {cut} (") for line in wrong)
    assert len(wrong) == 2


def test_decoded_sample_is_spread_over_the_split(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def look(path: Path) -> str:
        seen.append(path.parent.name)
        return ""

    monkeypatch.setattr(inspection, "_decode_error", look)
    monkeypatch.setattr(inspection, "BLOCK_IMAGES", 2)
    monkeypatch.setattr(inspection, "SAMPLE_IMAGES", 5)
    verify.verify_dataset(data, IMAGENET, TINY, "sample", lambda _: None)
    assert len(seen) == 10
    assert len(set(seen)) == 5


@pytest.mark.parametrize(("options", "num_decoded"), [([], 10), (["--decode", "all"], 40)])
def test_the_command_decodes_all_images_if_it_is_asked_to(
    data: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], num_decoded: int
) -> None:
    """20 images of each of two splits, or 5 of each."""
    seen: list[Path] = []

    def look(path: Path) -> str:
        seen.append(path)
        return ""

    monkeypatch.setattr(inspection, "_decode_error", look)
    monkeypatch.setattr(inspection, "SAMPLE_IMAGES", 5)
    main(["data-verify", "imagenet", "--data", str(data), "--data-config", "generated", *options])
    assert len(seen) == len(set(seen)) == num_decoded


def test_voc_files_are_compared_with_the_lists(data: Path) -> None:
    root = data / "VOCdevkit" / "VOC2007"
    first_id, second_id = (root / "ImageSets" / "Main" / "test.txt").read_text().split()[:2]
    (root / "JPEGImages" / f"{first_id}.jpg").unlink()
    (root / "Annotations" / f"{second_id}.xml").write_text("<annotation>")
    (root / "ImageSets" / "Main" / "trainval.txt").unlink()
    wrong = said(data, VOC, TINY_VOC)
    assert wrong[0] == f"missing: image list {root / 'ImageSets' / 'Main' / 'trainval.txt'} is missing"
    assert wrong[1] == f"missing: images in the list test that do not exist (1): {first_id}.jpg"
    assert wrong[2].startswith(
        f"broken: annotations of test that can't be used (1): annotation {root}/Annotations/{second_id}.xml"
    )
    assert len(wrong) == 3


def test_coco_files_are_compared_with_the_json(data: Path) -> None:
    gone = min((data / "coco" / "val2017").iterdir())
    gone.rename(gone.with_name("new.jpg"))
    (data / "coco" / "annotations" / "instances_train2017.json").write_text("{")
    wrong = said(data, COCO, TINY_COCO)
    assert wrong[0].startswith(
        f"broken: {data / 'coco' / 'annotations' / 'instances_train2017.json'} is not COCO's JSON"
    )
    assert wrong[1:] == [
        f"missing: images in instances_val2017.json that do not exist (1): {gone.name}",
        "unexpected: images that are not in instances_val2017.json (1): new.jpg",
    ]


def test_coco_json_without_categories_is_broken(data: Path) -> None:
    path = data / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    del content["categories"]
    path.write_text(json.dumps(content))
    (problem,) = said(data, COCO, TINY_COCO)
    assert problem.startswith(f"broken: {path} is not COCO's JSON")


def test_voc_split_that_its_authors_do_not_count_is_verified_without_a_number(data: Path) -> None:
    """VOC2012 has no public test annotations, so a catalog of one's own may divide its trainval."""
    only_trainval = DatasetSpec("tiny", "nowhere", 20, {"trainval": SplitSpec(60)})
    assert said(data, VOC, only_trainval) == []


def test_read_only_data_can_be_verified(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", read_only)
    lines: list[str] = []
    assert verify.verify_dataset(data, IMAGENET, TINY, "sample", lines.append)
    assert any("no manifest was written: could not write" in line for line in lines)


def test_data_verify_command_reports_and_sets_the_exit_status(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data-verify", "--data", str(data), "--data-config", "generated"]) == 0
    assert "inat18 is fine" in capsys.readouterr().out
    assert main(["data-verify", "imagenet", "coco17", "voc12", "--data", str(data)]) == 2
    out = capsys.readouterr().out
    assert "imagenet: ILSVRC2012 in" in out
    assert "missing: 20 images in train, 1,281,147 too few: it should be 1,281,167" in out
    assert f"missing: folder {data}/VOCdevkit/VOC2012 is missing" in out
    assert "places205" not in out


def test_unknown_layout_in_a_data_config_is_a_user_error(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("imagenet: {source: mine, layout: folder, root: images, train: train, val: val}\n")
    for command in (["data-verify"], ["data-shard", "--shards", str(tmp_path)]):
        with pytest.raises(UserError, match=r"mine: unknown layout 'folder': did you mean 'folders'"):
            main([*command, "--data", str(tmp_path), "--data-config", str(own)])


@pytest.mark.parametrize(
    ("source", "classes", "images"),
    [
        ("ILSVRC2012", 1000, [1_281_167, 50_000]),
        ("Places205", 205, [2_448_873, 20_500]),
        ("iNaturalist2018", 8142, [437_513, 24_426]),
        ("VOC2007", 20, [5011, 4952]),
        ("VOC2012", 20, [11_540]),
        ("COCO2017", 80, [118_287, 5000]),
    ],
)
def test_dataset_specs_have_the_official_numbers(source: str, classes: int, images: list[int]) -> None:
    official = DATASET_SPECS[source]
    assert official.num_classes == classes
    assert [split.num_images for split in official.splits.values()] == images
    for split in official.splits.values():
        assert split.per_class is None or split.per_class * classes == split.num_images
