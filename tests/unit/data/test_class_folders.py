"""Which files of class folders count: pictures at every depth, nothing hidden; the rest is named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from reproduce.config.schema import Dataset
from reproduce.data.datasets.image_folder import read_image_folder
from reproduce.data.prepare import verify
from reproduce.errors import UserError

HIDDEN = (".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", ".git", "$RECYCLE.BIN", "#recycle", ".Trash-1000")


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, format="PNG")
    return path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Two classes of two pictures."""
    for name in ("cat/1.jpg", "cat/2.png", "dog/1.jpeg", "dog/2.WEBP"):
        picture(tmp_path / "train" / name)
    return tmp_path / "train"


def names(split: Path) -> list[str]:
    found = read_image_folder(split)
    return [path.removeprefix(f"{split}/") for path in found.paths]


PLAIN = ["cat/1.jpg", "cat/2.png", "dog/1.jpeg", "dog/2.WEBP"]


def test_a_plain_split_has_nothing_passed_over(split: Path) -> None:
    found = read_image_folder(split)
    assert (names(split), found.labels, found.classes, found.passed_over) == (PLAIN, [0, 0, 1, 1], ["cat", "dog"], "")


def test_pictures_in_deeper_folders_belong_to_the_class_as_in_torchvision(split: Path) -> None:
    from torchvision.datasets import ImageFolder

    picture(split / "cat" / "2019" / "may" / "x.jpg")
    picture(split / "dog" / "a" / "1.jpg")
    found = read_image_folder(split)
    theirs = sorted(
        (Path(path).relative_to(split).as_posix(), label) for path, label in ImageFolder(str(split)).samples
    )
    ours = sorted(
        (Path(path).relative_to(split).as_posix(), label) for path, label in zip(found.paths, found.labels, strict=True)
    )
    assert ours == theirs and ("cat/2019/may/x.jpg", 0) in ours


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("above", ["", "cat/", "cat/2019/"], ids=["as a class", "in a class", "deeper"])
def test_hidden_folders_are_skipped_at_every_level_and_named(split: Path, name: str, above: str) -> None:
    picture(split / f"{above}{name}" / "1.jpg")
    found = read_image_folder(split)
    assert (names(split), found.classes) == (PLAIN, ["cat", "dog"])
    assert f"1 hidden or system files and folders ({above}{name})" in found.passed_over


def test_hidden_files_are_skipped(split: Path) -> None:
    (split / "cat" / "._1.jpg").write_bytes(b"of macOS")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (split / "cat" / name).write_bytes(b"x")
    assert names(split) == PLAIN
    assert read_image_folder(split).passed_over == (
        f"passed over in {split}: 1 hidden or system files and folders (cat/._1.jpg)"
    )


def test_files_of_other_kinds_are_named(split: Path) -> None:
    for name in ("cat/3.bmp", "cat/4.BMP", "dog/notes.txt", "1.jpg", "dog/README"):
        picture(split / name)
    assert names(split) == PLAIN
    assert read_image_folder(split).passed_over == (
        f"passed over in {split}: 1 files beside the class folders (1.jpg); 4 files that are not .jpg, .jpeg, .png, "
        ".webp (2 .bmp, 1 no suffix, 1 .txt: cat/3.bmp, cat/4.BMP, dog/README, dog/notes.txt)"
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda split: (split / "eel").mkdir(), r"have no images \(1\): eel;"),
        (lambda split: picture(split / "eel" / "1.bmp"), r"have no images \(1\): eel \(which has 1\.bmp\);"),
        (lambda split: picture(split / "eel" / ".git" / "1.jpg"), r"have no images \(1\): eel;"),
    ],
    ids=["empty", "other suffix", "hidden only"],
)
def test_a_class_without_pictures_is_an_error(split: Path, make: Callable[[Path], object], said: str) -> None:
    make(split)
    with pytest.raises(UserError, match=said):
        read_image_folder(split)


def test_links_are_followed_but_not_in_circles(split: Path, tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "z" / "9.jpg")
    (split / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    assert "cat/linked/z/9.jpg" in names(split)
    (split / "cat" / "loop").symlink_to(split / "cat")
    with pytest.raises(UserError, match="is a link to a folder above it"):
        read_image_folder(split)


def test_verification_lists_what_runs_read(split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(split / "cat" / "2019" / "x.jpg")
    picture(split / ".ipynb_checkpoints" / "1.jpg")
    picture(split / "cat" / "@eaDir" / "1.jpg")
    shutil.copytree(split, tmp_path / "val")
    dataset = Dataset("own", "own", "folders", ".", "train", "val")
    assert not verify.verify_dataset(tmp_path, dataset, None, "all", print)
    said = capsys.readouterr().out
    assert "train: 5 images" in said
    assert (
        "unexpected: hidden or system files and folders in train, which are ignored (2): .ipynb_checkpoints, cat/@eaDir"
    ) in said
