"""The official scripts and schedules beside our experiments at scale paper; SimCLR's loss of two crops."""

import ast
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from models.methods.simclr import contrastive_loss
from reproduce.config.compose import compose
from reproduce.config.schema import Optimizer
from reproduce.config.validate import to_dataclass
from reproduce.engine.schedule import epoch_cosine_lr, learning_rate
from tests.oracles.official import checkout, definitions

IMAGES = 1_281_167
SCRIPTS = {
    **{name: name for name in ("swav_100ep", "swav_200ep", "swav_400ep", "swav_800ep", "swav_400ep_2x224")},
    **{name: name for name in ("swav_200ep_bs256", "swav_400ep_bs256")},
    "swav_w2_400ep": "swav_RN50w2_400ep",
    "swav_w4_400ep": "swav_RN50w4_400ep",
    "deepcluster_v2_400ep_2x160_4x96": "deepclusterv2_400ep",
    "deepcluster_v2_400ep_2x224": "deepclusterv2_400ep_2x224",
    "deepcluster_v2_800ep": "deepclusterv2_800ep",
}
"""The official script of each experiment that has one."""
EXPERIMENTS = pytest.mark.parametrize("experiment", SCRIPTS)


class Script:
    """The options of an official script, as text, and the defaults that concern us."""

    def __init__(self, experiment: str) -> None:
        self.folder = checkout("swav", "main_swav.py")
        text = (self.folder / "scripts" / f"{SCRIPTS[experiment]}_pretrain.sh").read_text()
        self.options = {"hidden_mlp": "2048", "use_fp16": "false"} | dict(
            re.findall(r"^--(\w+) (.*?)\s*\\?$", text, re.MULTILINE)
        )
        (gpus,) = re.findall(r"^#SBATCH --gpus=(\d+)", text, re.MULTILINE)
        self.num_gpus = int(gpus)
        self.main = self.folder / re.findall(r"(main_\w+[.]py)", text)[0]

    def numbers(self, name: str) -> list[float]:
        return [float(word) for word in self.options[name].split()]

    def number(self, name: str) -> float:
        (value,) = self.numbers(name)
        return value


def ours(experiment: str) -> DictConfig:
    return compose("pretrain", [f"experiment={experiment}", "scale=paper"])


@EXPERIMENTS
def test_an_experiment_has_its_scripts_values(experiment: str) -> None:
    script, cfg = Script(experiment), ours(experiment)
    is_swav = script.main.name == "main_swav.py"
    views = [(view.num, view.size_px, *view.scale) for view in cfg.crops.views]
    names = ("nmb_crops", "size_crops", "min_scale_crops", "max_scale_crops")
    assert views == list(zip(*map(script.numbers, names), strict=True))
    assert cfg.batch_size == script.number("batch_size") * script.num_gpus
    grouped = script.options["sync_bn"] == "apex"  # in groups of world_size // 8 GPUs, when the scripts were published
    group = script.num_gpus // 8 * script.number("batch_size")
    assert cfg.network.batchnorm_group_size == (group if grouped else None)
    width = int((re.findall(r"w(\d)$", script.options["arch"]) or ["1"])[0])
    assert (cfg.network.width, cfg.network.head_hidden_dim) == (width, script.number("hidden_mlp"))
    assert cfg.network.embedding_dim == script.number("feat_dim")
    assert cfg.precision == ("fp16" if script.options["use_fp16"] == "true" else "fp32")
    rates = ("base_lr", "final_lr", "wd", "epochs", "warmup_epochs")
    optimizer = cfg.optimizer
    assert [optimizer.lr, optimizer.final_lr, optimizer.weight_decay, cfg.epochs, optimizer.warmup_epochs] == [
        script.number(name) for name in rates
    ]
    assert optimizer.warmup_start_lr == (script.number("start_warmup") if optimizer.warmup_epochs else 0)
    assert cfg.method.temperature == script.number("temperature")
    frozen = script.number("freeze_prototypes_niters")
    if not is_swav:
        assert [cfg.method.num_prototypes] * cfg.method.num_heads == script.numbers("nmb_prototypes")
        assert frozen == 300_000  # steps: more than there are
        return
    assert (cfg.method.num_prototypes, cfg.method.epsilon) == (
        script.number("nmb_prototypes"),
        script.number("epsilon"),
    )
    assert cfg.method.num_sinkhorn_iterations == script.number("sinkhorn_iterations")
    assert cfg.method.queue_length == script.numbers("queue_length")[0]
    if cfg.method.queue_length:
        assert cfg.method.queue_start_epochs == script.number("epoch_queue_starts")
    assert math.ceil(cfg.method.freeze_prototypes_epochs * IMAGES / cfg.batch_size) == frozen


def assigned(file: Path, *names: str, **namespace: Any) -> dict[str, Any]:
    """Execute only the assignments to `names` in a file's `main`, and return the namespace."""
    (main,) = [
        node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == "main"
    ]
    wanted: list[ast.stmt] = [
        node for node in main.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in names
    ]
    assert len(wanted) == len(names), f"{file} lacks some of {names}"
    exec(compile(ast.Module(wanted, []), str(file), "exec"), namespace)
    return namespace


@EXPERIMENTS
def test_an_experiment_has_its_scripts_learning_rates(experiment: str) -> None:
    script, cfg = Script(experiment), ours(experiment)
    args = SimpleNamespace(
        start_warmup=float(script.options.get("start_warmup", 0)), base_lr=script.number("base_lr"),
        final_lr=script.number("final_lr"), epochs=int(script.number("epochs")),
        warmup_epochs=int(script.number("warmup_epochs")),
    )  # fmt: skip
    steps_per_epoch = IMAGES // cfg.batch_size
    names = ("warmup_lr_schedule", "iters", "cosine_lr_schedule", "lr_schedule")
    theirs = assigned(script.main, *names, args=args, np=np, math=math, train_loader=range(steps_per_epoch))
    num_steps = cfg.epochs * steps_per_epoch
    assert len(theirs["lr_schedule"]) == num_steps
    optimizer = to_dataclass(cfg.optimizer, Optimizer, "optimizer")
    steps = [*range(20), *range(0, num_steps, 997), *range(10 * steps_per_epoch - 20, 10 * steps_per_epoch + 20)]
    found = [learning_rate(step, num_steps, cfg.epochs, optimizer) for step in [*steps, num_steps - 1]]
    np.testing.assert_allclose(found, theirs["lr_schedule"][[*steps, num_steps - 1]], rtol=1e-12)


@pytest.mark.parametrize(("experiment", "cosine"), [("moco_v1_200ep", False), ("moco_v2_200ep", True)])
def test_mocos_learning_rates_at_the_start_of_each_epoch(experiment: str, cosine: bool) -> None:
    """Its cosine changes once per epoch, ours with each step."""
    code = definitions(checkout("moco", "main_moco.py") / "main_moco.py", "adjust_learning_rate", math=math)
    args = SimpleNamespace(lr=0.03, cos=cosine, epochs=200, schedule=[120, 160])
    optimizer = to_dataclass(ours(experiment).optimizer, Optimizer, "optimizer")
    for epoch in range(200):
        theirs: dict[str, float] = {}
        code["adjust_learning_rate"](SimpleNamespace(param_groups=[theirs]), epoch, args)
        assert learning_rate(epoch * 5004, 200 * 5004, 200, optimizer) == pytest.approx(theirs["lr"], rel=1e-9)


def test_the_linear_classifiers_cosine_is_the_one_of_the_released_code() -> None:
    """eval_linear.py has torch's, stepped once per epoch."""
    source = (checkout("swav", "eval_linear.py") / "eval_linear.py").read_text()
    assert re.search(r"CosineAnnealingLR\(\s*optimizer, args.epochs, eta_min=args.final_lr\s*\)", source)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=0)
    for epoch in range(100):
        assert epoch_cosine_lr(epoch, 100, 0.3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def softmax_cross_entropy(labels: Tensor, logits: Tensor, weights: float) -> Tensor:
    return -weights * (labels * logits.log_softmax(1)).sum(1).mean()


TENSORFLOW = SimpleNamespace(
    math=SimpleNamespace(l2_normalize=lambda x, axis: F.normalize(x, dim=axis)),
    split=lambda x, num, axis: x.chunk(num, axis),
    shape=lambda x: x.shape,
    range=torch.arange,
    one_hot=lambda index, depth: F.one_hot(index, depth).double(),
    matmul=lambda a, b, transpose_b: a @ (b.T if transpose_b else b),
    concat=torch.cat,
    losses=SimpleNamespace(softmax_cross_entropy=softmax_cross_entropy),
)
"""The functions of TensorFlow that SimCLR's loss calls, by torch's."""


def test_the_contrastive_loss_of_two_crops_is_half_of_simclrs() -> None:
    """SimCLR adds the means over both crops' anchors; ours is the mean over all anchors (A.8)."""
    code = definitions(
        checkout("simclr", "objective.py") / "objective.py", "add_contrastive_loss", tf=TENSORFLOW, LARGE_NUM=1e9
    )
    torch.manual_seed(0)
    theirs, own = (torch.randn(24, 8).double().requires_grad_() for _ in range(2))
    own.data.copy_(theirs.data)
    expected, _, _ = code["add_contrastive_loss"](theirs, temperature=0.1)
    found = contrastive_loss(F.normalize(own, dim=1), 2, 0.1)
    torch.testing.assert_close(2 * found, expected, rtol=1e-12, atol=0)
    found.backward()
    expected.backward()
    assert own.grad is not None and theirs.grad is not None
    torch.testing.assert_close(2 * own.grad, theirs.grad)
