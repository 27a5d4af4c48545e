"""Kinds of layer groups, data-parallel ranks and dense layouts over many ranks: what is allowed and what is refused."""

import dataclasses
from itertools import product
from typing import Any

import pytest
from hypothesis import given, strategies as st

from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.errors import KvferryError, LayoutInvalid
from kvferry.core.layouts import ElementType, GroupPlacement, RankLayout, Strides, WorkerLayout, validate_layout
from kvferry.core.overlap import share_bytes
from kvferry.rpc.layouts import layout_from_wire, layout_to_wire

MODEL = DenseModel("m", 4, 2, 8, 16, ElementType.INT8)


def changed(layout: WorkerLayout, **changes: Any) -> WorkerLayout:
    """``layout`` with its first group changed."""
    group = dataclasses.replace(layout.groups[0], **changes)
    return dataclasses.replace(layout, groups=(group, *layout.groups[1:]))


def with_scales(**changes: Any) -> WorkerLayout:
    """An 8-bit group and its scales, which lie at the end of each block."""
    full = dense_layout(MODEL, 4, order=("block", "layer", "kv", "head", "token", "dim"))
    group = dataclasses.replace(
        full.groups[0], name="scales", element_type=ElementType.FLOAT32, head_dim=1, scales_of="full"
    )
    held = full.ranks[0].placements[0]
    data_bytes, scale_bytes = held.strides.block, held.strides.block // 2
    block = data_bytes + scale_bytes
    scales = GroupPlacement(
        "scales", held.layers, held.heads, 4, data_bytes, Strides(block, scale_bytes // 4, scale_bytes // 8, 64, 4, 4)
    )
    placements = (dataclasses.replace(held, strides=held.strides._replace(block=block)), scales)
    rank = RankLayout(0, placements)
    return WorkerLayout("m", (full.groups[0], dataclasses.replace(group, **changes)), (rank,))


def field_of(layout: WorkerLayout) -> str:
    """The field for which a layout is refused."""
    with pytest.raises(LayoutInvalid) as caught:
        validate_layout(layout)
    return caught.value.metadata["field"]


def test_scales_may_lie_between_blocks() -> None:
    """Groups that take turns inside one block share no bytes."""
    validate_layout(with_scales())
    crowded = with_scales()
    first, second = crowded.ranks[0].placements
    rank = RankLayout(0, (first, dataclasses.replace(second, base_bytes=second.base_bytes - 4)))
    assert "ranks[0].placements[scales].base_bytes" == field_of(dataclasses.replace(crowded, ranks=(rank,)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scales_of": "none"}, "groups[scales].scales_of"),
        ({"scales_of": "scales"}, "groups[scales].scales_of"),
        ({"window_tokens": 5}, "groups[scales].window_tokens"),
    ],
)
def test_wrong_scales_are_refused(changes: dict[str, Any], field: str) -> None:
    """Scales belong to another group of the same layers and window."""
    assert field == field_of(with_scales(**changes))


def test_scales_are_of_eight_bits() -> None:
    """A group of wider elements has no scales."""
    assert "groups[scales].scales_of" == field_of(changed(with_scales(), element_type=ElementType.BFLOAT16))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"per_sequence": True}, "groups[full].tokens_per_block"),
        ({"per_sequence": True, "tokens_per_block": 1, "window_tokens": 4}, "groups[full].window_tokens"),
        ({"window_tokens": -1}, "groups[full].window_tokens"),
        ({"kv_factor": 3}, "groups[full].kv_factor"),
        ({"total_kv_heads": 0}, "groups[full].total_kv_heads"),
        ({"head_dim": -4}, "groups[full].head_dim"),
        ({"tokens_per_block": 0}, "groups[full].tokens_per_block"),
        ({"layers": ()}, "groups[full].layers"),
        ({"layers": tuple(range(4096)), "total_kv_heads": 4096}, "groups[full]"),
    ],
)
def test_a_wrong_group_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    """Each field of a layer group has its own refusal."""
    assert field == field_of(changed(dense_layout(MODEL, 2), **changes))


def test_a_group_that_no_rank_holds_is_refused() -> None:
    """A layout speaks only of what is there."""
    layout = dense_layout(MODEL, 2)
    other = dataclasses.replace(layout.groups[0], name="other")
    assert "groups" == field_of(dataclasses.replace(layout, groups=(layout.groups[0], other)))


@pytest.mark.parametrize("numbers", [(0, 2), (1, 1), (0, -1), (0, 5000)])
def test_data_parallel_ranks_are_numbered_without_gaps(numbers: tuple[int, int]) -> None:
    """Gaps, and numbers out of range, are refused."""
    layout = dense_layout(MODEL, 2, 2)
    ranks = tuple(dataclasses.replace(r, data_parallel_rank=n) for r, n in zip(layout.ranks, numbers, strict=True))
    assert "data_parallel_rank" in field_of(dataclasses.replace(layout, ranks=ranks))


def test_a_placement_beyond_all_memory_is_refused() -> None:
    """Offsets stay so small that no sum of them overflows."""
    layout = dense_layout(MODEL, 2)
    placement = layout.ranks[0].placements[0]
    huge = dataclasses.replace(placement, strides=placement.strides._replace(block=1 << 50))
    field = field_of(dataclasses.replace(layout, ranks=(RankLayout(0, (huge,)),)))
    assert "ranks[0].placements[full]" == field


def test_dense_ranks_are_numbered_by_shard_stage_and_part() -> None:
    """More ranks than heads hold copies side by side; stages may be uneven; each data-parallel rank has all."""
    layout = dense_layout(MODEL, 2, 4, pipeline=(3, 1), data_parallel=2)
    held = [(r.data_parallel_rank, r.placements[0].layers, r.placements[0].heads) for r in layout.ranks]
    expected = [(d, layers, (h,)) for d in (0, 1) for layers in ((0, 1, 2), (3,)) for h in (0, 0, 1, 1)]
    assert expected == held
    assert (2, 8) == (layout.data_parallel_size, len(layout.ranks_of(1)))
    assert layout == layout_from_wire(layout_to_wire(layout))


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"tensor_parallel": 3}, "tensor_parallel"),
        ({"tensor_parallel": 0}, "tensor_parallel"),
        ({"pipeline": (2, 3)}, "pipeline"),
        ({"pipeline": (4, 0)}, "pipeline"),
        ({"data_parallel": 0}, "data_parallel"),
        ({"data_parallel": 5000}, "data_parallel"),
    ],
)
def test_what_does_not_divide_is_refused(how: dict[str, Any], field: str) -> None:
    """Heads, layers and ranks must come out even."""
    with pytest.raises(LayoutInvalid) as caught:
        dense_layout(MODEL, 2, **how)
    assert field == caught.value.metadata["field"]


@given(st.data())
def test_shared_bytes_are_found(data: st.DataObject) -> None:
    """Two arrays said to share no byte share none, and those that step alike are told apart exactly."""
    steps = [data.draw(st.integers(1, 6))]
    for _ in range(data.draw(st.integers(0, 2))):
        steps.append(steps[-1] * data.draw(st.integers(1, 4)) + data.draw(st.integers(0, 3)))
    arrays = []
    for _ in range(2):
        size = data.draw(st.integers(1, steps[0]))
        extent, axes = size, []
        for stride in steps:
            fits = stride >= extent
            count = data.draw(st.integers(1, 3)) if fits else 1
            axes.append((count, stride))
            extent += (count - 1) * stride
        arrays.append((axes, size))
    distance = data.draw(st.integers(0, 40))
    used = [
        {
            base + sum(i * s for i, (_, s) in zip(index, axes, strict=True)) + byte
            for index in product(*(range(count) for count, _ in axes))
            for byte in range(size)
        }
        for base, (axes, size) in zip((0, distance), arrays, strict=True)
    ]
    meets = share_bytes(arrays[0][0], arrays[1][0], distance, arrays[0][1], arrays[1][1])
    assert meets or not used[0] & used[1]
    if all(one[0] > 1 and other[0] > 1 for one, other in zip(arrays[0][0], arrays[1][0], strict=True)):
        assert meets == bool(used[0] & used[1])


NUMBERS = st.integers(-2, 40) | st.integers(-(1 << 70), 1 << 70)


@given(
    st.builds(Strides, *[NUMBERS] * 6), NUMBERS, NUMBERS, st.lists(NUMBERS, max_size=3), st.lists(NUMBERS, max_size=3)
)
def test_any_placement_is_taken_or_refused(
    strides: Strides, base: int, blocks: int, layers: list[int], heads: list[int]
) -> None:
    """Whatever numbers a peer sends, they are valid or refused with a field's name."""
    layout = dense_layout(MODEL, 2)
    placement = GroupPlacement("full", tuple(layers), tuple(heads), blocks, base, strides)
    field: str | None = None
    try:
        validate_layout(dataclasses.replace(layout, ranks=(RankLayout(0, (placement,)),)), {0: 1 << 20})
    except KvferryError as error:
        field = error.metadata["field"]
    assert field != ""
