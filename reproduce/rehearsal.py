"""What the harness asks `reproduce.rehearse` to rehearse, in one file that both read. Needs no torch."""

from dataclasses import dataclass
from typing import Any

REHEARSALS_FILE = "rehearsals.json"
"""A folder's list of rehearsals; what each one computed is in `NAME.json` beside it."""
RANDOM_TRUNK = "random trunk"
"""Stands for the checkpoint of an evaluation: the first rehearsal of the list makes it."""
NUM_STEPS, LEARNING_RATE, MEAN_LEARNING_RATE = "number of steps", "learning rate", "mean learning rate"
PROTOTYPES_FROZEN, QUEUE_STARTS = "prototypes are frozen for", "queue starts at step"
"""Quantities of a schedule; their tolerances and likely causes go by these names."""
NUM_FIRST_STEPS = 12
"""Steps that a run keeps in its result."""


@dataclass
class Request:
    """One rehearsal."""

    name: str
    kind: str
    """`pretrain`, `evaluate`, or `schedule`: the learning rates of a whole pretraining, without taking its steps."""
    config: dict[str, Any]
    num_images: int = 0
    """Of a schedule's training set."""
    num_steps: int = NUM_FIRST_STEPS
    """Steps to record."""
    ends_early: bool = False
    """Whether a training ends after its last recorded step: a whole run of a table would take too long."""
