"""The first steps of a training as a few numbers per step, which `tables/golden/` has of a correct one.

Final accuracies scatter from seed to seed; the first steps are the same on every machine, up to rounding, and whatever
is wrong in a recipe (a rate, a temperature, a crop, a label) changes one of their numbers.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reproduce.engine.distributed.collectives import all_reduce_sum, is_main, rank, world_size
from reproduce.files import NOT_FINITE
from reproduce.rehearsal import LEARNING_RATE, NUM_FIRST_STEPS

SIGNS_PERIOD = 8191
"""Prime, so that the signs of a projection don't repeat with an image's rows or a weight's channels."""
BLOCK_PERIODS = 512
"""Periods that are converted to fp64 at a time: 34 MB."""


class FirstSteps:
    """Records the first steps of one training. Part of the run's checkpoints, and of its result.

    Numbers stay on the device until the last step is recorded, so that no step waits for them. They are the same for
    any number of processes, up to rounding.
    """

    def __init__(self, num_steps: int = NUM_FIRST_STEPS, *, stop_after_last: bool = False) -> None:
        """`stop_after_last` ends the training by `FirstStepsDone`, for rehearsals."""
        self.num_steps, self.stop_after_last = num_steps, stop_after_last
        self._values: dict[str, list[float]] = {}
        self._pending: list[tuple[list[str], Tensor]] = []
        self._networks: Mapping[str, nn.Module] = {}
        self._initial_projections: dict[str, Tensor] = {}
        self._batch_at: Callable[[int], np.ndarray] | None = None
        self._method_state: Callable[[], Mapping[str, Any]] = dict

    def watch(
        self,
        net: nn.Module,
        first_step: int,
        batch_at: Callable[[int], np.ndarray] | None = None,
        extra_networks: Iterable[nn.Module] = (),
        method_state: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """Record the weights of `net`, which is about to train from `first_step` on.

        Records nothing in a run that resumes from a checkpoint without first steps, of an earlier version.

        `batch_at` maps a step to the indices of its images, over all ranks. `method_state` returns what a method keeps
        between steps; it is called after the last recorded step, and may be a collective.
        """
        self._networks = {"": net} | {f"extra network {number}": each for number, each in enumerate(extra_networks)}
        self._batch_at, self._method_state = batch_at, method_state
        if first_step and not self._initial_projections:
            self.num_steps = 0
            return
        weights = describe_weights(self._networks)
        if not self._initial_projections:
            self._initial_projections = {name: projection for name, (_, projection) in weights.items()}
            initial = {f"initial norm of {name}": norm for name, (norm, _) in weights.items()}
            initial |= {f"initial projection of {name}": value for name, (_, value) in weights.items()}
            self.note(initial)

    def wants(self, step: int) -> bool:
        """Return whether this step (from 0) is one of the first."""
        return step < self.num_steps

    def record(
        self,
        step: int,
        batch: Any,
        loss: Tensor,
        metrics: Mapping[str, Tensor],
        gradient_norm: Tensor | None,
        learning_rates: Sequence[float],
    ) -> None:
        """Record a step that was taken. A collective; only the last one waits for the device.

        `batch` holds this rank's images and labels. `loss` is this rank's, `metrics` are the same on every rank.
        """
        own_means = {"loss": loss.detach(), **describe_images(batch)}
        over_ranks = _reduced(own_means, {"labels and boxes": describe_labels(batch)})
        weights = describe_weights(self._networks)
        values: dict[str, Any] = {
            **over_ranks,
            **metrics,
            **({} if gradient_norm is None else {"gradient norm": gradient_norm}),
            **{f"{LEARNING_RATE} {number}": rate for number, rate in enumerate(learning_rates)},
            **{f"norm of {name}": norm for name, (norm, _) in weights.items()},
            **{f"movement of {name}": value - self._initial_projections[name] for name, (_, value) in weights.items()},
        }
        if self._batch_at is not None:
            values["indices"] = _weighted_sum(torch.from_numpy(self._batch_at(step)))
        self.note(values)
        if step == self.num_steps - 1:
            state = self._method_state()
            if is_main():
                self.note({f"state of {name}": each for name, each in describe_state(state).items()})
            self._read()
            if self.stop_after_last:
                raise FirstStepsDone

    def note(self, values: Mapping[str, Tensor | float]) -> None:
        """Append one number to each named quantity."""
        waiting: dict[str, Tensor] = {}
        for name, value in values.items():
            if isinstance(value, Tensor) and value.device.type != "cpu":
                waiting[name] = value.detach().double()
            else:
                self._append(name, float(value))
        if waiting:
            self._pending.append((list(waiting), torch.stack(list(waiting.values()))))

    def note_once(self, values: Mapping[str, Tensor | float]) -> None:
        """Append one number to each named quantity that has none yet."""
        known = self.values()
        self.note({name: value for name, value in values.items() if name not in known})

    def values(self) -> dict[str, list[float]]:
        """Return what was recorded: per quantity, one number for each step, or one alone."""
        self._read()
        return {name: list(values) for name, values in self._values.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on recording."""
        self._read()
        return {"values": self._values, "initial_projections": dict(self._initial_projections)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`."""
        self._pending.clear()
        self._values = {name: list(values) for name, values in state["values"].items()}
        self._initial_projections = dict(state["initial_projections"])

    def _read(self) -> None:
        """Copy the pending numbers from the device."""
        for names, row in self._pending:
            for name, value in zip(names, row.tolist(), strict=True):
                self._append(name, value)
        self._pending.clear()

    def _append(self, name: str, value: float) -> None:
        """Append a number. One that is not finite, as gradients in fp16 can be, becomes `NOT_FINITE`."""
        self._values.setdefault(name, []).append(value if math.isfinite(value) else NOT_FINITE)


class FirstStepsDone(BaseException):
    """Ends a rehearsal after its last step. Not an error: nothing that handles errors may catch it."""


def describe_images(batch: Any) -> dict[str, Tensor]:
    """Return mean, mean square and projection of a batch's images, per view: per run of tensors of equal shape.

    Of several ranks, the means of these numbers are those of the whole batch.
    """
    views: list[list[Tensor]] = []
    for images in (leaf for leaf in _leaves(batch) if leaf.is_floating_point() and leaf.dim() in (3, 4)):
        if views and (images.dim() == 3 or views[-1][0].shape == images.shape):
            views[-1].append(images)
        else:
            views.append([images])
    described = {}
    for number, tensors in enumerate(views, start=1):
        stacked = [each if each.dim() == 4 else each[None] for each in tensors]
        size = sum(each.numel() for each in stacked)
        described[f"pixels of view {number}"] = sum_of(each.double().sum() for each in stacked) / size
        described[f"squared pixels of view {number}"] = sum_of(each.double().square().sum() for each in stacked) / size
        rows = torch.cat([_projections(each.flatten(1)) / each[0].numel() ** 0.5 for each in stacked])
        # An image counts with the sign of its place in the whole batch, whichever rank has it.
        places = torch.arange(len(rows), device=rows.device) % len(stacked[0]) + rank() * len(stacked[0])
        described[f"projection of view {number}"] = (rows * _signs(rows.device)[places % SIGNS_PERIOD]).mean()
    return described


def describe_labels(batch: Any) -> Tensor:
    """Return a number that depends on each label and box of a batch and on its place; ranks' numbers add up."""
    return sum_of(
        _weighted_sum(leaf.flatten(), rank() * leaf.numel())
        for leaf in _leaves(batch)
        if leaf.dim() < 3 or leaf.dtype == torch.bool  # DETR's padding has three dimensions
    )


def describe_rows(name: str, rows: np.ndarray) -> dict[str, float]:
    """Return mean, mean square and projection of a matrix, such as a few images' features."""
    values = torch.from_numpy(np.array(rows, np.float64))
    projection = _projections(values.flatten()[None])[0] / values.numel() ** 0.5
    return {
        f"mean of {name}": values.mean().item(),
        f"mean square of {name}": values.square().mean().item(),
        f"projection of {name}": projection.item(),
    }


def describe_weights(networks: Mapping[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return norm and projection of the weights, per part of the networks (trunk, head, ...) and kind of weight."""
    parts: dict[str, list[Tensor]] = {}
    for prefix, net in networks.items():
        for name, weight in net.named_parameters():
            if weight.requires_grad or prefix:
                kind = "matrices" if weight.dim() > 1 else "vectors"
                parts.setdefault(f"{prefix or _part(name)} {kind}", []).append(weight.detach())
        for name, buffer in net.named_buffers():
            if buffer.is_floating_point():
                parts.setdefault(f"{prefix or _part(name)} statistics", []).append(buffer)
    return {
        name: (
            sum_of(torch.sum(each * each, dtype=torch.float64) for each in tensors).sqrt(),
            sum_of(_projections(each.flatten()[None])[0] for each in tensors),
        )
        for name, tensors in parts.items()
    }


def describe_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a number per entry of a method's state: projections of floats, weighted sums of the others, added up."""

    def describe(leaf: Tensor) -> Tensor:
        return _projections(leaf.flatten()[None])[0] if leaf.is_floating_point() else _weighted_sum(leaf.flatten())

    tensors = {name: list(_leaves(value)) for name, value in state.items()}
    return {name: sum_of(map(describe, leaves)) for name, leaves in tensors.items() if leaves}


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more tensors."""
    first, *rest = values
    for value in rest:
        first = first + value
    return first


def _part(name: str) -> str:
    """Return the part of a network that a weight belongs to, by its name."""
    first, *rest = name.split(".")
    if first in ("conv1", "bn1", "0") or first.startswith("layer"):  # 0 and 1: a trunk and a classifier in sequence
        return "trunk"
    if first == "1":
        return "classifier"
    return f"{first}.{rest[0]}" if rest and rest[0].startswith("prototypes") else first


def _leaves(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested batch, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, int | float):
        yield torch.tensor(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from _leaves(getattr(value, each.name))


def _reduced(means: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the means and sums over ranks of scalars, by one collective."""
    names = [*means, *sums]
    # Detectron2's trainer has its images and boxes on the host.
    own = [each.detach().to(means["loss"].device, torch.float64) for each in (*means.values(), *sums.values())]
    row = all_reduce_sum(torch.stack(own))
    return dict(zip(names, [*(row[: len(means)] / world_size()), *row[len(means) :]], strict=True))


def _weighted_sum(values: Tensor, first: int = 0) -> Tensor:
    """Return the sum of `values (n,)`, each times its place, from 1; places go on from `first`."""
    places = torch.arange(first + 1, first + 1 + len(values), device=values.device, dtype=torch.float64)
    return ((values.double() + 1) * places).sum()


def _projections(rows: Tensor) -> Tensor:
    """Return the sum of each row `(n, d)` with fixed random signs: `(n,)` float64. It shows any change of the row."""
    signs = _signs(rows.device)
    whole = rows.shape[1] // SIGNS_PERIOD * SIGNS_PERIOD
    total = rows[:, whole:].double() @ signs[: rows.shape[1] - whole]
    blocks = rows[:, :whole].split(BLOCK_PERIODS * SIGNS_PERIOD, dim=1) if whole else ()
    for part in blocks:
        total += part.unflatten(1, (-1, SIGNS_PERIOD)).sum(1, dtype=torch.float64) @ signs
    return total


@lru_cache(maxsize=4)
def _signs(device: torch.device) -> Tensor:
    drawn = np.random.Generator(np.random.Philox(key=0)).integers(0, 2, SIGNS_PERIOD) * 2.0 - 1
    return torch.from_numpy(drawn).to(device)
