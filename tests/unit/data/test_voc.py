"""Reading boxes from VOC's annotations."""

from pathlib import Path

import pytest
from PIL import Image

from reproduce.data.datasets.voc import VocBox, VocImage, read_voc_boxes
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
