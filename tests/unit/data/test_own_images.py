"""Own pictures become class folders of two splits, however they are stored, or a sentence says why not."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from reproduce.__main__ import main
from reproduce.cli import table_commands
from reproduce.config.compose import compose
from reproduce.config.schema import Dataset
from reproduce.config.validate import to_dataclass
from reproduce.data.datasets.image_folder import read_image_list, read_train_and_val
from reproduce.data.prepare.own_images import OwnImages, arrange
from reproduce.errors import UserError


def draw(root: Path, *names: str) -> None:
    """Write small pictures."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name)


def splits(own: OwnImages) -> dict[str, dict[str, list[str]]]:
    """Split -> class -> file names, read as a run reads them."""
    cfg = compose(
        "pretrain", ["experiment=swav_800ep", "scale=smoke", f"data={own.config}", f"paths.data_root={own.data}"]
    )
    dataset = to_dataclass(cfg.dataset, Dataset, "dataset")
    found: dict[str, dict[str, list[str]]] = {}
    for split, images in zip(("train", "val"), read_train_and_val(own.data / dataset.root, dataset), strict=True):
        for path, label in zip(images.paths, images.labels, strict=True):
            found.setdefault(split, {}).setdefault(images.classes[label], []).append(Path(path).name)
    return found


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tmp_path / "my pictures"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "links"


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "Test"), ("train", "validation")])
def test_folders_of_two_splits_are_read_where_they_are(pictures: Path, home: Path, names: tuple[str, str]) -> None:
    draw(pictures, *(f"{split}/{label}/1.png" for split in names for label in ("a", "b")), "notes/c/1.png")
    own = arrange(pictures, home)
    assert own.data == pictures and own.labeled
    assert splits(own) == {"train": {"a": ["1.png"], "b": ["1.png"]}, "val": {"a": ["1.png"], "b": ["1.png"]}}
    assert f"2 classes in {names[0]}/ and {names[1]}/" in own.summary


def test_class_folders_are_divided_class_by_class_and_always_alike(pictures: Path, home: Path) -> None:
    draw(
        pictures,
        *(f"a/{number}.jpg" for number in range(20)),
        *(f"b/sub/{number}.jpg" for number in range(5)),
        "c/x.png",
        "c/y.png",
        *(f"d/{number}.jpg" for number in range(8)),
    )
    own = arrange(pictures, home)
    found = splits(own)
    assert {split: {label: len(files) for label, files in found[split].items()} for split in found} == {
        "train": {"a": 16, "b": 4, "c": 1, "d": 6},
        "val": {"a": 4, "b": 1, "c": 1, "d": 2},
    }
    assert not set(found["train"]["a"]) & set(found["val"]["a"])
    listed = list(csv.DictReader((own.data / "split.csv").read_text().splitlines()))
    assert (
        len(listed) == 35
        and {"split": "val", "class": "b"}.items()
        <= next(
            row for row in listed if row["file"].removeprefix("sub/") == found["val"]["b"][0] and row["class"] == "b"
        ).items()
    )
    shutil.rmtree(home)
    assert arrange(pictures, home) == own and splits(own) == found
    assert arrange(pictures, home) == own  # the links that are there


def test_pictures_that_were_moved_are_the_same_dataset(pictures: Path, home: Path) -> None:
    """Their runs keep their names; the links lead to where they are now."""
    draw(pictures, *(f"{label}/{number}.png" for label in "ab" for number in range(3)))
    before = yaml.safe_load(arrange(pictures, home).config.read_text())
    moved = pictures.parent / "elsewhere" / pictures.name
    moved.parent.mkdir()
    pictures.rename(moved)
    own = arrange(moved, home)
    assert yaml.safe_load(own.config.read_text()) == before
    assert all(path.resolve().is_relative_to(moved) for path in own.data.glob("*/*/*"))


def test_other_pictures_are_another_dataset(pictures: Path, home: Path) -> None:
    draw(pictures, *(f"{label}/{number}.png" for label in "ab" for number in range(3)))
    before = arrange(pictures, home)
    draw(pictures, "a/new.png")
    after = arrange(pictures, home)
    assert before.data != after.data and before.config == after.config
    assert "new.png" in {name for split in splits(after).values() for name in split["a"]}


@pytest.mark.parametrize("name", ["metadata.csv", "labels.csv", "metadata.jsonl"])
def test_a_table_gives_labels(pictures: Path, home: Path, name: str) -> None:
    draw(pictures, *(f"images/{number}.png" for number in range(6)))
    rows = [{"file_name": f"images/{number}.png", "label": number % 2} for number in range(6)]
    if name.endswith(".jsonl"):
        (pictures / name).write_text("\n".join(map(json.dumps, rows)))
    else:
        (pictures / name).write_text(
            "File_Name,Label\n" + "".join(f"{row['file_name']},{row['label']}\n" for row in rows)
        )
    own = arrange(pictures if name.startswith("metadata") else pictures / name, home)
    assert {label: len(files) for label, files in splits(own)["train"].items()} == {"0": 2, "1": 2}


def test_a_table_may_give_splits(pictures: Path, home: Path) -> None:
    draw(pictures, *(f"{number}.png" for number in range(4)))
    (pictures / "metadata.csv").write_text(
        "file_name,label,split\n0.png,a,train\n1.png,b,train\n2.png,a,test\n3.png,b,testing\n"
    )
    assert splits(arrange(pictures, home)) == {
        "train": {"a": ["0.png"], "b": ["1.png"]},
        "val": {"a": ["2.png"], "b": ["3.png"]},
    }


def test_each_split_may_have_its_table(pictures: Path, home: Path) -> None:
    for split in ("train", "test"):
        draw(pictures / split, "1.png", "2.png")
        (pictures / split / "metadata.csv").write_text("file_name,label\n1.png,a\n2.png,b\n")
    assert splits(arrange(pictures, home))["val"] == {"a": ["1.png"], "b": ["2.png"]}


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("only/1.png", "only/deeper/2.png")])
def test_pictures_without_labels_can_train(pictures: Path, home: Path, names: tuple[str, ...]) -> None:
    draw(pictures, *names)
    own = arrange(pictures, home)
    assert not own.labeled and "2 pictures without labels" in own.summary
    dataset = Dataset(**yaml.safe_load(own.config.read_text())["imagenet"])
    assert [Path(path).name for path in read_image_list(own.data, dataset, "train").paths] == ["1.png", "2.png"]


def test_a_table_without_labels_may_have_one_split(pictures: Path, home: Path) -> None:
    draw(pictures, "1.png", "2.png")
    (pictures / "metadata.csv").write_text("file_name,split\n1.png,train\n2.png,train\n")
    assert not arrange(pictures, home).labeled


def table(text: str) -> dict[str, str]:
    return {"metadata.csv": text}


def jsonl(row: object) -> dict[str, str]:
    return {"metadata.jsonl": json.dumps(row)}


@pytest.mark.parametrize(
    ("drawn", "written", "says"),
    [
        ((), {}, "has no pictures"),
        ((), {"part-0.tar": ""}, "has archives (part-0.tar, ...): unpack them first"),
        (("a/1.png", "b/1.png", "b/2.png"), {}, "class a has one picture"),
        (("a/1.png", "b/1.png", "loose.png"), {}, "has pictures (loose.png, ...) beside folders of them (a, ...)"),
        (("train/a/1.png", "val/a/1.png"), {}, "train/ has one class, a, and every accuracy would be 100%"),
        (("train/a/1.png", "val/1.png"), {"val/metadata.csv": "file_name,label\n"}, "train/ has no class folders"),
        (("images/1.png",), {"labels.csv": ""}, "has no class folders, but labels.csv: for its labels give"),
        (("1.png",), table("label\na\n"), "row 1 names no file: the table needs a column file_name"),
        (("1.png",), table("file_name,label\n2.png,a\n"), "row 1 names 2.png, which is not there"),
        (("1.png",), table("file_name,label\n1.png,a/b\n"), "has the label 'a/b', which can't be the name of a folder"),
        (("1.png",), table("file_name,label\n1.png,a\n1.png,a\n"), "row 2 names 1.png a second time"),
        (("1.png",), table("file_name,label,split\n1.png,a,dev\n"), "has the split 'dev': write train or val"),
        (("1.png",), table("file_name,label\n"), "lists no pictures"),
        (("1.png", "2.png"), table("file_name,label\n1.png,a\n2.png,\n"), "has rows with a label and rows without"),
        (("1.png", "2.png"), table("file_name,label\n1.png,a\n2.png,a\n"), "has one class, a, and every accuracy"),
        (("1.png",), {"metadata.jsonl": "{"}, "can't be read as a table"),
        (("1.png",), table("file_name,label\n1.png,a\n./1.png,b\n"), "row 2 names ./1.png a second time, after row 1"),
        (("1.png",), table("file_name,label,split\n1.png,a,train\n1.png,a,val\n"), "row 2 names 1.png a second time"),
        (("1.png",), table("file_name,label\nmetadata.csv,a\n"), "row 1 names metadata.csv, which is no picture"),
        ((".a/1.png",), table("file_name,label\n.a/1.png,a\n"), "row 1 names .a/1.png, and .a is hidden"),
        (("1.png",), table("file_name,label, Label\n1.png,a,b\n"), "its header has the column label twice"),
        (("1.png",), jsonl({"file_name": "1.png", "label": "a", "LABEL": "b"}), "row 1 has the column label twice"),
        (
            ("1.png", "2.png"),
            table("file_name,label,split\n1.png,a,val\n2.png,a,test\n"),
            "has rows of split val and rows of split test",
        ),
        (
            ("1.png", "2.png"),
            table("file_name,label,split\n1.png,a,train\n2.png,a,\n"),
            "has rows with a split and rows without",
        ),
        *(
            (
                ("1.png", "2.png"),
                table(f"file_name,label,split\n1.png,a,{split}\n2.png,b,{split}\n"),
                f"metadata.csv has a label for each picture, and all are of split {known}: write {other} for some rows",
            )
            for split, known, other in (("train", "train", "val"), ("test", "val", "train"))
        ),
        (("1.png",), jsonl([1]), "row 1 is no object with keys, but '[1]'"),
        (("1.png",), jsonl(7), "row 1 is no object with keys, but '7'"),
        (("1.png",), jsonl(None), "row 1 is no object with keys, but 'None'"),
        (("1.png",), table("file_name,split\n1.png,val\n"), "all pictures are for validation and have no labels"),
        (("1.png",), jsonl({"file_name": "1.png", "label": "a\0"}), r"has the label 'a\x00', which can't be"),
        (("1.png",), jsonl({"file_name": "1.png", "label": "\ud800"}), r"has the label '\ud800', which can't be"),
        (("1.png",), jsonl({"file_name": "1.png", "label": "é" * 128}), "...', which can't be the name of a folder"),
        (("1.png",), jsonl({"file_name": "x" * 300 + ".png", "label": "a"}), "can't be the name of a file"),
        (("1.png",), jsonl({"file_name": "\ud800.png", "label": "a"}), "can't be the name of a file"),
        (("1.png",), jsonl({"file_name": "x/" * 3000 + "1.png", "label": "a"}), "can't be found (File name too long)"),
        (
            ("d.png/x.png", "sub/d.png"),
            {"sub/M.csv": "file_name,label\n../d.png/x.png,a\nd.png,a\n"},
            "row 2 names d.png, whose link would be in the way of that of ../d.png/x.png",
        ),
        (
            ("d.png/x.png", "sub/d.png"),
            {"sub/M.csv": "file_name,label\nd.png,a\n../d.png/x.png,a\n"},
            "row 2 names ../d.png/x.png, whose link would be in the way of that of d.png",
        ),
        (
            ("data/train/a/1.png", "data/val/a/1.png"),
            {},
            "but data/ has folders for training and validation: give IMAGES=",
        ),
        (
            ("x/y/Train/a/1.png", "x/y/test/a/1.png"),
            {},
            "but x/y/ has folders for training and validation: give IMAGES=",
        ),
    ],
)
def test_what_cannot_be_understood_is_a_sentence(
    pictures: Path, home: Path, drawn: tuple[str, ...], written: dict[str, str], says: str
) -> None:
    pictures.mkdir()
    draw(pictures, *drawn)
    for name, text in written.items():
        (pictures / name).write_text(text)
    tables = [pictures / name for name in written if name.endswith("M.csv")]
    with pytest.raises(UserError) as raised:
        arrange(tables[0] if tables else pictures, home)
    assert says in str(raised.value)


def test_links_that_lead_elsewhere_are_other_pictures(tmp_path: Path, home: Path) -> None:
    """Class folders that are links are led to other files of the same names; runs keep their names."""
    for version in ("old", "new"):
        draw(tmp_path / version, *(f"{label}/{number}.png" for label in "ab" for number in range(3)))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    found = []
    for version in ("old", "new"):
        for label in "ab":
            (pictures / label).unlink(missing_ok=True)
            (pictures / label).symlink_to(tmp_path / version / label)
        own = arrange(pictures, home)
        links = list(own.data.glob("*/*/*.png"))
        assert len(links) == 6 and all(link.resolve().is_relative_to(tmp_path / version) for link in links)
        assert all(link.readlink().is_relative_to(pictures) for link in links)
        found.append((own.data, own.config.read_text()))
    (old_data, old_config), (new_data, new_config) = found
    assert old_data != new_data and old_config == new_config


def test_a_class_may_be_called_unlabeled(pictures: Path, home: Path) -> None:
    draw(pictures, *(f"{label}/{number}.png" for label in ("unlabeled", "b") for number in range(2)))
    own = arrange(pictures, home)
    assert own.labeled and "4 pictures of 2 classes" in own.summary
    assert set(splits(own)["val"]) == {"unlabeled", "b"}


def test_no_folder_is_called_like_an_official_data_set(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers would be compared with the paper's."""
    official = tmp_path / "ILSVRC2012"
    draw(official, *(f"{split}/{label}/1.png" for split in ("train", "val") for label in "ab"))
    monkeypatch.chdir(official)
    for given in (official, Path(".")):
        config = yaml.safe_load(arrange(given, home).config.read_text())
        assert config["imagenet"]["source"] == "own ILSVRC2012"


def test_one_file_may_not_be_in_the_tables_of_both_splits(pictures: Path, home: Path) -> None:
    draw(pictures, "train/1.png", "train/2.png", "val/1.png")
    (pictures / "train" / "metadata.csv").write_text("file_name,label\n1.png,a\n2.png,b\n")
    (pictures / "val" / "metadata.csv").write_text("file_name,label\n1.png,a\n../train/2.png,b\n")
    with pytest.raises(UserError, match=r"val/metadata.csv, row 2 names \.\./train/2.png a second time, after .*row 2"):
        arrange(pictures, home)


def test_suffixes_of_tables_are_in_any_case(pictures: Path, home: Path) -> None:
    draw(pictures, *(f"{number}.png" for number in range(4)))
    rows = [{"file_name": f"{number}.png", "label": number % 2} for number in range(4)]
    (pictures / "M.JSONL").write_text("\n".join(map(json.dumps, rows)))
    assert "4 pictures of 2 classes" in arrange(pictures / "M.JSONL", home).summary


def test_folders_without_end_are_a_sentence(pictures: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.mkdir()
    monkeypatch.chdir(pictures)
    for _ in range(210):
        Path("d").mkdir()
        os.chdir("d")
    with pytest.raises(UserError, match=r"my pictures/d has more than 200 levels of folders: move its images"):
        arrange(pictures, home)


def test_nothing_is_left_of_an_interrupted_arrangement(
    pictures: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(pictures, *(f"{label}/{number}.png" for label in "ab" for number in range(3)))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "symlink_to", interrupt)
        with pytest.raises(KeyboardInterrupt):
            arrange(pictures, home)
    assert list(home.iterdir()) == []
    assert splits(arrange(pictures, home))


def test_split_names_that_differ_by_case_are_pointed_out(tmp_path: Path) -> None:
    """As in a public set: `Coast` in train, `coast` in test."""
    draw(tmp_path, "train/Coast/1.png", "train/city/1.png", "val/coast/1.png", "val/city/1.png")
    with pytest.raises(UserError, match=r"e\.g\. Coast, coast, which differ only in upper and lower case: rename them"):
        read_train_and_val(tmp_path, Dataset("imagenet", "mine", "folders", ".", "train", "val"))


def test_commands_take_pictures(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(pictures, *(f"{label}/{number}.png" for label in "ab" for number in range(5)))
    assert main(["plan", "table7", "--images", str(pictures)]) == 0
    printed = capsys.readouterr().out
    assert "10 pictures of 2 classes, of which one in 5 of each class is for validation" in printed
    assert "data imagenet: my-pictures" in printed and "there" in printed
    with pytest.raises(UserError, match="without --data and --data-config"):
        main(["plan", "table7", "--images", str(pictures), "--data", "x"])
    shutil.rmtree(pictures)
    draw(pictures, "1.png", "2.png")
    with pytest.raises(UserError, match="only an evaluation needs labels"):
        main(["plan", "table7", "--images", str(pictures)])


@pytest.mark.parametrize(
    ("given", "status"), [(["--images", "own"], 0), (["--data", "own", "--data-config", "own.yaml"], 4)]
)
def test_numbers_of_own_pictures_have_nothing_to_be_compared_with(
    given: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who names pictures expects that; a layout could be the official one by mistake."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "own", *(f"{split}/{label}/1.png" for split in ("train", "val") for label in "ab"))
    dataset = {"name": "imagenet", "source": "mine", "layout": "folders", "root": ".", "train": "train", "val": "val"}
    Path("own.yaml").write_text(yaml.safe_dump({"name": "own", "imagenet": dataset}))
    monkeypatch.setattr(table_commands, "execute", lambda *_: [])
    monkeypatch.setattr(table_commands, "_report", lambda _: "page")
    monkeypatch.setattr("reproduce.cli.check.check_plan", lambda *_: 4)
    assert main(["reproduce", "table7", *given]) == status
