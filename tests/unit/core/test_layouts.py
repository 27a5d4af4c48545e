"""Layouts that contradict themselves are refused with the field's name."""

import dataclasses
from typing import Any

import pytest

from kvferry.core.dense import CROSS_LAYER, HND, NHD, DenseModel, dense_layout
from kvferry.core.errors import LayoutInvalid
from kvferry.core.layouts import (
    ElementType,
    GroupPlacement,
    WorkerLayout,
    block_bytes,
    end_bytes,
    shape_of,
    validate_layout,
)
from kvferry.rpc.layouts import layout_from_wire, layout_to_wire

MODEL = DenseModel(
    model="m", layer_count=3, kv_heads=4, head_dim=8, tokens_per_block=16, element_type=ElementType.BFLOAT16
)


def placed(layout: WorkerLayout, **changes: Any) -> WorkerLayout:
    """``layout`` with the first rank's placement changed."""
    rank = layout.ranks[0]
    placement = dataclasses.replace(rank.placements[0], **changes)
    return dataclasses.replace(layout, ranks=(dataclasses.replace(rank, placements=(placement,)), *layout.ranks[1:]))


def first(layout: WorkerLayout) -> GroupPlacement:
    """The first rank's placement."""
    return layout.ranks[0].placements[0]


@pytest.mark.parametrize("order", [NHD, HND, CROSS_LAYER])
def test_a_dense_layout_fills_its_pool_without_gaps(order: tuple[str, ...]) -> None:
    """The end of a dense placement is the number of its elements times their size."""
    layout = dense_layout(MODEL, block_count=5, tensor_parallel=2, order=order)
    group, placement = layout.groups[0], first(layout)
    elements = 1
    for count in shape_of(group, placement):
        elements *= count
    assert elements * 2 == end_bytes(group, placement)
    assert 3 * 2 * 2 * 16 * 8 * 2 == block_bytes(group, placement)


def test_a_layout_survives_the_wire() -> None:
    """Wire form and value type hold the same."""
    layout = dense_layout(MODEL, block_count=5, tensor_parallel=4, order=HND)
    assert layout == layout_from_wire(layout_to_wire(layout))


def test_heads_that_do_not_divide_are_refused() -> None:
    """Three ranks cannot share four heads evenly."""
    with pytest.raises(LayoutInvalid) as caught:
        dense_layout(MODEL, block_count=5, tensor_parallel=3)
    assert "tensor_parallel" == caught.value.metadata["field"]
    assert "3" == caught.value.metadata["value"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"layers": (0, 0, 1)}, "ranks[0].placements[full].layers"),
        ({"layers": (0, 1, 7)}, "ranks[0].placements[full].layers"),
        ({"layers": ()}, "ranks[0].placements[full].layers"),
        ({"heads": (0, 4)}, "ranks[0].placements[full].heads"),
        ({"heads": (1, 0)}, "ranks[0].placements[full].heads"),
        ({"block_count": 0}, "ranks[0].placements[full].block_count"),
        ({"block_count": 1 << 40}, "ranks[0].placements[full].block_count"),
        ({"base_bytes": -1}, "ranks[0].placements[full].base_bytes"),
        ({"group": "other"}, "ranks[0].placements[other].group"),
    ],
)
def test_a_wrong_placement_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    """Each field of a placement has its own refusal."""
    with pytest.raises(LayoutInvalid) as caught:
        validate_layout(placed(dense_layout(MODEL, block_count=5, tensor_parallel=2), **changes))
    assert field == caught.value.metadata["field"]


@pytest.mark.parametrize("axis", ["block", "layer", "kv", "head", "token", "dim"])
def test_strides_that_overlap_are_refused(axis: str) -> None:
    """An axis whose step is one byte too small would let elements share bytes."""
    layout = dense_layout(MODEL, block_count=5, tensor_parallel=2)
    strides = first(layout).strides
    with pytest.raises(LayoutInvalid) as caught:
        validate_layout(placed(layout, strides=strides._replace(**{axis: getattr(strides, axis) - 1})))
    assert "overlap" in caught.value.message or "must be 1" in caught.value.message


def test_a_layout_that_leaves_its_pool_is_refused() -> None:
    """One byte less than the layout needs is refused, exactly enough is taken."""
    layout = dense_layout(MODEL, block_count=5, tensor_parallel=2)
    end = end_bytes(layout.groups[0], first(layout))
    validate_layout(layout, {0: end, 1: end})
    with pytest.raises(LayoutInvalid):
        validate_layout(layout, {0: end, 1: end - 1})


def test_groups_that_share_bytes_are_refused() -> None:
    """Two groups in one pool must lie apart."""
    layout = dense_layout(MODEL, block_count=5)
    twin = dataclasses.replace(layout.groups[0], name="twin")
    end = end_bytes(layout.groups[0], first(layout))

    def with_twin(base_bytes: int) -> WorkerLayout:
        placement = dataclasses.replace(first(layout), group="twin", base_bytes=base_bytes)
        rank = dataclasses.replace(layout.ranks[0], placements=(first(layout), placement))
        return dataclasses.replace(layout, groups=(layout.groups[0], twin), ranks=(rank,))

    validate_layout(with_twin(end))
    with pytest.raises(LayoutInvalid) as caught:
        validate_layout(with_twin(end - 2))
    assert "ranks[0].placements[twin].base_bytes" == caught.value.metadata["field"]
