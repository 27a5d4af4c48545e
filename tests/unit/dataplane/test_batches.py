"""Cutting plans into batches."""

from collections.abc import Iterable

import numpy as np
from hypothesis import given, strategies as st

from kvferry.core.planning.copies import Axis, CopyPlan, StridedCopy
from kvferry_dataplane.reads.batches import Regions, cut, cut_regions, split_long


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


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(1, 20)), max_size=5), st.integers(1, 200))
def test_batches_of_regions_cover_the_plan(shapes: list[tuple[int, int, int]], bytes_max: int) -> None:
    """Batches of regions copy what the plan does, in order, and hold more than the bound only where one base does."""
    copies = tuple(
        StridedCopy(np.arange(bases) * 1000 + number, np.arange(bases) * 77, (Axis(length, 1, 2),), run_bytes)
        for number, (bases, length, run_bytes) in enumerate(shapes)
    )
    batches = cut_regions(Regions(copies), bytes_max)
    for batch in batches:
        assert batch.copies
        is_one = len(batch.copies) == 1 and batch.copies[0].source_bases.size == 1
        assert batch.total_bytes <= bytes_max or is_one
    assert _bases(copies) == _bases(copy for batch in batches for copy in batch.copies)


def _bases(copies: Iterable[StridedCopy]) -> list[tuple[int, int, tuple[Axis, ...], int]]:
    """What is copied from each base, in order."""
    return [
        (int(start), int(end), copy.axes, copy.run_bytes)
        for copy in copies
        for start, end in zip(copy.source_bases, copy.destination_bases, strict=True)
    ]
