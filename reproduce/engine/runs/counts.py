"""What a result counts beside its metrics."""

from typing import Any

from reproduce.engine.distributed.collectives import gather_union


class Counts(dict[str, int]):
    """Numbers by name (`num_test_images`), and names of what was passed over, each counted once.

    Part of a run's checkpoints: a run that goes on has seen what it saw before.
    """

    def __init__(self) -> None:
        super().__init__(num_skipped_images=0)
        self.skipped_images: set[str] = set()
        """Of this rank, and of all ranks before the run was taken up again."""
        self.broken_annotations: set[str] = set()

    def complete(self) -> "Counts":
        """All ranks' together. A collective."""
        self["num_skipped_images"] = len(gather_union(self.skipped_images))
        return self

    def state_dict(self) -> dict[str, Any]:
        """Numbers and names, those of all ranks. A collective."""
        return {
            "numbers": dict(self),
            "skipped_images": sorted(gather_union(self.skipped_images)),
            "broken_annotations": sorted(self.broken_annotations),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Add what `state_dict` gave."""
        self.update(state["numbers"])
        self.skipped_images.update(state["skipped_images"])
        self.broken_annotations.update(state["broken_annotations"])
