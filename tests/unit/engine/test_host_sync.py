"""A step that only trains never waits for its device: what `.item()`, `bool()` and the like would make it do."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from models.methods.base import PretrainTask
from models.methods.clustering import Clustering
from models.methods.moco import Moco
from models.methods.simclr import contrastive_loss
from models.methods.swav import Swav, SwavConfig
from models.networks.heads import MultiCropNet
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.loop import StepLogger, Trainer
from reproduce.engine.nan_guard import FiniteGuard
from reproduce.engine.optimizer import Larc
from reproduce.engine.precision import loss_scaler
from tests.host_sync import NoHostSync


class Done(Exception):
    pass


def one_step(precision: str, queue_length: int, num_waits: int = 0) -> None:
    net = MultiCropNet(0.125, 16, 8, 6, blocks=(1, 1, 1, 1))
    config = SwavConfig("swav", 6, 0.1, 0.05, 3, 1, True, False, queue_length, 0)
    method = Swav(config, net, num_images=40, batch_size=4)
    if method.queue is not None:
        method.queue.num_filled = queue_length
    crops = [torch.randn(4, 3, size, size) for size in (32, 32, 16)]

    def batches() -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
        yield crops, torch.zeros(4)
        raise Done

    trainer = Trainer(
        task=PretrainTask(net, method, precision),
        optimizer=Larc(net.parameters(), 0.1, 0.9, 1e-6, 0.001),
        learning_rates=lambda _: [0.1],
        scaler=loss_scaler(precision),
        guard=FiniteGuard(lambda _: pytest.fail("not finite")),
        logger=StepLogger(lambda *_, **__: None, log_every=9, batch_size=4),
    )
    with NoHostSync(num_waits), pytest.raises(Done):
        trainer.train(batches(), first_step=0, num_steps=9)


@pytest.mark.parametrize("queue_length", [0, 8])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_never_syncs_with_the_host(precision: str, queue_length: int) -> None:
    """`FiniteGuard` looks at a step's loss during the next one only, by when it is there."""
    one_step(precision, queue_length)


def test_a_step_in_fp16_syncs_once_for_the_loss_scaler() -> None:
    """Whether gradients overflowed decides on the host whether the optimizer takes its step."""
    one_step("fp16", 0, num_waits=1)


def test_a_host_sync_would_be_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FiniteGuard, "update", lambda _self, _step, loss, **_made: loss.item())
    with pytest.raises(AssertionError, match="waits for the device"):
        one_step("fp32", 0)


def test_a_mask_an_upload_and_a_blocking_copy_would_be_detected() -> None:
    rows = torch.zeros(3)
    waits: list[Callable[[], torch.Tensor]] = [
        lambda: rows[rows == 0],
        lambda: rows.to("meta"),
        lambda: rows.new_tensor([1.0]),
        lambda: torch.tensor([1.0], device=rows.device),
        lambda: torch.as_tensor([1.0], device=rows.device),
    ]
    for wait in waits:
        with NoHostSync(), pytest.raises(AssertionError, match="waits for the device"):
            wait()


def test_a_wait_that_was_expected_and_not_needed_would_be_detected() -> None:
    with pytest.raises(AssertionError, match="not needed"), NoHostSync(num_waits=1):
        torch.zeros(3)


def test_the_contrastive_loss_never_syncs_with_the_host() -> None:
    with NoHostSync():
        contrastive_loss(torch.randn(6, 4, requires_grad=True), 3, 0.1).backward()


def test_uploads_of_methods_never_sync_with_the_host() -> None:
    """To another device, which stands for a GPU."""
    sampler = StepSampler(num_images=8, batch_size=4, epochs=2, seed=0, first_step=0)
    clustering = SimpleNamespace(sampler=sampler, labels=torch.zeros(1, device="meta"))
    moco = SimpleNamespace(sampler=sampler, queue=torch.zeros(1), key_encoder=lambda crops: [crops[0].flatten(1)])
    with NoHostSync():
        indices = Clustering._image_indices(clustering, 1)  # type: ignore[arg-type]
        keys = Moco._compute_keys(moco, torch.zeros(4, 3, 2, 2, device="meta"), 1)  # type: ignore[arg-type]
    assert indices.device == keys.device == torch.device("meta")
