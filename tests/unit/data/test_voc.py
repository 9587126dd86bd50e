"""Reading VOC's lists and annotations."""

import os
from pathlib import Path

import pytest
from PIL import Image

from reproduce.config.schema import Dataset
from reproduce.data.datasets.voc import (
    VOC_CLASSES,
    VocBox,
    VocImage,
    read_voc_boxes,
    read_voc_labels,
    read_voc_objects,
)
from reproduce.data.prepare import verify
from reproduce.errors import UserError

OBJECT = (
    "<object><name>dog</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def read(root: Path, *objects: tuple[int, ...]) -> tuple[list[VocImage], list[str]]:
    """Read an image of 40 x 30 pixels with objects given as (difficult, xmin, ymin, xmax, ymax)."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / "000001.jpg")
    size = "<size><width>40</width><height>30</height></size>"
    inside = "".join(OBJECT.format(*each) for each in objects)
    (root / "Annotations" / "000001.xml").write_text(f"<annotation>{size}{inside}</annotation>")
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("000001\n")
    return read_voc_boxes(root, "trainval")


def test_voc_corners_count_from_zero_and_exclude_the_end(tmp_path: Path) -> None:
    ((image,), broken) = read(tmp_path, (0, 1, 1, 40, 30), (1, 5, 6, 7, 8), (0, 0, 0, 41, 31))
    assert broken == []
    assert image.boxes == [
        VocBox(11, (0, 0, 40, 30), difficult=False),
        VocBox(11, (4, 5, 7, 8), difficult=True),
        VocBox(11, (0, 0, 40, 30), difficult=False),  # counted from zero, and a pixel too wide: cut off
    ]


@pytest.mark.parametrize(
    ("corners", "wrong"),
    [((1, 1, 42, 30), "lies outside its image"), ((9, 1, 8, 30), "has no area"), ((-1, 1, 9, 9), "lies outside")],
)
def test_invalid_voc_box_is_reported_and_left_out(tmp_path: Path, corners: tuple[int, ...], wrong: str) -> None:
    ((image,), (sentence,)) = read(tmp_path, (0, *corners), (0, 1, 1, 9, 9))
    assert len(image.boxes) == 1
    assert f"object 1 of annotation {tmp_path / 'Annotations' / '000001.xml'} (dog) {wrong}" in sentence


def test_missing_image_list_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainval\.txt is missing"):
        read_voc_boxes(tmp_path, "trainval")


def folder(root: Path, *names: str) -> Path:
    """Images and annotations of the given names, each with a dog."""
    for place in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / place).mkdir(parents=True)
    size = "<size><width>40</width><height>30</height></size>"
    for name in names:
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{name}.jpg")
        text = f"<annotation>{size}{OBJECT.format(0, 1, 1, 9, 9)}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


PLAIN = ["000001", "000002"]
LATIN = os.fsdecode("z\xfcrich".encode("latin-1"))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"000001\n000002\n", PLAIN),
        (b"\xef\xbb\xbf000001\n000002\n", PLAIN),
        ("000001\n000002\n".encode("utf-16"), PLAIN),
        ("000001\n000002\n".encode("utf-16-le"), PLAIN),
        ("000001\n000002\n".encode("utf-16-be"), PLAIN),
        ("zürich\r\n".encode("utf-16-le"), ["zürich"]),
        (b"000001\r\n\r\n000002\r\n", PLAIN),
        (b"000001\r000002\n".replace(b"\r", b"\n"), PLAIN),
        (b"000001 -1\n000002  1\n", PLAIN),
        (b"000001\t0\n000002\t1\n", PLAIN),
        (b"000001 000002\n", PLAIN),
        (b"  000001  \n000002", PLAIN),
        (b"000001\nan image 1\n", ["000001", "an image 1"]),
        (b"an image 1 -1\n000001 1\n", ["an image 1", "000001"]),
        ("zürich\n".encode(), ["zürich"]),
        ("zürich\n".encode("latin-1"), ["zürich"]),
        (b"on\xe2\x80\xa8two\n000001\n", ["on\u2028two", "000001"]),
    ],
)
def test_lists_of_every_kind_name_the_images(tmp_path: Path, content: bytes, names: list[str]) -> None:
    root = folder(tmp_path, *PLAIN, "an image 1", "zürich", "on\u2028two")
    (root / "ImageSets" / "Main" / "test.txt").write_bytes(content)
    dataset = Dataset("voc07", "own", "voc", ".", "test", "test")
    images, labels = read_voc_labels(root, dataset, "test")
    assert images.paths == [str(root / "JPEGImages" / f"{name}.jpg") for name in names]
    assert [row.index(1) for row in labels] == [VOC_CLASSES.index("dog")] * len(names)
    boxes, broken = read_voc_boxes(root, "test")
    assert ([image.name for image in boxes], broken) == (names, [])
    assert verify.verify_dataset(root, dataset, None, "all", print)


def test_names_that_are_no_utf8_are_those_of_the_files(tmp_path: Path) -> None:
    root = folder(tmp_path, LATIN)
    (root / "ImageSets" / "Main" / "test.txt").write_bytes("z\xfcrich\n".encode("latin-1"))
    (image,), broken = read_voc_boxes(root, "test")
    assert (image.name, broken) == (LATIN, [])
    assert image.key == "z%FCrich"  # what Detectron2's files can hold
    assert VocImage("2007_000027", "", 1, 1, []).key == "2007_000027"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"000001\n000002\n000001\n", r"names 1 images more than once \(000001\)"),
        (b"\n \r\n", "is empty"),
        (b"\xff\xfe0\x000", "is damaged"),
        (b"000001\n\0\0\0", "has NUL bytes, which no name has"),
        ("000001\n".encode("utf-32-le"), "has NUL bytes, which no name has"),
        (b"00\x001\n", "has NUL bytes, which no name has"),
    ],
)
def test_a_wrong_list_is_a_user_error(tmp_path: Path, content: bytes, said: str) -> None:
    root = folder(tmp_path, *PLAIN)
    (root / "ImageSets" / "Main" / "test.txt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_voc_boxes(root, "test")
    assert not verify.verify_dataset(root, Dataset("voc07", "own", "voc", ".", "test", "test"), None, "all", print)


@pytest.mark.parametrize("corner", ["nan", "inf", "-inf", "1_0", "\u0661", "1e999", "0x1", "", "1 2"])
def test_corners_are_finite_numbers_in_plain_digits(tmp_path: Path, corner: str) -> None:
    root = folder(tmp_path, "000001")
    (root / "ImageSets" / "Main" / "test.txt").write_text("000001\n")
    path = root / "Annotations" / "000001.xml"
    path.write_text(path.read_text().replace("<xmin>1</xmin>", f"<xmin>{corner}</xmin>"), encoding="utf-8")
    (image,), (sentence,) = read_voc_boxes(root, "test")
    assert not image.boxes
    assert sentence == f"object 1 of annotation {path} (dog) has a corner that is not a number"


@pytest.mark.parametrize("corner", [" 1 ", "+1.5", "1.", ".5e1"])
def test_corners_may_be_written_in_all_usual_ways(tmp_path: Path, corner: str) -> None:
    root = folder(tmp_path, "000001")
    (root / "ImageSets" / "Main" / "test.txt").write_text("000001\n")
    path = root / "Annotations" / "000001.xml"
    path.write_text(path.read_text().replace("<xmin>1</xmin>", f"<xmin>{corner}</xmin>"))
    (image,), broken = read_voc_boxes(root, "test")
    assert broken == [] and image.boxes[0].corners[0] == float(corner) - 1


def test_paths_that_nothing_can_read_are_user_errors(tmp_path: Path) -> None:
    root = folder(tmp_path, "000001")
    loop = root / "Annotations" / "loop.xml"
    loop.symlink_to(loop)
    for path in (loop, root / "Annotations" / f"{'x' * 300}.xml"):
        with pytest.raises(UserError, match=r"annotation .*\.xml can't be read \(.*\): correct its name in the list"):
            read_voc_objects(path)


def test_a_listed_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, *PLAIN)
    (root / "ImageSets" / "Main" / "test.txt").write_text("000001\nnot there\n")
    _, (sentence,) = read_voc_boxes(root, "test")
    assert "not there.xml is missing" in sentence


@pytest.mark.parametrize("encoding", ["gb2312", "gbk", "big5", "shift_jis", "euc-kr", "utf-16", "latin-1", "utf-8"])
@pytest.mark.parametrize("quote", ['"', "'"])
def test_annotations_may_be_in_any_encoding(tmp_path: Path, encoding: str, quote: str) -> None:
    root = folder(tmp_path, *PLAIN)
    (root / "ImageSets" / "Main" / "test.txt").write_text("000001\n")
    path = root / "Annotations" / "000001.xml"
    word = {"latin-1": "é", "euc-kr": "한"}.get(encoding, "中")
    folder_tag = f"<annotation><folder>{word}</folder>"
    text = path.read_text().replace("<annotation>", folder_tag)
    path.write_bytes(f"<?xml version={quote}1.0{quote} encoding={quote}{encoding}{quote} ?>\n{text}".encode(encoding))
    (image,), broken = read_voc_boxes(root, "test")
    assert broken == [] and image.boxes[0].corners == (0, 0, 9, 9)


@pytest.mark.parametrize(
    "content",
    [
        b'<?xml version="1.0" encoding="gb2312"?><annotation>\xff\xff</annotation>',
        b'<?xml version="1.0" encoding="klingon"?><annotation/>',
        b'<?xml version="1.0" encoding="zlib"?><annotation/>',
        b'<?xml version="1.0" encoding="utf-8"?><annotation>\xd6\xd0</annotation>',
        b"",
        b"\x00\x01",
    ],
)
def test_annotations_that_cannot_be_read_are_named(tmp_path: Path, content: bytes) -> None:
    root = folder(tmp_path, *PLAIN)
    path = root / "Annotations" / "000001.xml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"annotation {path} is not valid XML \("):
        read_voc_objects(path)
