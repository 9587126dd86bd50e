"""Official memory banks (NPID's, and VISSL's for NPID++ and PIRL) beside ours on several processes.

`bank_ranks.py PART CHECKOUTS OUTPUT` runs one of `PARTS`, started by test_memory_bank.py. Rank 0 writes what both made.
"""

import copy
import logging
import math
import pprint
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.methods.npid import Npid, NpidConfig
from models.methods.pirl import Pirl, PirlConfig, PirlNet
from models.networks.heads import MultiCropNet
from reproduce.config.schema import Optimizer
from reproduce.data.pipeline.sampler import StepSampler
from reproduce.engine.distributed.collectives import (
    all_gather,
    all_reduce_mean,
    all_reduce_sum,
    rank,
    world_size,
)
from reproduce.engine.optimizer import build_optimizer
from tests.oracles.official import definitions, save_outcome

BATCH, WIDTH, DIM, SEED, NUM_IMAGES, NUM_STEPS = 8, 0.0625, 8, 5, 20, 4
NUM_NEGATIVES, TEMPERATURE, MOMENTUM = 6, 0.07, 0.5
BLOCKS = (1, 1, 1, 1)
Pair = dict[str, Any]
Official = Callable[[list[Tensor], Tensor], Tensor]
"""A loss of each crop's embeddings `(B, DIM)` and the images' indices `(B,)`."""


class Draws:
    """Stands for an official sampler: returns the rows that ours compares with, in the order in which theirs asks."""

    def __init__(self) -> None:
        self.waiting: Iterator[Tensor] = iter(())

    def draw(self, number: int) -> Tensor:
        """Return the indices of `number` rows of the bank."""
        drawn = next(self.waiting).flatten().clone()
        assert len(drawn) == number
        return drawn


class Torch04:
    """torch, but `bmm` takes rows without a middle dimension: `x.data.resize_` changed x's shape, too, in torch 0.4."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def bmm(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the batched product."""
        return torch.bmm(left if left.ndim == 3 else left.unsqueeze(1), right)


def lemniscate(folder: Path, draws: Draws, rows: Tensor) -> tuple[Official, Callable[[], Tensor]]:
    """NPID's loss in one process, and its bank. Its epsilon of 1e-7 beside probabilities is set to 0."""
    code = definitions(
        folder / "lemniscate/lib/NCEAverage.py", "NCEFunction", "NCEAverage",
        torch=Torch04(), nn=nn, math=math, Function=torch.autograd.Function,
        AliasMethod=lambda _: SimpleNamespace(draw=draws.draw, cuda=lambda: None),
    )  # fmt: skip
    criterion = definitions(folder / "lemniscate/lib/NCECriterion.py", "NCECriterion", torch=torch, nn=nn, eps=0)
    average = code["NCEAverage"](DIM, NUM_IMAGES, NUM_NEGATIVES, TEMPERATURE, MOMENTUM)
    average.memory.copy_(rows)
    loss = criterion["NCECriterion"](NUM_IMAGES)
    return lambda crops, images: loss(average(crops[0], images), images).squeeze(), lambda: average.memory


class Section(SimpleNamespace):
    """A section of VISSL's config: keys are items and attributes."""

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def get(self, key: str, default: Any) -> Any:
        """Return a key's value."""
        return getattr(self, key, default)


def vissl(folder: Path, draws: Draws, rows: Tensor, num_crops: int) -> tuple[Official, Callable[[], Tensor]]:
    """VISSL's loss, which NPID++ and PIRL have, and its bank. Its epsilon beside probabilities is set to 0."""
    code = definitions(
        folder / "vissl/vissl/losses/nce_loss.py", "NCELossWithMemory", "NCEAverage", "AliasMethod", "NCECriterion",
        torch=torch, nn=nn, np=np, math=math, logging=logging, pprint=pprint, List=list, Union=typing.Union,
        AttrDict=Any, ClassyLoss=nn.Module, register_loss=lambda _: lambda loss: loss,
        is_pos_int=lambda value: value > 0, get_rank=rank, all_reduce_mean=all_reduce_mean,
        gather_from_all=lambda each: all_gather(each).flatten(0, 1) if each.ndim else all_gather(each),
    )  # fmt: skip
    on_forward = num_crops == 1
    memory = Section(embedding_dim=DIM, momentum=MOMENTUM, norm_init=True, update_mem_on_forward=on_forward)
    criterion = code["NCELossWithMemory"](Section(
        norm_embedding=True, temperature=TEMPERATURE, norm_constant=-1, loss_type="nce", num_train_samples=NUM_IMAGES,
        loss_weights=[1 / num_crops] * num_crops, update_mem_with_emb_index=num_crops - 1, memory_params=memory,
        negative_sampling_params=Section(num_negatives=NUM_NEGATIVES, type="random"),
    ))  # fmt: skip
    criterion.nce_criterion.eps = 0
    average = criterion.nce_average
    del average.multinomial
    average.multinomial = draws
    average.memory.copy_(rows)
    return lambda crops, images: criterion(crops, images).squeeze(), lambda: average.memory


class VisslPirl(nn.Module):
    """Our trunk under the heads of VISSL's config for PIRL, and its collator's order of patches: image by image."""

    def __init__(self, folder: Path, net: PirlNet) -> None:
        super().__init__()
        head = folder / "vissl/vissl/models/heads/siamese_concat_view.py"
        code = definitions(
            head, "SiameseConcatView", torch=torch, nn=nn, AttrDict=Any, register_model_head=lambda _: lambda head: head
        )
        self.net, self.concat = copy.deepcopy(net), code["SiameseConcatView"](None, net.num_patches)

    def forward(self, crops: list[Tensor]) -> list[Tensor]:
        """Return embeddings that are not normalized: those of the patches, then those of the images."""
        images, *patches = crops
        each = self.net.patch_head(self.net.pooled_features(torch.stack(patches, dim=1).flatten(0, 1)))
        of_images = self.net.projection_head(self.net.pooled_features(images))
        return [self.net.jigsaw_head(self.concat(each)), of_images]


def steps(
    method: Npid,
    net: nn.Module,
    official: tuple[Official, Callable[[], Tensor]],
    official_net: nn.Module,
    draws: Draws,
    num_crops: int,
    sizes_px: list[int],
) -> Pair:
    """Losses of some steps of SGD, and bank and weights after them."""
    sampler = StepSampler(NUM_IMAGES, BATCH, 2, SEED, 0, rank(), world_size())
    method.on_train_start(net, sampler, [])
    official_loss, official_bank = official
    weights = {"theirs": list(official_net.parameters()), "ours": list(net.parameters())}
    optimizers = {
        "theirs": torch.optim.SGD(weights["theirs"], 0.03, 0.9, weight_decay=1e-4),
        "ours": build_optimizer(weights["ours"], Optimizer(lr=0.03, weight_decay=1e-4, trust_coefficient=None)),
    }
    losses: dict[str, list[Tensor]] = {"theirs": [], "ours": []}
    draw = torch.Generator().manual_seed(1)
    for step in range(NUM_STEPS):
        crops = [torch.randn(BATCH, 3, size, size, generator=draw).chunk(world_size())[rank()] for size in sizes_px]
        images = sampler.indices_at(step)
        drawn = [method.bank.draw((SEED, step, number), images, NUM_NEGATIVES) for number in range(num_crops)]
        draws.waiting = iter(drawn[::-1])  # PIRL's patches come first there
        theirs = official_loss(official_net(crops), torch.from_numpy(images))
        embeddings, scores = net(method.before_step(step, crops, torch.zeros(0)))
        ours, _ = method.loss(embeddings, scores, len(crops), step)
        for name, loss in (("theirs", theirs), ("ours", ours)):
            losses[name].append(all_reduce_mean(loss.detach().clone()))
            loss.backward()
            for weight in weights[name]:
                assert weight.grad is not None
                weight.grad = all_reduce_sum(weight.grad) / world_size()
            optimizers[name].step()
            optimizers[name].zero_grad()
    banks = {"theirs": official_bank(), "ours": method.bank.rows}
    return {
        name: {
            "loss": torch.stack(losses[name]), "bank": banks[name], "weights": [each.detach() for each in weights[name]]
        } for name in losses
    }  # fmt: skip


class FirstOutput(nn.Module):
    """A copy of our network that returns its embeddings alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)

    def forward(self, crops: list[Tensor]) -> list[Tensor]:
        """Return one crop's embeddings."""
        return [self.net(crops)[0]]


def npid(folder: Path, code: str) -> Pair:
    """NPID, by its authors' code or by VISSL's."""
    torch.manual_seed(0)
    net, draws = MultiCropNet(WIDTH, None, DIM, blocks=BLOCKS), Draws()
    method = Npid(NpidConfig("npid", NUM_NEGATIVES, TEMPERATURE, MOMENTUM), net, NUM_IMAGES, BATCH)
    rows = method.bank.rows
    official = lemniscate(folder, draws, rows) if code == "lemniscate" else vissl(folder, draws, rows, 1)
    return steps(method, net, official, FirstOutput(net), draws, 1, [40])


def pirl(folder: Path) -> Pair:
    """PIRL with four patches of an image."""
    torch.manual_seed(0)
    net, draws = PirlNet(WIDTH, DIM, 4, BLOCKS), Draws()
    method = Pirl(PirlConfig("pirl", NUM_NEGATIVES, TEMPERATURE, MOMENTUM, 4, 0.5), net, NUM_IMAGES, BATCH)
    official = vissl(folder, draws, method.bank.rows, 2)
    return steps(method, net, official, VisslPirl(folder, net), draws, 2, [40, 24, 24, 24, 24])


PARTS: dict[str, tuple[Callable[[Path], Pair], str]] = {
    "lemniscate": (lambda folder: npid(folder, "lemniscate"), "lemniscate/lib/NCEAverage.py"),
    "pirl": (pirl, "vissl/vissl/losses/nce_loss.py"),
    "npid_pp": (lambda folder: npid(folder, "vissl"), "vissl/vissl/losses/nce_loss.py"),
}
"""Each part, and the official file that it needs, below the folder of checkouts."""


if __name__ == "__main__":
    save_outcome(PARTS[sys.argv[1]][0], *sys.argv[2:])
