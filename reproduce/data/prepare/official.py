"""The official datasets: where to get each, and its number of classes and images."""

from dataclasses import dataclass, field

from reproduce.data.datasets.imagenet import NUM_IMAGENET_CLASSES, NUM_IMAGENET_IMAGES


@dataclass(frozen=True)
class SplitSpec:
    """A split's number of images, and the number per class if all classes have equally many."""

    num_images: int
    per_class: int | None = None


@dataclass(frozen=True)
class Archive:
    """A file that the publisher offers, its URL if anybody may download it, and its published MD5 if there is one."""

    name: str
    url: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """What a dataset contains according to its authors, and the archives that it is published in."""

    source: str
    home: str
    """The web site to get it from."""
    num_classes: int
    splits: dict[str, SplitSpec]
    archives: tuple[Archive, ...] = field(default=())


VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018"

DATASET_SPECS = {
    item.source: item
    for item in (
        DatasetSpec(
            "ILSVRC2012",
            "image-net.org, after registration",
            NUM_IMAGENET_CLASSES,
            {"train": SplitSpec(NUM_IMAGENET_IMAGES), "val": SplitSpec(50_000, per_class=50)},
            (
                Archive("ILSVRC2012_img_train.tar", md5="1d675b47d978889d74fa0da5fadfb00e"),
                Archive("ILSVRC2012_img_val.tar", md5="29b22e2961454d5413ddabcf34fc5622"),
                Archive("ILSVRC2012_devkit_t12.tar.gz", md5="fa75699e90414af021442c21a62c3abf"),
            ),
        ),
        DatasetSpec(
            "Places205",
            "places.csail.mit.edu, after registration",
            205,
            {"train": SplitSpec(2_448_873), "val": SplitSpec(20_500, per_class=100)},
            (Archive("imagesPlaces205_resize.tar.gz"), Archive("trainvalsplit_places205.tar.gz")),
        ),
        DatasetSpec(
            "iNaturalist2018",
            "github.com/visipedia/inat_comp",
            8142,
            {"train": SplitSpec(437_513), "val": SplitSpec(24_426, per_class=3)},
            (
                Archive("train_val2018.tar.gz", f"{INAT}/train_val2018.tar.gz", "b1c6952ce38f31868cc50ea72d066cc3"),
                Archive("train2018.json.tar.gz", f"{INAT}/train2018.json.tar.gz", "bfa29d89d629cbf04d826a720c0a68b0"),
                Archive("val2018.json.tar.gz", f"{INAT}/val2018.json.tar.gz", "f2ed8bfe3e9901cdefceb4e53cd3775d"),
            ),
        ),
        DatasetSpec(
            "VOC2007",
            "host.robots.ox.ac.uk/pascal/VOC",
            20,
            {"trainval": SplitSpec(5011), "test": SplitSpec(4952)},
            (
                Archive(
                    "VOCtrainval_06-Nov-2007.tar",
                    f"{VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
                    "c52e279531787c972589f7e41ab4ae64",
                ),
                Archive(
                    "VOCtest_06-Nov-2007.tar",
                    f"{VOC}/voc2007/VOCtest_06-Nov-2007.tar",
                    "b6e924de25625d8de591ea690078ad9f",
                ),
            ),
        ),
        DatasetSpec(
            "VOC2012",
            "host.robots.ox.ac.uk/pascal/VOC",
            20,
            {"trainval": SplitSpec(11_540)},
            (
                Archive(
                    "VOCtrainval_11-May-2012.tar",
                    f"{VOC}/voc2012/VOCtrainval_11-May-2012.tar",
                    "6cd6e144f989b92b3379bac3b3de84fd",
                ),
            ),
        ),
        DatasetSpec(
            "COCO2017",
            "cocodataset.org",
            80,
            {"train2017": SplitSpec(118_287), "val2017": SplitSpec(5_000)},
            (Archive("train2017.zip"), Archive("val2017.zip"), Archive("annotations_trainval2017.zip")),
        ),
        DatasetSpec(
            "CIFAR-10",
            "www.cs.toronto.edu/~kriz/cifar.html",
            10,
            {"train": SplitSpec(50_000, per_class=5000), "test": SplitSpec(10_000, per_class=1000)},
            # The binary version: of the three published ones, it needs no unpickling.
            (
                Archive(
                    "cifar-10-binary.tar.gz",
                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                    "c32a1d4ab5d03f1284b67883e8d87530",
                ),
            ),
        ),
    )
}
"""By `source`, as in conf/data/standard.yaml."""
