"""The planner against a copy made element by element."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvferry.core.dense import AXES, DenseModel, dense_layout
from kvferry.core.errors import BlockError, LayoutMismatch
from kvferry.core.layouts import ElementType, LayerGroup, RankLayout, WorkerLayout, shape_of
from kvferry.core.reasons import Reason
from kvferry_dataplane.blocks import BlockIds
from kvferry_dataplane.plan import CopyPlan, Side, check_plan, make_plan

MODEL = DenseModel("m", 2, 2, 4, 3, ElementType.BFLOAT16)


def side(layout: WorkerLayout, pool_bytes: int) -> Side:
    """One rank's side."""
    return Side(layout.groups, layout.ranks[0], pool_bytes)


def blocks(*ids: int) -> dict[str, BlockIds]:
    """Block ids of the one group."""
    return {"full": np.array(ids, dtype=np.int64)}


def element_offsets(group: LayerGroup, rank: RankLayout, block: int) -> list[int]:
    """Offset of each element of a block, in order of the axes."""
    placement = rank.placements[0]
    counts = shape_of(group, placement)[1:]
    return [
        placement.base_bytes + sum(i * s for i, s in zip((block, *index), placement.strides, strict=True))
        for index in product(*(range(count) for count in counts))
    ]


def run(plan: CopyPlan, source: np.ndarray, destination: np.ndarray) -> None:
    """Do what a plan says."""
    for start, end, length in zip(plan.source_offsets, plan.destination_offsets, plan.lengths, strict=True):
        destination[end : end + length] = source[start : start + length]


orders = st.permutations(AXES)


@settings(max_examples=60, deadline=None)
@given(orders, orders, st.integers(1, 5), st.data())
def test_a_plan_copies_what_an_element_wise_copy_does(
    held: list[str], wanted: list[str], count: int, data: st.DataObject
) -> None:
    """Whatever the memory orders and block counts of both sides, exactly the listed blocks' elements are copied."""
    layouts = [dense_layout(MODEL, 6, order=held), dense_layout(MODEL, 7, order=wanted)]
    ids = [data.draw(st.permutations(range(limit)))[:count] for limit in (6, 7)]
    here_side, there_side = (side(layout, 4096) for layout in layouts)
    source = np.random.default_rng(0).integers(1, 256, 4096, dtype=np.uint8)
    actual, expected = np.zeros(4096, dtype=np.uint8), np.zeros(4096, dtype=np.uint8)
    here_blocks, there_blocks = blocks(*ids[0]), blocks(*ids[1])
    size = check_plan(here_side, there_side, here_blocks, there_blocks)
    plan = make_plan(here_side, there_side, here_blocks, there_blocks)
    run(plan, source, actual)
    group = layouts[0].groups[0]
    for here, there in zip(*ids, strict=True):
        pairs = zip(
            element_offsets(group, layouts[0].ranks[0], here),
            element_offsets(group, layouts[1].ranks[0], there),
            strict=True,
        )
        for start, end in pairs:
            expected[end : end + 2] = source[start : start + 2]
    assert expected.tolist() == actual.tolist()
    assert size.total_bytes == plan.total_bytes
    assert plan.piece_count <= size.pieces_max


def test_a_whole_pool_is_one_run() -> None:
    """Neighbouring blocks on both sides join: with all blocks in order, one copy is left."""
    layout = dense_layout(MODEL, 6)
    plan = make_plan(side(layout, 4096), side(layout, 4096), blocks(*range(6)), blocks(*range(6)))
    assert [(0, 0, 6 * 2 * 2 * 2 * 3 * 4 * 2)] == [
        (int(plan.source_offsets[0]), int(plan.destination_offsets[0]), int(plan.lengths[0]))
    ]


def test_block_counts_must_agree() -> None:
    """Source and destination must list the same number of blocks."""
    layout = dense_layout(MODEL, 6)
    with pytest.raises(BlockError) as caught:
        check_plan(side(layout, 4096), side(layout, 4096), blocks(1, 2), blocks(1))
    assert Reason.BLOCK_COUNT_MISMATCH == caught.value.reason


def test_other_heads_are_refused() -> None:
    """Ranks that hold different heads cannot be paired."""
    whole, split = dense_layout(MODEL, 6), dense_layout(MODEL, 6, tensor_parallel=2)
    with pytest.raises(LayoutMismatch) as caught:
        check_plan(side(whole, 4096), side(split, 4096), blocks(1), blocks(1))
    assert "groups[full].heads" == caught.value.metadata["field"]


def test_another_group_is_refused() -> None:
    """Layer groups must be equal in every property."""
    other = replace(MODEL, element_type=ElementType.FLOAT16)
    with pytest.raises(LayoutMismatch):
        check_plan(side(dense_layout(MODEL, 6), 4096), side(dense_layout(other, 6), 4096), blocks(1), blocks(1))


def test_a_run_outside_the_pool_is_refused() -> None:
    """A layout that leaves its pool makes no plan."""
    layout = dense_layout(MODEL, 6)
    with pytest.raises(BlockError):
        make_plan(side(layout, 4096), side(layout, 100), blocks(5), blocks(5))
