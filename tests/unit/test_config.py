"""What a request resolves to, and what names a run."""

import importlib
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from reproduce.config.compose import CONF_DIR, GLOBAL_PACKAGE, compose, group_options
from reproduce.config.identity import config_hash, run_dir, run_id
from reproduce.config.validate import to_dataclass
from reproduce.errors import UserError

SWAV = ("experiment=swav_800ep", "scale=smoke")


@pytest.mark.parametrize("scale", group_options("scale"))
@pytest.mark.parametrize("experiment", group_options("experiment"))
def test_every_experiment_is_complete_at_every_scale(experiment: str, scale: str) -> None:
    cfg = compose("pretrain", [f"experiment={experiment}", f"scale={scale}"])
    assert cfg.name == experiment
    assert not OmegaConf.missing_keys(cfg.dataset)


@pytest.mark.parametrize("scale", group_options("scale"))
@pytest.mark.parametrize("name", group_options("eval"))
def test_every_evaluation_is_complete_at_every_scale(name: str, scale: str) -> None:
    cfg = compose("evaluate", [f"eval={name}", f"scale={scale}", "checkpoint=x"])
    assert cfg.name == name
    to_dataclass(cfg.protocol, importlib.import_module(f"evals.{cfg.protocol.name}").Protocol, "protocol")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: mine\n", r"eval/mine\.yaml has to begin with the line '# @package _global_'"),
        (
            f"{GLOBAL_PACKAGE}\nname: mine\ndataset: imagenet\nprotocol: {{name: knn}}\n",
            r"'imagenet' is no data set: write \$\{data",
        ),
    ],
)
def test_a_wrong_evaluation_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    shutil.copytree(CONF_DIR, tmp_path / "conf")
    (tmp_path / "conf" / "eval" / "mine.yaml").write_text(text)
    monkeypatch.setattr("reproduce.config.compose.CONF_DIR", tmp_path / "conf")
    with pytest.raises(UserError, match=sentence):
        compose("evaluate", ["eval=mine", "checkpoint=x"])


def test_the_papers_scale_changes_no_size() -> None:
    scale = compose("pretrain", ["experiment=swav_800ep", "scale=paper"]).scale
    for sizes in (scale.width, scale.head_hidden_dim, scale.size_px, scale.num_prototypes, scale.epochs):
        assert {key: float(key) for key in sizes} == {key: float(value) for key, value in sizes.items()}


def test_the_recipe_of_swav_at_paper_scale() -> None:
    """A.1 and A.2."""
    cfg = compose("pretrain", ["experiment=swav_800ep", "scale=paper"])
    assert (cfg.epochs, cfg.batch_size, cfg.network.head_hidden_dim, cfg.network.embedding_dim) == (
        800,
        4096,
        2048,
        128,
    )
    assert [(view.num, view.size_px, list(view.scale)) for view in cfg.crops.views] == [
        (2, 224, [0.14, 1.0]),
        (6, 96, [0.05, 0.14]),
    ]
    assert (cfg.method.num_prototypes, cfg.method.temperature, cfg.method.epsilon) == (3000, 0.1, 0.05)
    assert (cfg.optimizer.lr, cfg.optimizer.final_lr, cfg.optimizer.warmup_start_lr) == (4.8, 0.0048, 0.3)
    assert (cfg.optimizer.weight_decay, cfg.optimizer.momentum, cfg.optimizer.warmup_epochs) == (1e-6, 0.9, 10)
    assert list(cfg.normalize.std) == [0.228, 0.224, 0.225]
    assert list(cfg.crops.augment.color_jitter) == [0.8, 0.8, 0.8, 0.2]


def test_equal_configs_are_one_run_wherever_and_however_it_runs() -> None:
    plain = compose("pretrain", [*SWAV])
    moved = compose(
        "pretrain",
        [
            *SWAV,
            "paths.data_root=/elsewhere",
            "cluster.num_workers=4",
            "logging.wandb=false",
            "logging.wandb_group=table3-smoke",
        ],
    )
    assert run_id(plain) == run_id(moved)
    assert run_dir(plain) == Path("results") / "smoke" / run_id(plain)
    changes = ["seed=1", "epochs=2", "method.epsilon=0.04", "precision=bf16", "data=cifar10", "on_bad_image=skip"]
    ids = {run_id(compose("pretrain", [*SWAV, change])) for change in changes}
    assert len(ids | {run_id(plain)}) == len(changes) + 1


def test_a_checkpoint_file_counts_by_its_content(tmp_path: Path) -> None:
    def named(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return config_hash(compose("evaluate", ["eval=knn", f"checkpoint={tmp_path / name}"]))

    assert named("a.pt", b"one") == named("b.pt", b"one") != named("a.pt", b"two")


def test_a_catalogue_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("imagenet: {source: mine, layout: folders, root: pictures, train: train, val: test}\n")
    cfg = compose("pretrain", [*SWAV, f"data={own}"])
    assert (cfg.dataset.name, cfg.dataset.root, cfg.data.name) == ("imagenet", "pictures", "mine")
    own.write_text("imagenet: {sauce: mine}\n")
    with pytest.raises(UserError, match="sauce"):
        compose("pretrain", [*SWAV, f"data={own}"])
    with pytest.raises(UserError, match=r"nowhere\.yaml is not there"):
        compose("pretrain", [*SWAV, "data=nowhere.yaml"])
