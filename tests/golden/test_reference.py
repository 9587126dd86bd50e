"""Our numbers against those of the reference implementation (tests/golden/*.npz, *.json: fp32, one process, CPU).

`make gpu-test` computes ours on a GPU.

Tolerances: 1e-5 relative for Sinkhorn, loss, LARC and schedules; 1e-3 for trunks and the first steps of the trajectory,
whose sums run in another order.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.methods.sinkhorn import sinkhorn
from models.methods.swav import Swav, SwavConfig
from models.networks.heads import MultiCropNet
from models.networks.resnet import resnet50
from reproduce.engine.optimizer import Larc
from reproduce.engine.schedule import warmup_cosine_lr

GOLDEN = Path(__file__).parent


def arrays(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / name))


def swav_config(**changes: Any) -> SwavConfig:
    values: dict[str, Any] = {
        "name": "swav",
        "num_prototypes": 30,
        "temperature": 0.1,
        "epsilon": 0.05,
        "num_sinkhorn_iterations": 3,
        "freeze_prototypes_epochs": 0,
        "train_prototypes": True,
        "hard_assignments": False,
        "queue_length": 0,
        "queue_start_epochs": 0,
    }
    return SwavConfig(**{**values, **changes})


@pytest.mark.parametrize("epsilon", [0.05, 0.03])
@pytest.mark.parametrize("num_iterations", [1, 3, 10])
def test_sinkhorn(device: torch.device, epsilon: float, num_iterations: int) -> None:
    golden = arrays("sinkhorn.npz")
    assignments = sinkhorn(torch.from_numpy(golden["scores"]).to(device), epsilon, num_iterations)
    np.testing.assert_allclose(assignments.cpu().numpy(), golden[f"q_eps{epsilon}_it{num_iterations}"], rtol=1e-5)


@pytest.mark.parametrize("queued", [False, True])
def test_loss_and_its_gradients(device: torch.device, queued: bool) -> None:
    golden = arrays("swav_loss.npz")
    embeddings = torch.from_numpy(golden["embeddings"]).to(device).requires_grad_()
    net = MultiCropNet(0.0625, 8, 16, num_prototypes=30, blocks=(1, 1, 1, 1)).to(device)
    assert net.prototypes is not None
    with torch.no_grad():
        net.prototypes.weight.copy_(torch.from_numpy(golden["prototypes"]))
    method = Swav(swav_config(queue_length=24 if queued else 0), net, num_images=8, batch_size=8)
    if queued:
        method.load_state_dict({"queue": torch.from_numpy(golden["queue"]), "num_filled": 24})

    loss, _ = method.loss(embeddings, net.prototypes(embeddings), num_crops=8, step=0)
    loss.backward()

    name = "queue" if queued else "noqueue"
    assert loss.item() == pytest.approx(float(golden[f"loss_{name}"]), rel=1e-5)
    for gradient, key in ((embeddings.grad, "embeddings"), (net.prototypes.weight.grad, "prototypes")):
        assert gradient is not None
        expected = golden[f"grad_{key}_{name}"]
        np.testing.assert_allclose(gradient.cpu().numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    if queued:
        np.testing.assert_array_equal(method.state_dict()["queue"].cpu().numpy(), golden["queue_after"])


@pytest.mark.parametrize("weight_decay", ["1e-06", "0.01"])
def test_larc(device: torch.device, weight_decay: str) -> None:
    golden = {
        key.split("_", 1)[1]: value for key, value in arrays("larc.npz").items() if key.startswith(f"wd{weight_decay}_")
    }
    count = sum(key.endswith("_init") for key in golden)
    parameters = [nn.Parameter(torch.from_numpy(golden[f"p{i}_init"]).to(device)) for i in range(count)]
    optimizer = Larc(parameters, lr=0.3, momentum=0.9, weight_decay=float(weight_decay), trust_coefficient=0.001)
    for step, lr in enumerate((0.3, 1.2, 2.4, 4.8, 4.0)):
        optimizer.param_groups[0]["lr"] = lr
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.from_numpy(golden[f"p{i}_g{step}"]).clone().to(device)
        optimizer.step()
        for i, parameter in enumerate(parameters):
            found = parameter.detach().cpu().numpy()
            np.testing.assert_allclose(found, golden[f"p{i}_after{step}"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "num_steps", "warmup_steps", "lr", "final_lr", "start_lr"),
    [("large_batch", 700, 70, 4.8, 0.0048, 0.3), ("small_batch", 200, 0, 0.6, 0.0006, 0.0)],
)
def test_learning_rates(
    name: str, num_steps: int, warmup_steps: int, lr: float, final_lr: float, start_lr: float
) -> None:
    ours = [warmup_cosine_lr(step, num_steps, warmup_steps, lr, final_lr, start_lr) for step in range(num_steps)]
    np.testing.assert_allclose(ours, arrays("lr_schedule.npz")[name], rtol=1e-5)


def drawn_weights(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The weights that the golden values were computed with: see tests/golden/README.md."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for key in sorted(key for key in state if not key.endswith("num_batches_tracked")):
        a = rng.standard_normal(tuple(state[key].shape), np.float32)
        if key.endswith("running_var"):
            a = np.float32(0.5) + np.abs(a)
        elif key.endswith("weight") and a.ndim == 1 and ("bn" in key or "downsample.1.weight" in key):
            a = np.float32(1) + np.float32(0.1) * a
        elif a.ndim >= 2:
            a = a * np.float32(np.sqrt(2 / np.prod(a.shape[1:])))
        else:
            a = np.float32(0.1) * a
        drawn[key] = torch.from_numpy(a)
    return drawn


TRUNKS = {1: "resnet50", 2: "resnet50w2", 4: "resnet50w4", 5: "resnet50w5"}
"""Names in golden/trunks.json, by width."""
WIDEST = [pytest.param(width, marks=pytest.mark.campaign) for width in (4, 5)]
"""To draw their billion weights takes longer than all else here; they differ from w2 in the width alone."""


@pytest.mark.parametrize("width", [1, 2, *WIDEST])
def test_trunk_features(device: torch.device, width: int) -> None:
    golden = json.loads((GOLDEN / "trunks.json").read_text())[TRUNKS[width]]
    with torch.device("meta"):
        trunk = resnet50(width)
    trunk.load_state_dict(drawn_weights(trunk.state_dict(), 20), strict=False, assign=True)
    trunk.to(device).eval()
    images = np.random.default_rng(21).standard_normal(tuple(golden["input_shape"]), np.float32)
    with torch.no_grad():
        features = trunk(torch.from_numpy(images).to(device)).cpu()
    assert features.shape[1] == golden["feature_dim"]
    np.testing.assert_allclose(features.flatten()[:32].numpy(), golden["first"], rtol=1e-3)


@pytest.mark.parametrize("width", TRUNKS)
def test_parameter_counts(width: int) -> None:
    golden = json.loads((GOLDEN / "trunks.json").read_text())[TRUNKS[width]]
    with torch.device("meta"):
        trunk = resnet50(width)
    assert sum(parameter.numel() for parameter in trunk.parameters()) == golden["num_parameters"]
    assert len(trunk.state_dict()) == golden["keys"]


def test_trajectory_of_twelve_steps(device: torch.device) -> None:
    golden = json.loads((GOLDEN / "trajectory.json").read_text())
    net = MultiCropNet(1, 64, 16, num_prototypes=30, blocks=(1, 1, 1, 1)).to(device)
    net.load_state_dict(drawn_weights(net.state_dict(), golden["seed_weights"]), strict=False)
    assert net.prototypes is not None
    method = Swav(
        swav_config(freeze_prototypes_epochs=golden["freeze_prototype_iterations"]),
        net,
        num_images=golden["batch"],
        batch_size=golden["batch"],
    )
    optimizer = Larc(net.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-6, trust_coefficient=0.001)
    losses = []
    for step, crops in enumerate(golden_crops(golden)):
        optimizer.param_groups[0]["lr"] = golden["lr"][step]
        method.before_forward()
        embeddings, scores = net([crop.to(device) for crop in crops])
        loss, _ = method.loss(embeddings, scores, len(crops), step)
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(step)
        optimizer.step()
        losses.append(loss.item())
    # Training multiplies rounding: in double precision these losses move by 1e-5 at step 4, by 6e-3 at step 9.
    np.testing.assert_allclose(losses[:6], golden["losses"][:6], rtol=1e-3)
    np.testing.assert_allclose(losses[6:], golden["losses"][6:], rtol=1e-2)
    assert net.prototypes.weight.norm().item() == pytest.approx(golden["proto_norm_last"], rel=1e-3)


def golden_crops(golden: dict[str, Any]) -> Iterable[list[Tensor]]:
    rng = np.random.default_rng(golden["seed_inputs"])
    sizes = [size for size, num in golden["crops"] for _ in range(num)]
    for _ in range(golden["iterations"]):
        yield [torch.from_numpy(rng.standard_normal((golden["batch"], 3, s, s), np.float32)) for s in sizes]
