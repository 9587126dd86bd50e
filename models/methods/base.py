"""The contract of a pretraining method, and the task by which the training loop trains one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from models.networks.heads import MultiCropNet
from models.networks.resnet import blocks_of_depth, require_stem
from models.networks.trunk import Trunk
from reproduce.config.schema import Crops, Network
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.collapse import LossProfile
from reproduce.engine.loop import StepOutput, TrainTask
from reproduce.engine.precision import autocast
from reproduce.errors import UserError

CenterCrops = Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]
"""`read(resize_px, size_px)` yields indices `(B,)` and center crops `(B, 3, size_px, size_px)` of this rank's share of
all training images, each once; unreadable ones are left out."""


@dataclass(frozen=True)
class CropsNeeded:
    """The crops of an image that a method can learn from."""

    default_option: str
    """The option of conf/crops to use, for the error of others."""
    min_crops: int = 1
    max_crops: float = math.inf
    of_one_size: bool = False

    def require(self, crops: Crops) -> None:
        """Raise `UserError` unless the crops are such."""
        remedy = f"use crops={self.default_option}"
        number = sum(view.num for view in crops.views)
        if not self.min_crops <= number <= self.max_crops:
            or_more = "" if self.min_crops == self.max_crops else " or more"
            words = f"{self.min_crops}{or_more} crop{'s' if self.max_crops > 1 else ''}"
            raise UserError(f"this method needs {words} of an image, and crops has {number}: {remedy}")
        if self.of_one_size and len({view.size_px for view in crops.views}) > 1:
            raise UserError(f"this method needs crops of one size, and crops has several: {remedy}")


def trunk_layers(sizes: Network) -> tuple[Sequence[int], str]:
    """Return a network's `blocks` and `stem`. Raises `UserError` for those that no trunk has."""
    return blocks_of_depth(sizes.depth), require_stem(sizes.stem)


def require_whole_batches(queue_length: int, batch_size: int, least: int = 0) -> None:
    """Raise `UserError` if a queue would store a part of a batch, or fewer than `least` batches."""
    if queue_length % batch_size or queue_length < least * batch_size:
        raise UserError(
            f"method.queue_length {queue_length} is not a multiple of batch_size {batch_size}; the queue stores whole "
            "batches"
        )


class Method(LossProfile, ABC):
    """A pretraining method: the loss of a batch of crops, and the state that the method keeps between steps.

    A subclass overrides the hooks that it needs. Only `crops_needed` and `loss` are required; SimCLR
    (`models/methods/simclr.py`) has little else.
    """

    architecture: str | None = None
    """The `network.architecture` that the method can train in place of a ResNet."""
    crops_needed: CropsNeeded
    """What `crops` of a config must be like; checked before the training."""
    extra_networks: Sequence[nn.Module] = ()
    """Further networks that see crops. Their BatchNorm statistics cover the same ranks as the trained network's."""
    center_crops: CenterCrops
    """Reads all training images without augmentation; the run sets it before `on_train_start`."""
    reset_optimizer: Callable[[], None]
    """Makes the optimizer forget its momentum; the run sets it before `on_train_start`."""
    sampler: StepSampler
    """Maps steps to image indices; set by `on_train_start`."""
    note: str = ""
    """What a reader of the result must know about this run; goes into the result's provenance."""

    @classmethod
    def build_network(cls, sizes: Network, config: Any, num_classes: int) -> Trunk:  # noqa: ARG003
        """Build the network that the method trains, with random initial weights: by default a `MultiCropNet`.

        `config` is the method's, `num_classes` that of the images. Its `forward` maps crops to what `loss` is given.
        """
        return MultiCropNet(
            sizes.width,
            sizes.head_hidden_dim,
            sizes.embedding_dim,
            cls.network_prototypes(config),
            sizes.head_batchnorm,
            *trunk_layers(sizes),
        )

    @classmethod
    def network_prototypes(cls, config: Any) -> int | list[int]:  # noqa: ARG003
        """Return the number of prototypes of the default network, one number per head if it has several: none."""
        return 0

    def __init__(self, config: Any, net: Any, num_images: int, batch_size: int) -> None:
        """Take the method's config, its network, the number of training images and the global batch size."""

    def on_train_start(self, net: nn.Module, sampler: StepSampler, extra_epoch: Iterable[list[Tensor]]) -> None:  # noqa: ARG002
        """Prepare the method before its first step, or after a resume.

        `extra_epoch` yields the crops of one epoch after the last; these are generated only if the method iterates over
        them, and `sampler` covers their steps as well.
        """
        self.sampler = sampler

    def before_step(self, step: int, crops: list[Tensor], labels: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Return the crops to train on, given the step's crops and the labels `(B,)` of its images."""
        return crops

    def before_forward(self) -> None:
        """Prepare the weights before each forward pass."""

    @abstractmethod
    def loss(self, embeddings: Tensor, scores: Any, num_crops: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss of one batch, and scalar metrics to log.

        `embeddings` and `scores` are what the network returns of this rank's crops. Those of a `MultiCropNet` are
        embeddings `(num_crops * B, D)` of unit length, crop by crop, and scores `(num_crops * B, num_prototypes)`, or
        None without prototypes. DDP averages the gradients of all ranks' losses.
        """

    def after_backward(self, step: int) -> None:
        """Change gradients or state between the backward pass and the optimizer step."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beyond network and optimizer. A collective."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`, saved by any number of processes."""


class PretrainTask(TrainTask[tuple[list[Tensor], Tensor]]):
    """Trains a network by a method, on batches of crops and labels."""

    def __init__(self, net: nn.Module, method: Method, precision: str) -> None:
        self.net, self.method, self.precision = net, method, precision

    def forward(self, batch: tuple[list[Tensor], Tensor], step: int) -> StepOutput:
        """Compute the method's loss; network and `before_step` run under autocast, the loss in fp32."""
        crops, labels = batch
        with autocast(self.precision):
            inputs = self.method.before_step(step, crops, labels)
        self.method.before_forward()
        with autocast(self.precision):
            embeddings, scores = self.net(inputs)
        loss, metrics = self.method.loss(embeddings, scores, len(inputs), step)
        return StepOutput(loss, metrics, {"scores": scores, "embeddings": embeddings})

    def after_backward(self, step: int) -> None:
        """Let the method freeze prototypes or update its queue."""
        self.method.after_backward(step)
