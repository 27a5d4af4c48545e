"""Requests that cannot be planned are refused by name; windows, prefixes and state follow their rules."""

import dataclasses
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kvferry.core.blocks import BlockIds, checked_blocks
from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.errors import BlockError, InvalidArgument, KvferryError
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.core.planning.copies import CopyPlan
from kvferry.core.planning.planner import PairPlan
from kvferry.core.planning.tokens import TokenRange
from kvferry.core.reasons import Reason

MODEL = DenseModel("m", 2, 2, 4, 16, ElementType.BFLOAT16)


def ids(*listed: int) -> dict[str, BlockIds]:
    """Block ids of the one group."""
    return {"full": np.array(listed, dtype=np.int64)}


def pair(source: WorkerLayout | None = None, destination: WorkerLayout | None = None) -> PairPlan:
    """A pair of layouts of 8 blocks."""
    return PairPlan(source or dense_layout(MODEL, 8), destination or dense_layout(MODEL, 8), 0)


def grouped(**changes: Any) -> WorkerLayout:
    """A layout whose one group is changed."""
    model = dataclasses.replace(MODEL, tokens_per_block=changes.pop("tokens_per_block", 16))
    layout = dense_layout(model, 8)
    return dataclasses.replace(layout, groups=(dataclasses.replace(layout.groups[0], **changes),))


@pytest.mark.parametrize(
    ("source", "destination", "field", "reason"),
    [
        ((0, 8), (0, 1), "source_blocks[full].block_ids[1]", Reason.BLOCK_OUT_OF_RANGE),
        ((0, 1), (-1, 1), "destination_blocks[full].block_ids[0]", Reason.BLOCK_OUT_OF_RANGE),
        ((5, 5), (0, 1), "source_blocks[full].block_ids[1]", Reason.BLOCK_DUPLICATE),
        ((0, 1), (2, 2), "destination_blocks[full].block_ids[1]", Reason.BLOCK_DUPLICATE),
        ((0,), (0, 1), "source_blocks[full]", Reason.BLOCK_COUNT_MISMATCH),
        ((0, 1, 2), (0, 1), "source_blocks[full]", Reason.BLOCK_COUNT_MISMATCH),
        ((0, 1), (0,), "destination_blocks[full]", Reason.BLOCK_COUNT_MISMATCH),
        ((0, 1), (0, 1, 2), "destination_blocks[full]", Reason.BLOCK_COUNT_MISMATCH),
    ],
)
def test_wrong_block_lists_are_refused(
    source: Sequence[int], destination: Sequence[int], field: str, reason: Reason
) -> None:
    """An id out of range or listed twice, and a list that does not hold the tokens, are named."""
    with pytest.raises(BlockError) as caught:
        pair().request(ids(*source), ids(*destination), TokenRange.whole(20))
    assert (field, reason) == (caught.value.metadata["field"], caught.value.reason)


@pytest.mark.parametrize(
    ("tokens", "field"),
    [
        (TokenRange(0, 0, 0), "tokens.total"),
        (TokenRange(0, 21, 20), "tokens.stop"),
        (TokenRange(-1, 20, 20), "tokens.start"),
        (TokenRange(19, 18, 20), "tokens.start"),
        (TokenRange(0, 0, 20), "tokens.stop"),
        (TokenRange(0, 1 << 41, 1 << 41), "tokens.total"),
    ],
)
def test_wrong_token_ranges_are_refused(tokens: TokenRange, field: str) -> None:
    """A range that is none, or that goes past the end, is named."""
    with pytest.raises(InvalidArgument) as caught:
        pair().request(ids(0, 1), ids(0, 1), tokens)
    assert field == caught.value.metadata["field"]


def test_groups_must_be_known_and_the_same() -> None:
    """Both sides list the same groups of the layouts, and at least one block."""
    for lists, field in (
        (({"other": np.array([0])}, ids(0)), "source_blocks.group"),
        ((ids(0), {"other": np.array([0])}), "destination_blocks.group"),
        ((ids(), ids()), "source_blocks"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            pair().request(*lists)
        assert field == caught.value.metadata["field"]


def test_ranks_must_exist() -> None:
    """A rank past the last is refused."""
    layout = dense_layout(MODEL, 8)
    with pytest.raises(InvalidArgument) as caught:
        PairPlan(layout, layout, 1)
    assert "rank" == caught.value.metadata["field"]
    with pytest.raises(InvalidArgument) as caught:
        PairPlan(layout, layout, 0, source_data_parallel_rank=1)
    assert "source_data_parallel_rank" == caught.value.metadata["field"]


def test_ten_million_blocks_are_refused_unread() -> None:
    """A list that is far too long is refused before anything is allocated for it."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument) as caught:
            checked_blocks([("full", range(10_000_000))], {"full": 8}, "source_blocks")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "source_blocks" == caught.value.metadata["field"]
    assert peak < 100_000
    with pytest.raises(InvalidArgument):
        pair().request({"full": np.arange(10_000_000)}, ids(0))


def test_a_present_prefix_is_not_read() -> None:
    """Only tokens from the range's start are copied, also from the middle of a block; blocks before may be left out."""
    every_token = 2 * 2 * 2 * 4 * 2
    tokens = TokenRange(20, 40, 40)
    whole = pair().request(ids(0, 1, 2), ids(5, 6, 7), tokens).plan(0)
    assert 20 * every_token == whole.total_bytes
    short = pair().request(ids(1, 2), ids(6, 7), tokens).plan(0)
    assert whole.source_offsets.tolist() == short.source_offsets.tolist()
    assert whole.destination_offsets.tolist() == short.destination_offsets.tolist()


def test_a_prefix_of_everything_reads_nothing() -> None:
    """Where every token is present already, no source rank is asked."""
    request = pair().request(ids(0, 1), ids(5, 6), TokenRange(20, 20, 20))
    assert ((), 0) == (request.source_ranks, request.plan(0).piece_count)


def test_without_tokens_blocks_move_whole() -> None:
    """Without a token range every token of the source's blocks is copied, into as many blocks as they take."""
    halves = pair(destination=dense_layout(dataclasses.replace(MODEL, tokens_per_block=32), 8))
    assert 3 * 16 * 2 * 2 * 2 * 4 * 2 == halves.request(ids(1, 5, 3), ids(7, 2)).plan(0).total_bytes
    with pytest.raises(BlockError):
        halves.request(ids(1, 5, 3), ids(7, 2, 0))


def test_a_window_that_has_moved_on_is_refused() -> None:
    """A request that ends before the source's tokens cannot have those that its window has dropped."""
    layout = grouped(window_tokens=16)
    plan = pair(layout, layout)
    assert 16 * 64 == plan.request(ids(0, 1, 2), ids(0, 1, 2), TokenRange(0, 40, 40)).plan(0).total_bytes
    with pytest.raises(InvalidArgument) as caught:
        plan.request(ids(0, 1, 2), ids(0, 1), TokenRange(0, 30, 40))
    assert "tokens.stop" == caught.value.metadata["field"]


def test_state_moves_whole_and_only_at_the_end() -> None:
    """State has one block on each side, moves even if all tokens are present, and belongs to the last token."""
    layout = grouped(tokens_per_block=1, per_sequence=True)
    plan = pair(layout, layout)
    assert 64 == plan.request(ids(3), ids(4), TokenRange(700, 700, 700)).plan(0).total_bytes
    with pytest.raises(BlockError):
        plan.request(ids(3, 2), ids(4, 5), TokenRange.whole(700))
    with pytest.raises(InvalidArgument):
        plan.request(ids(3), ids(4), TokenRange(0, 600, 700))


def test_scales_move_with_what_they_scale() -> None:
    """Eight-bit KV without its scales is worth nothing, so that one is not listed without the other."""
    layout = dense_layout(dataclasses.replace(MODEL, element_type=ElementType.INT8), 8)
    scales = dataclasses.replace(
        layout.groups[0], name="scales", element_type=ElementType.FLOAT32, head_dim=1, scales_of="full"
    )
    placement = dataclasses.replace(layout.ranks[0].placements[0], group="scales", base_bytes=1 << 16)
    rank = dataclasses.replace(layout.ranks[0], placements=(layout.ranks[0].placements[0], placement))
    both = dataclasses.replace(layout, groups=(layout.groups[0], scales), ranks=(rank,))
    plan = pair(both, both)
    with pytest.raises(InvalidArgument) as caught:
        plan.request(ids(0), ids(0), None)
    assert "source_blocks.group" == caught.value.metadata["field"]
    lists = {**ids(0), "scales": np.array([3])}
    assert 16 * 2 * 2 * 2 * (4 + 4) == plan.request(lists, lists, TokenRange.whole(16)).plan(0).total_bytes


LISTS = st.lists(st.integers(-2, 9), max_size=5)


@given(LISTS, LISTS, st.none() | st.tuples(*[st.integers(-5, 90) | st.integers()] * 3), st.sampled_from([4, 16, 64]))
def test_a_request_is_planned_or_refused(
    source: list[int], destination: list[int], tokens: tuple[int, int, int] | None, size: int
) -> None:
    """Whatever is asked, there is a plan inside both pools or an error that names a field."""
    plan = pair(destination=dense_layout(dataclasses.replace(MODEL, tokens_per_block=size), 8))
    token_range = None if tokens is None else TokenRange(*tokens)
    copies: CopyPlan | None
    field = ""
    try:
        copies = plan.request(ids(*source), ids(*destination), token_range).plan(0)
    except KvferryError as error:
        copies, field = None, error.metadata["field"]
    if copies is None:
        assert field
        return
    assert not copies.piece_count or int(copies.source_offsets.min()) >= 0
    assert int((copies.source_offsets + copies.lengths).max(initial=0)) <= 8 * 16 * 64
    assert int((copies.destination_offsets + copies.lengths).max(initial=0)) <= 8 * size * 64
