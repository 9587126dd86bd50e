"""Sinkhorn's closed forms, and its safety in half precision."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.methods.sinkhorn import sinkhorn


def scores(batch: int, prototypes: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, prototypes, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_rows_sum_to_one_and_columns_are_equal() -> None:
    assignments = sinkhorn(scores(48, 12), epsilon=0.5, num_iterations=200)
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(48))
    torch.testing.assert_close(assignments.sum(dim=0), torch.full((12,), 4.0), rtol=1e-3, atol=1e-3)


def test_overflowing_fp16_scores_equal_fp32() -> None:
    high = scores(16, 8).half()  # exp(1 / 0.05) is 4.9e8; half precision ends at 65504
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            assignments = sinkhorn(high.to(dtype), epsilon=0.05, num_iterations=3)
        assert assignments.dtype == torch.float32
        torch.testing.assert_close(assignments, sinkhorn(high.to(dtype).float(), 0.05, 3))
        assert assignments.isfinite().all()


def test_scores_are_not_modified() -> None:
    raw = scores(8, 4)
    before = raw.clone()
    sinkhorn(raw, 0.05, 3)
    torch.testing.assert_close(raw, before, rtol=0, atol=0)


def test_invariant_to_a_constant_added_to_all_scores() -> None:
    torch.testing.assert_close(
        sinkhorn(scores(8, 4) + 50, 0.05, 3), sinkhorn(scores(8, 4), 0.05, 3), rtol=1e-3, atol=1e-5
    )


@given(
    batch=st.integers(1, 24), prototypes=st.integers(1, 12), seed=st.integers(0, 2**31),
    epsilon=st.floats(0.005, 1.0), iterations=st.integers(1, 5), far=st.integers(0, 3),
)  # fmt: skip
def test_rows_are_distributions_for_any_scores(
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


def test_a_prototype_far_from_all_samples_stays_empty_without_nan() -> None:
    raw = scores(8, 4) / 10
    raw[:, 2] = -1
    assignments = sinkhorn(raw, epsilon=0.005, num_iterations=3)  # exp(-.9 / .005) is zero in fp32
    assert (assignments[:, 2] == 0).all()
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(8))
