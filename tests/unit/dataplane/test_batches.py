"""Cutting plans into batches."""

import numpy as np
from hypothesis import given, strategies as st

from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.reads.batches import cut, split_long


def covered(plan: CopyPlan) -> list[tuple[int, int]]:
    """Every byte that a plan copies, as source and destination offset."""
    return [
        (int(start) + byte, int(end) + byte)
        for start, end, length in zip(plan.source_offsets, plan.destination_offsets, plan.lengths, strict=True)
        for byte in range(int(length))
    ]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 40), st.integers(1, 5))
def test_batches_cover_the_plan_within_bounds(lengths: list[int], bytes_max: int, descriptors_max: int) -> None:
    """Batches hold the plan's bytes, each once and in order, and none is over a bound."""
    sizes = np.array(lengths, dtype=np.int64)
    plan = CopyPlan(np.cumsum(sizes), np.cumsum(sizes) * 2, sizes)
    batches = cut(split_long(plan, bytes_max), bytes_max, descriptors_max)
    assert covered(plan) == [byte for batch in batches for byte in covered(batch)]
    assert all(0 < batch.total_bytes <= bytes_max for batch in batches)
    assert all(batch.piece_count <= descriptors_max for batch in batches)
