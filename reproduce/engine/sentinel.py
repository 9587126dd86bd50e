"""The collapse sentinel: a run that learns nothing stops early, and says what to try.

The most asked question about SwAV is a loss that stays at ln K (8.006 for 3000 prototypes): every picture gets the same
embedding, so every assignment is uniform. The loss falls below it within the first epochs of a healthy run.
"""

import math
from collections import deque
from collections.abc import Mapping

from reproduce.engine.run import TrainingFailed

PLATEAU = 0.005
"""A loss this close to ln K, as a share of it, is no better than uniform predictions."""
ALIKE = 0.01
"""A spread of the embeddings below this (1 is that of directions drawn evenly) means that all are one."""
REMEDIES = (
    "try method.epsilon=0.03 (sharper assignments), a longer method.freeze_prototypes_epochs, a lower optimizer.lr, "
    "or fewer and softer crops; check that the pictures differ"
)


class Sentinel:
    """Judges the curves of the last epoch, from `patience_epochs` after the start (or after `arm_again`) on."""

    def __init__(self, num_prototypes: int, steps_per_epoch: int, patience_epochs: float, on_collapse: str) -> None:
        self._ceiling = math.log(num_prototypes)
        self._steps_per_epoch = steps_per_epoch
        self._patience_steps = patience_epochs * steps_per_epoch
        self._on_collapse = on_collapse
        self._armed_from = self._patience_steps
        self._seen: deque[tuple[int, Mapping[str, float]]] = deque()
        self._warned = False

    def arm_again(self, step: int) -> None:
        """Be patient anew from `step` on: a queue that starts disturbs the loss for a while."""
        self._armed_from = step + self._patience_steps

    def watch(self, step: int, values: Mapping[str, float]) -> None:
        """Take up the curves' values of one step.

        Raises `TrainingFailed` (or warns once, by `on_collapse`) where a whole epoch of them shows a collapse.
        """
        self._seen.append((step, values))
        while self._seen[0][0] <= step - self._steps_per_epoch:
            self._seen.popleft()
        if step >= self._armed_from and (symptom := self._symptom()):
            sentence = f"the training collapsed: {symptom} (step {step}); {REMEDIES}"
            if self._on_collapse == "stop":
                raise TrainingFailed(sentence, status="collapsed")
            if not self._warned:
                print(f"warning: {sentence}", flush=True)
                self._warned = True

    def _symptom(self) -> str:
        """What the last epoch shows, in words; "" where it looks healthy."""

        def mean(name: str) -> float:
            return math.fsum(values[name] for _, values in self._seen) / len(self._seen)

        if abs(mean("loss") - self._ceiling) < PLATEAU * self._ceiling:
            return f"the loss stays at ln K = {self._ceiling:.3f}, as of uniform predictions"
        if mean("embedding_spread") < ALIKE:
            return f"all pictures have the same embedding (spread {mean('embedding_spread'):.4f})"
        if mean("prototypes_used") < 1.5:
            return "all pictures of a batch are assigned to the same prototype"
        return ""
