"""Everything that can change a run's numbers is in the run's name."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from reproduce import evaluate, measure, pretrain
from reproduce.config import RunKind
from reproduce.config.command_line import config_from_command_line
from reproduce.config.compose import compose, group_options
from reproduce.config.identity import UNHASHED_SECTIONS, config_hash, identity
from reproduce.system import CONF_DIR
from tests.runs import REPO_ROOT, TINY, call, tiny_pictures
from tests.unit.evals.test_own_classifier import file_with_classifier

READ_OUTSIDE_THE_NAME = {
    "data.name": "names the catalog in an error",
    "paths.data_root": "the result records the hash of the manifest of what is there",
    "paths.results": "where the run writes",
    "cluster.num_threads": "the order of float sums",
    "cluster.num_workers": "each image draws its own random numbers, whichever worker reads it",
    "cluster.sync_batchnorm": "two implementations of one layer",
    "cluster.activation_checkpointing": "recomputes the same activations",
    "cluster.compile_backend": "another implementation of the same network",
    "cluster.gpus_per_process": "a run that lacks a GPU ends",
    "cluster.collective_timeout_minutes": "a run that waits for longer ends",
    "cluster.cudnn_benchmark": "which of cuDNN's algorithms for the same convolution",
    "cluster.deterministic": "the order of float sums",
    "logging.every_steps": "how often metrics are logged",
    "logging.wandb": "whether they go to W&B, too",
    "logging.wandb_group": "where they are shown",
    "checkpointing.save_every_seconds": "a resumed run computes the same numbers",
    "checkpointing.sync_every_steps": "a resumed run computes the same numbers",
}
"""Keys that runs read and that no name contains, and why they can't change a number (docs/numerics.md)."""
REQUESTS: list[tuple[RunKind, list[str]]] = [
    ("pretrain", ["experiment=swav_800ep"]),
    ("evaluate", ["eval=semisup_1pct", "checkpoint=x"]),
    ("measure", ["experiment=swav_800ep", "measurement=cost", "name=x"]),
]


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix


@pytest.mark.parametrize(("kind", "overrides"), REQUESTS)
def test_every_key_that_is_not_listed_as_unhashed_changes_the_name(kind: RunKind, overrides: list[str]) -> None:
    plain = OmegaConf.to_container(compose(kind, overrides))
    cfg: Any = OmegaConf.create(plain)
    unchanged = config_hash(cfg)
    for key in leaves(plain):
        value = OmegaConf.select(cfg, key)
        OmegaConf.update(cfg, key, "another")
        assert (config_hash(cfg) == unchanged) == (key.split(".")[0] in UNHASHED_SECTIONS), key
        OmegaConf.update(cfg, key, value)


@pytest.mark.parametrize("key", ["another", "dataset.another", "protocol.center_crop.another"])
def test_an_option_that_is_null_leaves_the_name_alone(key: str) -> None:
    """At every level, so that an option added later does not rename the runs that lack it."""
    cfg: Any = OmegaConf.create(OmegaConf.to_container(compose("evaluate", ["eval=knn", "checkpoint=x"])))
    unchanged = config_hash(cfg)
    OmegaConf.update(cfg, key, None, force_add=True)
    assert config_hash(cfg) == unchanged
    OmegaConf.update(cfg, key, 0)
    assert config_hash(cfg) != unchanged


@pytest.mark.parametrize(
    ("kind", "request_", "changes"),
    [
        ("evaluate", ["eval=linear_imagenet", "checkpoint=x", "protocol.batch_size=32"], "scale.linear.batch_size=64"),
        ("pretrain", ["experiment=swav_800ep"], "scale.large_batch.lr=0.7"),
        ("pretrain", ["experiment=swav_800ep"], "collapse.on_collapse=warn"),
        ("pretrain", ["experiment=swav_800ep"], "normalize=imagenet"),
        ("pretrain", ["experiment=swav_800ep"], "+method.another=1"),
    ],
)
def test_values_that_change_numbers_change_the_name(kind: RunKind, request_: list[str], changes: str) -> None:
    assert config_hash(compose(kind, request_)) != config_hash(compose(kind, [*request_, changes]))


def test_code_reads_no_unhashed_key_but_the_listed_ones() -> None:
    """By the text of all that runs execute; the next test finds what is read under another name."""
    harness = REPO_ROOT / "reproduce" / "harness"
    files = [path for room in ("reproduce", "models", "evals") for path in (REPO_ROOT / room).rglob("*.py")]
    sections = "|".join(["scale", *UNHASHED_SECTIONS])
    found = {
        (path.relative_to(REPO_ROOT).as_posix(), f"{section}.{key}")
        for path in files
        if harness not in path.parents
        for section, key in re.findall(rf"\bcfg\.({sections})(?:\.|\[[\"']|\.get\([\"'])(\w+)", path.read_text())
    }
    assert {(path, key) for path, key in found if key not in READ_OUTSIDE_THE_NAME} == set()


def visible(cfg: DictConfig) -> DictConfig:
    """`cfg` with nothing but what its name contains and the listed keys: reading another one raises."""
    plain: Any = OmegaConf.to_container(cfg)
    shown = {section: value for section, value in plain.items() if section in identity(cfg) or value is None}
    for key in READ_OUTSIDE_THE_NAME:
        section, name = key.split(".")
        shown.setdefault(section, {})[name] = plain[section][name]
    made = OmegaConf.create(shown)
    OmegaConf.set_struct(made, True)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    tiny_pictures(root)
    return root


@pytest.fixture(scope="module")
def trunk(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("random")
    with pytest.MonkeyPatch.context() as patch:
        assert call(pretrain.main, patch, *TINY, "experiment=random", f"paths.results={results}")[0] == 0
    (path,) = results.glob("smoke/random-*/checkpoint.pt")
    return path


QUICK = ("cluster.num_workers=0", "cluster.num_threads=1", "logging.wandb=false")
PROTOCOLS: dict[str, tuple[str, ...]] = {
    "knn": ("protocol.num_neighbors=[1]",),
    "voc07_svm": ("protocol.costs=[1]",),
    "linear": ("protocol.epochs=1", "protocol.batch_size=8"),
    "finetune": ("protocol.epochs=1", "protocol.batch_size=8"),
    "own_classifier": (),
    "coco_detr": (
        "protocol.epochs=1", "protocol.batch_size=30", "protocol.transformer.num_layers=1",
        "protocol.transforms.train_sizes_px=[32]", "protocol.transforms.test_size_px=32",
    ),
    "voc_detection": (
        "protocol.batch_size=4", "protocol.detectron2.INPUT.MIN_SIZE_TRAIN=[32]",
        "protocol.detectron2.SOLVER.MAX_ITER=2",
        "protocol.detectron2.INPUT.MIN_SIZE_TEST=32", "protocol.detectron2.SOLVER.STEPS=[1]",
        "protocol.detectron2.SOLVER.WARMUP_ITERS=1", "protocol.detectron2.TEST.PRECISE_BN.NUM_ITER=1",
    ),
}  # fmt: skip
"""What makes an evaluation short, by the name of its protocol."""


def run_on_what_is_visible(
    kind: RunKind, overrides: tuple[str, ...], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(kind: RunKind, arguments: list[str]) -> DictConfig:
        return visible(config_from_command_line(kind, arguments))

    monkeypatch.setattr("reproduce.engine.runs.run.config_from_command_line", hidden)
    monkeypatch.setattr("reproduce.measure.config_from_command_line", hidden)
    main = {"pretrain": pretrain.main, "evaluate": evaluate.main, "measure": measure.main}[kind]
    status, said = call(main, monkeypatch, *overrides, f"paths.results={results}")
    assert status == 0, said


def test_a_pretraining_reads_nothing_that_its_name_leaves_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (*TINY, "experiment=swav_800ep", "epochs=1", f"paths.data_root={data}")
    run_on_what_is_visible("pretrain", asked, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", group_options("eval"))
def test_an_evaluation_reads_nothing_that_its_name_leaves_out(
    name: str, data: Path, trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("voc_detection"):
        pytest.importorskip("detectron2")
    protocol = OmegaConf.load(CONF_DIR / "eval" / f"{name}.yaml").protocol
    short = [*QUICK, *PROTOCOLS[protocol.name]]
    if "subset" in protocol:  # one image of each class
        short.append("protocol.subset." + ("fraction=0.5" if "fraction" in protocol.subset else "images_per_class=1"))
    checkpoint = trunk
    if name == "own_classifier":
        num_classes = len(list((data / "imagenet" / "train").iterdir()))
        checkpoint = file_with_classifier(num_classes, tmp_path, monkeypatch)
    asked = (f"eval={name}", f"checkpoint={checkpoint}", f"paths.data_root={data}", *short)
    run_on_what_is_visible("evaluate", asked, tmp_path, monkeypatch)


@pytest.mark.parametrize("measurement", ["cost", "parameters"])
def test_a_measurement_reads_nothing_that_its_name_leaves_out(
    measurement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("measurement.num_steps=1", "measurement.images_per_step=4", "batch_size=64") if measurement == "cost" else ()
    asked = ("experiment=swav_100ep", f"measurement={measurement}", "name=x", "network.width=0.0625", *few, *QUICK)
    run_on_what_is_visible("measure", asked, tmp_path, monkeypatch)


def test_what_is_not_in_the_name_cannot_be_read() -> None:
    """The tests above have teeth: a scale's table and an unlisted key are not there to be read."""
    cfg = visible(compose("evaluate", ["eval=linear_imagenet", "checkpoint=x"]))
    assert cfg.scale == "smoke"
    for section, key in (("cluster", "num_processes"), ("paths", "another"), ("data", "imagenet")):
        with pytest.raises(Exception, match=rf"{section}|{key}"):
            _ = cfg[section][key]
