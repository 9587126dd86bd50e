"""Sinkhorn's closed forms, and its safety in half precision."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.methods.sinkhorn import sinkhorn


def scores(batch: int, prototypes: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, prototypes, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_every_sample_weighs_one_and_every_prototype_the_same() -> None:
    assignments = sinkhorn(scores(48, 12), epsilon=0.5, num_iterations=200)
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(48))
    torch.testing.assert_close(assignments.sum(dim=0), torch.full((12,), 4.0), rtol=1e-3, atol=1e-3)


def test_half_precision_scores_that_overflow_give_what_single_precision_gives() -> None:
    high = scores(16, 8).half()  # exp(1 / 0.05) is 4.9e8; half precision ends at 65504
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            assignments = sinkhorn(high.to(dtype), epsilon=0.05, num_iterations=3)
        assert assignments.dtype == torch.float32
        torch.testing.assert_close(assignments, sinkhorn(high.to(dtype).float(), 0.05, 3))
        assert assignments.isfinite().all()


def test_scores_are_left_as_they_were() -> None:
    raw = scores(8, 4)
    before = raw.clone()
    sinkhorn(raw, 0.05, 3)
    torch.testing.assert_close(raw, before, rtol=0, atol=0)


def test_a_constant_added_to_all_scores_changes_nothing() -> None:
    torch.testing.assert_close(
        sinkhorn(scores(8, 4) + 50, 0.05, 3), sinkhorn(scores(8, 4), 0.05, 3), rtol=1e-3, atol=1e-5
    )


@given(
    batch=st.integers(1, 24), prototypes=st.integers(1, 12), seed=st.integers(0, 2**31),
    epsilon=st.floats(0.005, 1.0), iterations=st.integers(1, 5), far=st.integers(0, 3),
)  # fmt: skip
def test_assignments_are_shares_whatever_the_scores(
    batch: int, prototypes: int, seed: int, epsilon: float, iterations: int, far: int
) -> None:
    """Samples as far as cosines can be from all prototypes among them: exp(-2 / .005) is zero in fp32."""
    raw = scores(batch, prototypes, seed)
    raw[:1], raw[batch - min(far, batch - 1) :] = 1, -1
    assignments = sinkhorn(raw, epsilon, iterations)
    assert (assignments >= 0).all()
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(batch))
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(sinkhorn(raw[order], epsilon, iterations), assignments[order], rtol=1e-3, atol=1e-6)


def test_a_prototype_that_no_sample_is_near_stays_empty_and_spoils_nothing() -> None:
    raw = scores(8, 4) / 10
    raw[:, 2] = -1
    assignments = sinkhorn(raw, epsilon=0.005, num_iterations=3)  # exp(-.9 / .005) is zero in fp32
    assert (assignments[:, 2] == 0).all()
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(8))
