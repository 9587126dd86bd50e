"""Counts that a result reports beside its metrics."""

from typing import Any

from reproduce.engine.distributed.collectives import gather_union


class Counts(dict[str, int]):
    """Counts by name (`num_test_images`), and the names of skipped images and annotations, each counted once.

    The counts are part of a run's checkpoints, so that a resumed run remembers what it skipped before.
    """

    def __init__(self) -> None:
        super().__init__(num_skipped_images=0)
        self.skipped_images: set[str] = set()
        """Skipped by this rank, or by any rank before the run was resumed."""
        self.broken_annotations: set[str] = set()

    def gather(self) -> "Counts":
        """Combine the counts of all ranks and return them. A collective."""
        self["num_skipped_images"] = len(gather_union(self.skipped_images))
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return counts and names, those of all ranks. A collective."""
        return {
            "numbers": dict(self),
            "skipped_images": sorted(gather_union(self.skipped_images)),
            "broken_annotations": sorted(self.broken_annotations),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Add the result of `state_dict`."""
        self.update(state["numbers"])
        self.skipped_images.update(state["skipped_images"])
        self.broken_annotations.update(state["broken_annotations"])
