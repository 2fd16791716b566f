"""The GPU benchmark's way through the real trainer, with the small model on the CPU."""

from __future__ import annotations

import pytest

from scripts.benchmark_gpu import Case, measure
from scripts.logprob_shapes import logprob_differences
from trainers.memory import Architecture

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.parametrize(
    "case",
    [Case(4, 2, 64, True, ragged=True), Case(4, 2, 64, False, full_logits=True)],
    ids=["ragged", "full logits"],
)
def test_a_case_trains_and_tells_the_seconds_of_each_part(case: Case) -> None:
    found = measure(case, tiny=True)
    assert found["error"] is None
    assert found["row_tokens"] == (sum((32, 42, 53, 64)) if case.ragged else 4 * 64)
    assert found["tokens_per_second"] == pytest.approx(found["row_tokens"] / found["gradients_seconds"])
    assert found["likelihoods_seconds"] > 0 and found["optimizer_seconds"] > 0
    assert len(found["gradients_seconds_each"]) == 2


def test_rounding_differs_with_the_shape_and_far_less_so_in_fp32() -> None:
    sizes = Architecture(hidden=64, layers=2, heads=4, kv_heads=2, feed_forward=160, vocabulary=500)
    found = logprob_differences(sizes, rows=2, tokens=96, decoded=16)
    assert found["sharpened"]["entropy"] == pytest.approx(2, abs=0.5)
    assert found["sharpened"]["cached"]["tokens"] == 2 * 16
    assert 0 <= found["sharpened_fp32"]["cached"]["max"] < 1e-3 < found["sharpened_fp32"]["bf16"]["max"]
