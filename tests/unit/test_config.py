"""What a request resolves to, and what names a run."""

import itertools
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from reproduce.config import RunKind
from reproduce.config.command_line import config_from_command_line
from reproduce.config.compose import GLOBAL_PACKAGE, compose, compose_unresolved, group_options
from reproduce.config.identity import config_hash, run_dir, run_id
from reproduce.errors import UserError
from reproduce.system import CONF_DIR

SWAV = ("experiment=swav_800ep", "scale=smoke")
WITH_USUAL_STATISTICS = ("coco_detr", "knn", "linear_inat18", "linear_places205", "voc07_svm")


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


def test_paper_scale_changes_no_size() -> None:
    scale = compose_unresolved("pretrain", ["experiment=swav_800ep", "scale=paper"]).scale
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


def test_paths_and_cluster_are_not_in_the_run_id() -> None:
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


def test_a_catalog_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("imagenet: {source: mine, layout: folders, root: pictures, train: train, val: test}\n")
    cfg = compose("pretrain", [*SWAV, f"data={own}"])
    assert (cfg.dataset.name, cfg.dataset.root, cfg.data.name) == ("imagenet", "pictures", "mine")
    own.write_text("imagenet: {sauce: mine}\n")
    with pytest.raises(UserError, match="sauce"):
        compose("pretrain", [*SWAV, f"data={own}"])
    with pytest.raises(UserError, match=r"nowhere\.yaml is not there"):
        compose("pretrain", [*SWAV, "data=nowhere.yaml"])


@pytest.mark.parametrize("path", sorted((CONF_DIR / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_composes_groups_directly_and_says_what_to_expect(path: Path) -> None:
    """From a value to its definition are two hops: the experiment or a group that it names, then the scale."""
    opening = "".join(
        itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines(keepends=True))
    )
    assert opening.startswith(GLOBAL_PACKAGE) and "Expected: " in opening and "Hardware: " in opening
    defaults = OmegaConf.load(path).defaults
    assert all(OmegaConf.is_dict(item) and str(next(iter(item))).startswith("override /") for item in defaults)


@pytest.mark.parametrize(
    ("interpolation", "says"),
    [
        ("scale.batch_size.2048", r"scale\.batch_size has 4096, .*256 \(reproduce/conf/scale\)"),
        ("scale.batchsize", "did you mean 'batch_size'"),
        ("optimiser.lr", "'optimiser.lr' not found"),
    ],
)
def test_an_interpolation_of_an_unknown_key_is_answered_with_those_there_are(interpolation: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        compose("pretrain", ["experiment=swav_800ep", "scale=smoke", f"batch_size=${{{interpolation}}}"])


@pytest.mark.parametrize("group", ["crops", "method", "normalize", "data", "cluster", "measurement"])
def test_an_option_of_a_group_stands_by_itself(group: str) -> None:
    assert not any("defaults" in OmegaConf.load(CONF_DIR / group / f"{name}.yaml") for name in group_options(group))


@pytest.mark.parametrize("name", group_options("eval"))
def test_an_evaluation_selects_nothing_but_its_normalization_or_another_evaluation(name: str) -> None:
    """Normalization where its official code has other statistics than SwAV's, .229 for red in place of .228."""
    config = OmegaConf.load(CONF_DIR / "eval" / f"{name}.yaml")
    selected = OmegaConf.select(config, "defaults") or []
    usual = {"override /normalize": "imagenet"}
    assert (usual in selected) == (name in WITH_USUAL_STATISTICS)
    assert all(item in (usual, "_self_", *group_options("eval")) for item in selected)


def test_normalize_is_a_group_of_every_kind() -> None:
    for kind, request in (("pretrain", ["experiment=swav_800ep"]), ("evaluate", ["eval=knn", "checkpoint=x"])):
        assert compose(kind, [*request, "normalize=imagenet"]).normalize.std[0] == 0.229  # type: ignore[arg-type]


def test_cfg_job_says_where_values_come_from_and_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["--cfg", "job"], "lr: ${scale.large_batch.lr}"),
        (["--cfg", "job", "--resolve", "--package", "optimizer", "optimizer.lr=0.7"], "lr: 0.7"),
        (["--cfg", "job", "-p", "optimizer.lr", "--resolve"], "1.2"),
        (["--cfg", "job", "-p", "network.batchnorm_group_size", "--resolve"], "null\n"),
        (["--help"], "experiment: bownet_305ep"),
    ):
        with pytest.raises(SystemExit) as end:
            config_from_command_line("pretrain", arguments)
        assert end.value.code in (0, None)
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--multirun", "seed=1,2"], "multirun is not supported.* SEEDS=3"),
        (["-m"], "multirun is not supported"),
        (["seed=1,2"], "multirun is not supported.* table"),
        (["--cfg", "job", "-p", "optimiser"], "did you mean 'optimizer'"),
        (["--nope"], "unrecognized arguments: --nope"),
        (["~optimizer.lrr"], "optimizer.lrr"),
        (["+optimizer.lr=1"], "optimizer.lr"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config_from_command_line("pretrain", arguments)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("+foo=1", "there is no config key 'foo'"),
        ("+metod.temperature=.2", "there is no config key 'metod': did you mean 'method'"),
        ("~seed", "every run needs the config key 'seed'"),
        ("~optimizer", "every run needs the config key 'optimizer'"),
    ],
)
def test_a_key_that_no_run_reads_or_that_every_run_needs_is_refused(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        compose("pretrain", ["experiment=swav_800ep", "scale=smoke", override])


def test_keys_can_be_added_and_deleted() -> None:
    cfg = config_from_command_line("pretrain", ["+method.another=1", "~method.queue_length", "++optimizer.lr=3"])
    assert (cfg.method.another, "queue_length" in cfg.method, cfg.optimizer.lr) == (1, False, 3)


@pytest.mark.parametrize(
    ("kind", "request_", "key"),
    [
        ("evaluate", ["eval=knn", "checkpoint=x"], "protocol.temperature=0"),
        ("evaluate", ["eval=knn", "checkpoint=x"], "protocol.center_crop.crop_px=0"),
        ("evaluate", ["eval=voc07_svm", "checkpoint=x"], "protocol.num_folds=1"),
        ("evaluate", ["eval=linear_imagenet", "checkpoint=x"], "protocol.lr=-1"),
        ("evaluate", ["eval=semisup_1pct", "checkpoint=x"], "protocol.weight_decay=-1"),
        ("pretrain", [*SWAV], "method.temperature=0"),
        ("pretrain", [*SWAV], "method.epsilon=-0.05"),
        ("pretrain", [*SWAV], "method.num_sinkhorn_iterations=0"),
        ("pretrain", [*SWAV], "optimizer.weight_decay=-1"),
        ("measure", [*SWAV, "measurement=cost", "name=x"], "measurement.num_steps=0"),
        ("pretrain", [*SWAV], "optimizer.final_lr=-0.1"),
        ("pretrain", [*SWAV], "optimizer.warmup_start_lr=-0.1"),
        ("pretrain", [*SWAV], "crops.augment.blur_probability=1.5"),
        ("pretrain", [*SWAV], "crops.augment.flip_probability=-0.1"),
        ("evaluate", ["eval=coco_detr", "checkpoint=x"], "protocol.transforms.crop_probability=2"),
        ("evaluate", ["eval=knn", "checkpoint=x"], "normalize.std=[0.2,0,0.2]"),
        ("pretrain", [*SWAV], "~method.name"),
        ("pretrain", [*SWAV], "method.name=null"),
        ("evaluate", ["eval=knn", "checkpoint=x"], "~protocol.name"),
        ("measure", [*SWAV, "measurement=cost", "name=x"], "~measurement.name"),
    ],
)
def test_values_that_give_no_number_or_a_wrong_one_are_refused(kind: RunKind, request_: list[str], key: str) -> None:
    with pytest.raises(UserError, match=rf"config {key.strip('~').partition('=')[0]}="):
        compose(kind, [*request_, key])


@pytest.mark.parametrize(
    ("kind", "request_", "key"),
    [("pretrain", SWAV, "optimizer"), ("evaluate", ("eval=semisup_1pct", "checkpoint=x"), "protocol")],
)
@pytest.mark.parametrize("milestones", ["[120,160]", "[0.8,0.6]", "[0.5,0.5]", "[0,0.5]", "[0.5,1]"])
def test_milestones_are_fractions_of_the_epochs(
    kind: RunKind, request_: tuple[str, ...], key: str, milestones: str
) -> None:
    with pytest.raises(UserError, match=rf"config {key}\.milestones=.*write \.6 for epoch 60 of 100"):
        compose(kind, [*request_, f"{key}.milestones={milestones}"])


@pytest.mark.parametrize(
    ("evaluation", "override"),
    [
        ("linear_imagenet", "protocol.schedule=steps"),
        ("linear_imagenet", "protocol.milestones=[0.5]"),
        ("linear_places205", "protocol.schedule=cosine"),
        ("linear_places205", "protocol.milestones=[]"),
    ],
)
def test_milestones_and_a_schedule_by_steps_need_each_other(evaluation: str, override: str) -> None:
    with pytest.raises(UserError, match="schedule=steps has milestones"):
        compose("evaluate", [f"eval={evaluation}", "checkpoint=x", override])


def test_a_schedule_may_be_replaced_together_with_its_milestones() -> None:
    cfg = compose(
        "evaluate", ["eval=linear_places205", "checkpoint=x", "protocol.schedule=cosine", "protocol.milestones=[]"]
    )
    assert (cfg.protocol.schedule, cfg.protocol.milestones) == ("cosine", [])


@pytest.mark.parametrize("scale", ["[0,1]", "[1,0.14]", "[14,100]"])
def test_the_scale_of_crops_ascends_within_the_image(scale: str) -> None:
    with pytest.raises(UserError, match=r"config crops\.views\[0\]\.scale="):
        compose("pretrain", [*SWAV, f"crops.views=[{{num: 2, size_px: 32, scale: {scale}}}]"])


def test_a_value_that_is_yet_to_be_given_is_asked_for() -> None:
    with pytest.raises(UserError, match="no value for checkpoint; give it as KEY=VALUE"):
        compose("evaluate", ["eval=knn"])
