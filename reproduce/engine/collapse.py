"""The collapse detector stops a run that learns nothing and suggests what to change.

The most frequent question about SwAV is a loss that stays at ln K (8.006 for 3000 prototypes): all images get the same
embedding, so the assignments are uniform. In a healthy run the loss falls below ln K within the first epochs.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from reproduce.config import schema
from reproduce.errors import TrainingFailed, UserError, did_you_mean

PLATEAU_TOLERANCE = 0.005
"""A loss within this fraction of ln K is no better than uniform predictions."""
MIN_SPREAD = 0.01
"""An `embedding_spread` below this means that all embeddings are equal; 1 is the value for uniform directions."""
MAX_UNIT_LENGTH_ERROR = 0.02
"""A larger deviation from unit length is no rounding error: the scores are not cosines, so the method is broken."""
MIN_PROTOTYPES_USED = 1.5
"""A mean of fewer prototypes in use means that all images of a batch share one."""
SYMPTOMS = ("loss", "embedding_spread", "prototypes_used")
"""The metrics whose means over an epoch show a collapse."""
ON_COLLAPSE = ("stop", "warn")
GENERIC_HINTS = "a lower optimizer.lr, or fewer and softer crops; check that the images differ"
"""Suggestions for any method, after the method's own hints."""


class LossProfile:
    """What a method declares about its loss."""

    uniform_loss: float | None = None
    """The loss of uniform predictions (ln K); None if the method has no such constant."""
    plateau_grace_epochs: float = 0
    """Epochs during which a loss at `uniform_loss` is normal, in addition to the configured patience."""
    loss_jump_step: int | None = None
    """The step at which the objective changes (a queue starts), so that the loss jumps; None if it never does."""
    collapse_hints: str = ""
    """What to change in the method's config after a collapse."""


class CollapseDetector:
    """Checks the metrics of the last epoch for a collapse, except while suspended.

    `uniform_loss` is the loss of uniform predictions, or None for a method without prototypes. The detector starts
    suspended for `patience_epochs`. `hints` are the method's own suggestions. Part of the run's checkpoints: a run that
    is preempted more often than once an epoch is checked like any other.
    """

    def __init__(
        self,
        uniform_loss: float | None,
        steps_per_epoch: int,
        patience_epochs: float,
        on_collapse: str,
        hints: str = "",
    ) -> None:
        if on_collapse not in ON_COLLAPSE:
            raise UserError(f"unknown collapse.on_collapse {on_collapse!r}: {did_you_mean(on_collapse, ON_COLLAPSE)}")
        self._uniform_loss = uniform_loss
        self._hints = f"try {hints}, {GENERIC_HINTS}" if hints else f"try {GENERIC_HINTS}"
        self._steps_per_epoch = steps_per_epoch
        self._on_collapse = on_collapse
        self._suspensions: list[tuple[float, float]] = []
        self._history: deque[tuple[int, Mapping[str, float]]] = deque()
        self._warned = False
        self.suspend(0, patience_epochs)

    @classmethod
    def for_method(cls, method: LossProfile, config: schema.Collapse, steps_per_epoch: int) -> "CollapseDetector":
        """Return a run's detector, suspended where `method` needs it."""
        patience_epochs = config.patience_epochs + method.plateau_grace_epochs
        detector = cls(method.uniform_loss, steps_per_epoch, patience_epochs, config.on_collapse, method.collapse_hints)
        detector.suspend(0, epochs=1)  # a mean needs an epoch
        if method.loss_jump_step is not None:
            detector.suspend(method.loss_jump_step, epochs=2)
        return detector

    def thresholds(self) -> dict[str, Any]:
        """Return, as plain data, the range of each metric that means a collapse, and the step when the checks begin.

        A range is `low`, `high` (None: open) and its meaning in `words`.
        """
        ranges: dict[str, tuple[float | None, float | None, str]] = {
            "embedding_spread": (None, MIN_SPREAD, "all images have the same embedding"),
            "prototypes_used": (None, MIN_PROTOTYPES_USED, "all images of a batch share one prototype"),
            "unit_length_error": (MAX_UNIT_LENGTH_ERROR, None, "scores are not cosines"),
        }
        if (uniform := self._uniform_loss) is not None:
            off = PLATEAU_TOLERANCE * uniform
            ranges["loss"] = (uniform - off, uniform + off, f"the loss of uniform predictions, {uniform:.3f}")
        return {
            "first_step": max(end for start, end in self._suspensions if start == 0),
            "ranges": {name: {"low": low, "high": high, "words": words} for name, (low, high, words) in ranges.items()},
        }

    def suspend(self, step: int, epochs: float) -> None:
        """Skip the check for `epochs` from `step` on. Suspensions may overlap."""
        self._suspensions.append((step, step + epochs * self._steps_per_epoch))

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of one step and check the last epoch's.

        Raises `TrainingFailed` if they show a collapse (with `on_collapse=warn`: prints one warning), and always at
        once if embeddings or prototypes are not of unit length.
        """
        if metrics.get("unit_length_error", 0) > MAX_UNIT_LENGTH_ERROR:
            raise TrainingFailed(
                f"embeddings or prototypes are {metrics['unit_length_error']:.3f} off unit length (step {step}), so "
                "scores are not cosines: features overflow (lower optimizer.lr), or the method does not normalize both"
            )
        self._history.append((step, {name: metrics[name] for name in SYMPTOMS if name in metrics}))
        while self._history[0][0] <= step - self._steps_per_epoch:
            self._history.popleft()
        if not any(start <= step < end for start, end in self._suspensions) and (symptom := self._symptom()):
            message = f"the training collapsed: {symptom} (step {step}); {self._hints}"
            if self._on_collapse == "stop":
                raise TrainingFailed(message, status="collapsed")
            if not self._warned:
                print(f"warning: {message}", flush=True)
                self._warned = True

    def state_dict(self) -> dict[str, Any]:
        """Return the last epoch's metrics."""
        return {"history": [(step, dict(metrics)) for step, metrics in self._history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`."""
        self._history = deque((step, metrics) for step, metrics in state["history"])

    def resumed_at(self, step: int) -> None:
        """Wait for an epoch of metrics if the run's checkpoint, of an earlier version, has none."""
        if not self._history:
            self.suspend(step, epochs=1)

    def _symptom(self) -> str:
        """Return the symptom that the last epoch shows, or an empty string if it looks healthy."""

        def mean(name: str) -> float:
            return math.fsum(metrics[name] for _, metrics in self._history) / len(self._history)

        uniform = self._uniform_loss
        if uniform is not None and abs(mean("loss") - uniform) < PLATEAU_TOLERANCE * uniform:
            return f"the loss stays at ln K = {uniform:.3f}, as for uniform predictions"
        if mean("embedding_spread") < MIN_SPREAD:
            return f"all images have the same embedding (spread {mean('embedding_spread'):.4f})"
        if "prototypes_used" in self._history[-1][1] and mean("prototypes_used") < MIN_PROTOTYPES_USED:
            return "all images of a batch are assigned to the same prototype"
        return ""
