"""data-prepare on small archives with the structure of the official ones."""

import errno
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from reproduce.config.schema import Dataset
from reproduce.data.prepare.official import DATASET_SPECS, Archive
from reproduce.data.prepare.unpack import unpack_dataset
from reproduce.errors import UserError

IMAGENET = Dataset("imagenet", "ILSVRC2012", "folders", "imagenet", "train", "val")
PLACES = Dataset("places205", "Places205", "folders", "places205", "train", "val")
INAT = Dataset("inat18", "iNaturalist2018", "folders", "inat18", "train", "val")
COCO = Dataset("coco17", "COCO2017", "coco", "coco", "train2017", "val2017")
VOC = Dataset("voc07", "VOC2007", "voc", "VOCdevkit/VOC2007", "trainval", "test")


CIFAR10 = Dataset("imagenet", "CIFAR-10", "folders", "cifar10", "train", "test")


def packed(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def run(tmp_path: Path, dataset: Dataset, archives: dict[str, bytes]) -> dict[str, bytes]:
    """Unpack the archives, and return the files below DATA."""
    folder = tmp_path / "archives"
    folder.mkdir(exist_ok=True)
    for name, content in archives.items():
        (folder / name).write_bytes(content)
    official = DATASET_SPECS[dataset.source]
    unchecked = replace(official, archives=tuple(replace(archive, md5=None) for archive in official.archives))
    unpack_dataset(folder, tmp_path / "data", dataset, lambda _: None, unchecked)
    data = tmp_path / "data"
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}


@pytest.fixture
def imagenet() -> dict[str, bytes]:
    mat = io.BytesIO()
    fields = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("num_children", "f8")]
    # The kit's numbers are in no order of the names, and it lists more than the leaves.
    savemat(mat, {"synsets": np.array([(1, "n02119789", 0), (2, "n01440764", 0), (3, "n00001740", 2)], dtype=fields)})  # type: ignore[arg-type]
    kit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": mat.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n2\n",
    }
    val = {f"ILSVRC2012_val_{number:08d}.JPEG": b"val%d" % number for number in (1, 2, 3)}
    train = {
        "n01440764.tar": packed({"n01440764_18.JPEG": b"tench", "n01440764_36.JPEG": b"another"}),
        "n02119789.tar": packed({"n02119789_1.JPEG": b"fox"}),
    }
    return {
        "ILSVRC2012_img_train.tar": packed(train),
        "ILSVRC2012_img_val.tar": packed(val),
        "ILSVRC2012_devkit_t12.tar.gz": packed(kit, "w:gz"),
    }


def test_imagenet_validation_classes_come_from_the_devkit(tmp_path: Path, imagenet: dict[str, bytes]) -> None:
    assert run(tmp_path, IMAGENET, imagenet) == {
        "imagenet/train/n01440764/n01440764_18.JPEG": b"tench",
        "imagenet/train/n01440764/n01440764_36.JPEG": b"another",
        "imagenet/train/n02119789/n02119789_1.JPEG": b"fox",
        "imagenet/val/n01440764/ILSVRC2012_val_00000001.JPEG": b"val1",
        "imagenet/val/n02119789/ILSVRC2012_val_00000002.JPEG": b"val2",
        "imagenet/val/n01440764/ILSVRC2012_val_00000003.JPEG": b"val3",
    }


def test_unpacking_resumes_after_a_truncated_archive(tmp_path: Path, imagenet: dict[str, bytes]) -> None:
    cut = imagenet | {"ILSVRC2012_img_train.tar": imagenet["ILSVRC2012_img_train.tar"][:2000]}
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar is truncated or damaged \(.*: get it again"):
        run(tmp_path, IMAGENET, cut)
    whole = run(tmp_path, IMAGENET, imagenet)
    kept = tmp_path / "data" / "imagenet" / "train" / "n01440764" / "n01440764_18.JPEG"
    before = kept.stat().st_mtime_ns
    assert run(tmp_path, IMAGENET, imagenet) == whole
    assert kept.stat().st_mtime_ns == before
    kept.write_bytes(b"cut")
    assert run(tmp_path, IMAGENET, imagenet) == whole


def test_missing_archive_without_url_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar is missing: get it from image-net\.org, after"):
        run(tmp_path, IMAGENET, {})


@pytest.mark.parametrize(
    "dataset", [replace(IMAGENET, source="generated-1"), replace(IMAGENET, layout="shards")], ids=["source", "layout"]
)
def test_dataset_without_official_archives_is_a_user_error(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"imagenet .* can't be unpacked"):
        unpack_dataset(tmp_path, tmp_path / "data", dataset, lambda _: None)
    assert not (tmp_path / "data").exists()


def test_archives_may_be_in_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed({"VOCdevkit/VOC2007/JPEGImages/1.jpg": b"x"})
    name = "VOCtrainval_06-Nov-2007.tar"
    official = replace(DATASET_SPECS["VOC2007"], archives=(Archive(name, md5=hashlib.md5(archive).hexdigest()),))

    def refuse(_path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / name).write_bytes(archive)
    monkeypatch.setattr(Path, "touch", refuse)
    unpack_dataset(tmp_path, tmp_path / "data", VOC, lambda _: None, official)
    assert (tmp_path / "data" / "VOCdevkit" / "VOC2007" / "JPEGImages" / "1.jpg").read_bytes() == b"x"


def test_archive_with_wrong_md5_is_refused(tmp_path: Path, imagenet: dict[str, bytes]) -> None:
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"ILSVRC2012_img_train\.tar has the md5 .*, not 1d675b47d978889d74fa0da5fadfb00e"
    ):
        unpack_dataset(tmp_path, tmp_path / "data", IMAGENET, lambda _: None)


def test_places_classes_come_from_the_lists(tmp_path: Path) -> None:
    lists = {
        "trainvalsplit_places205/train_places205.csv": b"a/abbey/gsun_1.jpg 0\no/office/indoor/gsun_2.jpg 131\n",
        "trainvalsplit_places205/val_places205.csv": b"a/abbey/gsun_3.jpg 0\n",
    }
    below = "data/vision/torralba/deeplearning/images256"
    names = ("a/abbey/gsun_1.jpg", "o/office/indoor/gsun_2.jpg", "a/abbey/gsun_3.jpg", "a/abbey/unlisted.jpg")
    images = {f"{below}/{name}": name.encode() for name in names}
    archives = {
        "imagesPlaces205_resize.tar.gz": packed(images, "w:gz"),
        "trainvalsplit_places205.tar.gz": packed(lists, "w:gz"),
    }
    assert run(tmp_path, PLACES, archives) == {
        "places205/train/000/gsun_1.jpg": b"a/abbey/gsun_1.jpg",
        "places205/train/131/gsun_2.jpg": b"o/office/indoor/gsun_2.jpg",
        "places205/val/000/gsun_3.jpg": b"a/abbey/gsun_3.jpg",
    }


def test_inaturalist_classes_come_from_the_json(tmp_path: Path) -> None:
    def annotations(split: str, image_id: int, name: str, category: int) -> bytes:
        content = {
            "images": [{"id": image_id, "file_name": name}],
            "annotations": [{"image_id": image_id, "category_id": category}],
        }
        return packed({f"{split}2018.json": json.dumps(content).encode()}, "w:gz")

    first, second = "train_val2018/Aves/2820/a.jpg", "train_val2018/Plantae/7477/b.jpg"
    archives = {
        "train_val2018.tar.gz": packed({first: b"a", second: b"b"}, "w:gz"),
        "train2018.json.tar.gz": annotations("train", 7, first, 2820),
        "val2018.json.tar.gz": annotations("val", 7, second, 12),
    }
    assert run(tmp_path, INAT, archives) == {"inat18/train/2820/a.jpg": b"a", "inat18/val/0012/b.jpg": b"b"}


def test_voc_is_unpacked_unchanged(tmp_path: Path) -> None:
    archives = {
        "VOCtrainval_06-Nov-2007.tar": packed({"VOCdevkit/VOC2007/JPEGImages/000005.jpg": b"5"}),
        "VOCtest_06-Nov-2007.tar": packed({"VOCdevkit/VOC2007/JPEGImages/000001.jpg": b"1"}),
    }
    assert run(tmp_path, VOC, archives) == {
        "VOCdevkit/VOC2007/JPEGImages/000001.jpg": b"1",
        "VOCdevkit/VOC2007/JPEGImages/000005.jpg": b"5",
    }


@pytest.mark.parametrize("name", ["../outside.jpg", "VOCdevkit/../../outside.jpg"])
def test_path_traversal_is_refused(tmp_path: Path, name: str) -> None:
    voc = {"VOCtrainval_06-Nov-2007.tar": packed({name: b"x"}), "VOCtest_06-Nov-2007.tar": packed({})}
    with pytest.raises(UserError, match="names a file outside its folder"):
        run(tmp_path, VOC, voc)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr(name, b"x")
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    coco = {"train2017.zip": zipped.getvalue(), "val2017.zip": empty.getvalue()}
    with pytest.raises(UserError, match="names a file outside its folder"):
        run(tmp_path, COCO, coco | {"annotations_trainval2017.zip": empty.getvalue()})
    assert not list(tmp_path.rglob("outside*"))


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("VOCdevkit/VOC2007")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "elsewhere")
        archive.addfile(link)
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        run(tmp_path, VOC, {"VOCtrainval_06-Nov-2007.tar": out.getvalue(), "VOCtest_06-Nov-2007.tar": packed({})})


def test_coco_is_unpacked_unchanged(tmp_path: Path) -> None:
    def zipped(name: str) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr(name, name)
        return out.getvalue()

    names = ("train2017/1.jpg", "val2017/2.jpg", "annotations/instances_val2017.json")
    archives = dict(
        zip(("train2017.zip", "val2017.zip", "annotations_trainval2017.zip"), map(zipped, names), strict=True)
    )
    assert run(tmp_path, COCO, archives) == {f"coco/{name}": name.encode() for name in names}


def cifar10(labels: list[int]) -> tuple[np.ndarray, bytes]:
    """Return images `(N, 32, 32, 3)` and a file of their records."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
    return images, np.column_stack([np.array(labels, np.uint8), planes]).tobytes()


def test_cifar10_is_written_losslessly(tmp_path: Path) -> None:
    images, records = cifar10([3, 9, 3])
    folder = "cifar-10-batches-bin"
    files = {
        f"{folder}/data_batch_5.bin": records,
        f"{folder}/test_batch.bin": records[:3073],
        f"{folder}/readme": b"x",
    }
    archives = {"cifar-10-binary.tar.gz": packed(files, "w:gz")}
    found = run(tmp_path, CIFAR10, archives)
    assert sorted(found) == [
        "cifar10/test/cat/test_batch_00000.png",
        "cifar10/train/cat/data_batch_5_00000.png",
        "cifar10/train/cat/data_batch_5_00002.png",
        "cifar10/train/truck/data_batch_5_00001.png",
    ]
    for number, name in enumerate(("cat/data_batch_5_00000", "truck/data_batch_5_00001", "cat/data_batch_5_00002")):
        with Image.open(io.BytesIO(found[f"cifar10/train/{name}.png"])) as image:
            assert np.array_equal(np.array(image), images[number])
    assert run(tmp_path, CIFAR10, archives) == found


@pytest.mark.parametrize("damage", [lambda records: records[:-1], lambda records: b"\x0a" + records[1:]])
def test_invalid_cifar10_records_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    _, records = cifar10([0, 1])
    archives = {"cifar-10-binary.tar.gz": packed({"b/data_batch_1.bin": damage(records)}, "w:gz")}
    with pytest.raises(UserError, match=r"data_batch_1\.bin does not contain CIFAR-10 records"):
        run(tmp_path, CIFAR10, archives)
