"""The swapped loss against a loop, the queue, the freeze."""

from pathlib import Path

import pytest
import torch

from models.methods.swav import Queue, Swav, SwavConfig, swapped_prediction_loss
from models.networks.heads import MultiCropNet
from models.zoo.load import load_trunk
from reproduce.engine import checkpoint
from reproduce.errors import UserError


def config(**changes: object) -> SwavConfig:
    values = {
        "name": "swav", "num_prototypes": 6, "temperature": 0.1, "epsilon": 0.05, "num_sinkhorn_iterations": 3,
        "freeze_prototypes_epochs": 1.0, "train_prototypes": True, "hard_assignments": False, "queue_length": 0,
        "queue_start_epochs": 0,
    }  # fmt: skip
    return SwavConfig(**{**values, **changes})  # type: ignore[arg-type]


def small_net() -> MultiCropNet:
    torch.manual_seed(0)
    return MultiCropNet(0.0625, 16, 8, num_prototypes=6, blocks=(1, 1, 1, 1))


def test_loss_equals_a_loop_over_pairs_of_crops() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4 * 5, 7)
    assignments = [torch.rand(5, 7).softmax(dim=1) for _ in range(2)]
    expected = []
    for large in range(2):
        for other in range(4):
            if other != large:
                for sample in range(5):
                    log_p = (scores[other * 5 + sample] / 0.1).log_softmax(0)
                    expected.append(-(assignments[large][sample] * log_p).sum())
    torch.testing.assert_close(swapped_prediction_loss(scores, assignments, 4, 0.1), torch.stack(expected).mean())


def test_queue_is_newest_first_and_full_with_its_oldest_row() -> None:
    queue = Queue(4, 1, torch.device("cpu"))
    for start in (0, 2, 4):
        assert queue.full == (start == 4)
        queue.push([torch.tensor([[start + 1.0], [start + 2.0]])] * 2)
    assert queue.blocks[0].flatten().tolist() == [5, 6, 3, 4]


def test_loss_jump_step_is_the_queue_start() -> None:
    queued = Swav(config(queue_length=20, queue_start_epochs=15), small_net(), num_images=25, batch_size=10)
    assert queued.loss_jump_step == queued.queue_start_step == 30
    assert Swav(config(), small_net(), num_images=25, batch_size=10).loss_jump_step is None


def test_prototypes_are_frozen_at_first_and_of_unit_length() -> None:
    net = small_net()
    assert net.prototypes is not None
    method = Swav(config(), net, num_images=25, batch_size=10)  # one epoch of 2.5 batches: three steps
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    crops = [torch.randn(10, 3, 32, 32) for _ in range(2)]
    moved = []
    for step in range(5):
        method.before_forward()
        before = net.prototypes.weight.detach().clone()
        torch.testing.assert_close(before.norm(dim=1), torch.ones(6))
        embeddings, scores = net(crops)
        loss, _ = method.loss(embeddings, scores, num_crops=2, step=step)
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(step)
        optimizer.step()
        moved.append(not torch.equal(before, net.prototypes.weight))
    assert moved == [False, False, False, True, True]


def test_hard_assignments_are_one_hot() -> None:
    method = Swav(config(hard_assignments=True), small_net(), num_images=8, batch_size=8)
    assignments = method._assign(0, torch.rand(8, 6), step=0)
    assert assignments.sum(dim=1).tolist() == [1.0] * 8
    assert set(assignments.flatten().tolist()) == {0.0, 1.0}


def test_crops_of_one_size_share_their_batchnorm() -> None:
    net = small_net().eval()
    crops = [torch.randn(3, 3, size, size) for size in (48, 48, 32)]
    embeddings, scores = net(crops)
    assert embeddings.shape == (9, 8)
    assert scores is not None
    assert scores.shape == (9, 6)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(9))
    torch.testing.assert_close(embeddings[3:6], net([crops[1]])[0], rtol=1e-4, atol=1e-5)


class TestLoadTrunk:
    def save(self, path: Path, content: dict[str, object]) -> None:
        checkpoint.save(path, content)

    @pytest.mark.parametrize("prefix", ["", "module."])
    @pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
    def test_loads_every_known_format(self, tmp_path: Path, prefix: str, wrapper: str | None) -> None:
        net = MultiCropNet(0.0625, 16, 8, num_prototypes=6)
        weights = {prefix + key: value for key, value in net.state_dict().items()}
        self.save(tmp_path / "w.pt", {wrapper: weights} if wrapper else weights)
        images = torch.randn(2, 3, 32, 32)
        trunk = load_trunk(tmp_path / "w.pt")
        torch.testing.assert_close(trunk(images), net.eval().pooled_features(images))

    def test_loads_multi_prototypes_of_released_deepcluster_v2(self, tmp_path: Path) -> None:
        net = MultiCropNet(0.0625, 16, 8, num_prototypes=6)
        weights = {f"module.{key}": value for key, value in net.state_dict().items()}
        weights["module.prototypes.prototypes0.weight"] = weights.pop("module.prototypes.weight")
        weights["module.prototypes.prototypes1.weight"] = torch.randn(6, 8)
        self.save(tmp_path / "w.pt", weights)
        images = torch.randn(2, 3, 32, 32)
        features = net.eval().pooled_features(images)
        torch.testing.assert_close(load_trunk(tmp_path / "w.pt")(images), features)

    def test_raises_if_tensors_are_missing(self, tmp_path: Path) -> None:
        weights = MultiCropNet(0.0625, 16, 8).state_dict()
        self.save(tmp_path / "w.pt", {k: v for k, v in weights.items() if not k.startswith("layer3")})
        with pytest.raises(UserError, match=r"layer3\.0\.conv1\.weight"):
            load_trunk(tmp_path / "w.pt")

    def test_raises_on_a_truncated_file(self, tmp_path: Path) -> None:
        self.save(tmp_path / "w.pt", {"x": torch.zeros(1000)})
        whole = (tmp_path / "w.pt").read_bytes()
        (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=r"w\.pt can't be read"):
            load_trunk(tmp_path / "w.pt")
