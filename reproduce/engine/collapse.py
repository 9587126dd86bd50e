"""The collapse sentinel: a run that learns nothing stops early, and says what to try.

The most asked question about SwAV is a loss that stays at ln K (8.006 for 3000 prototypes): every picture gets the same
embedding, so every assignment is uniform. The loss falls below it within the first epochs of a healthy run.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from reproduce.config import schema
from reproduce.errors import TrainingFailed, UserError, did_you_mean

PLATEAU = 0.005
"""A loss this close to ln K, as a share of it, is no better than uniform predictions."""
ALIKE = 0.01
"""A spread of the embeddings below this (1 is that of directions drawn evenly) means that all are one."""
UNIT_LENGTH = 0.02
"""Scores are cosines: embeddings or prototypes further off unit length than rounding explains: a broken method."""
ON_COLLAPSE = ("stop", "warn")
REMEDIES = "a lower optimizer.lr, or fewer and softer crops; check that the pictures differ"
"""For any method; its own stand before them."""


class LossProfile(Protocol):
    """What a method declares about its loss (`models/methods/base.py`)."""

    @property
    def uniform_loss(self) -> float | None:
        """The loss of uniform predictions; None if the method has no such constant."""

    @property
    def plateau_grace_epochs(self) -> float:
        """Epochs during which a loss at `uniform_loss` is normal, in addition to the configured patience."""

    @property
    def loss_jump_step(self) -> int | None:
        """The step at which the objective changes, so that the loss jumps."""

    @property
    def collapse_hints(self) -> str:
        """What to change in the method's config after a collapse."""


class Sentinel:
    """Judges the curves of the last epoch, except while it is patient: at the start, and after `be_patient`.

    `uniform_loss` is that of uniform predictions, None for a method without prototypes. `remedies` are the method's.
    """

    def __init__(
        self,
        uniform_loss: float | None,
        steps_per_epoch: int,
        patience_epochs: float,
        on_collapse: str,
        remedies: str = "",
    ) -> None:
        if on_collapse not in ON_COLLAPSE:
            raise UserError(
                f"there is no sentinel.on_collapse {on_collapse!r}: {did_you_mean(on_collapse, ON_COLLAPSE)}"
            )
        self._uniform_loss = uniform_loss
        self._remedies = f"try {remedies}, {REMEDIES}" if remedies else f"try {REMEDIES}"
        self._steps_per_epoch = steps_per_epoch
        self._on_collapse = on_collapse
        self._patient: list[tuple[float, float]] = []
        self._seen: deque[tuple[int, Mapping[str, float]]] = deque()
        self._warned = False
        self.be_patient(0, patience_epochs)

    @classmethod
    def of(cls, method: LossProfile, settings: schema.Sentinel, steps_per_epoch: int, first_step: int) -> "Sentinel":
        """The sentinel of a run that begins or goes on at `first_step`, patient wherever its method asks for it."""
        patience_epochs = settings.patience_epochs + method.plateau_grace_epochs
        sentinel = cls(
            method.uniform_loss, steps_per_epoch, patience_epochs, settings.on_collapse, method.collapse_hints
        )
        sentinel.be_patient(first_step, epochs=1)
        if method.loss_jump_step is not None:
            sentinel.be_patient(method.loss_jump_step, epochs=2)
        return sentinel

    def be_patient(self, step: int, epochs: float) -> None:
        """Judge nothing for some epochs from `step` on: a new queue disturbs the loss, a resumed run has no past."""
        self._patient.append((step, step + epochs * self._steps_per_epoch))

    def watch(self, step: int, values: Mapping[str, float]) -> None:
        """Take up the curves' values of one step.

        Raises `TrainingFailed` (or warns once, by `on_collapse`) where a whole epoch of them shows a collapse, and at
        once where scores are no cosines.
        """
        if values.get("unit_length_error", 0) > UNIT_LENGTH:
            raise TrainingFailed(
                f"embeddings or prototypes are {values['unit_length_error']:.3f} off unit length (step {step}), so "
                "scores are no cosines: features overflow (lower optimizer.lr), or the method does not normalise both"
            )
        self._seen.append((step, values))
        while self._seen[0][0] <= step - self._steps_per_epoch:
            self._seen.popleft()
        if not any(start <= step < end for start, end in self._patient) and (symptom := self._symptom()):
            sentence = f"the training collapsed: {symptom} (step {step}); {self._remedies}"
            if self._on_collapse == "stop":
                raise TrainingFailed(sentence, status="collapsed")
            if not self._warned:
                print(f"warning: {sentence}", flush=True)
                self._warned = True

    def _symptom(self) -> str:
        """What the last epoch shows, in words; "" where it looks healthy."""

        def mean(name: str) -> float:
            return math.fsum(values[name] for _, values in self._seen) / len(self._seen)

        uniform = self._uniform_loss
        if uniform is not None and abs(mean("loss") - uniform) < PLATEAU * uniform:
            return f"the loss stays at ln K = {uniform:.3f}, as of uniform predictions"
        if mean("embedding_spread") < ALIKE:
            return f"all pictures have the same embedding (spread {mean('embedding_spread'):.4f})"
        if "prototypes_used" in self._seen[-1][1] and mean("prototypes_used") < 1.5:
            return "all pictures of a batch are assigned to the same prototype"
        return ""
