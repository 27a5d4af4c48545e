"""Layouts between their wire form and their value types."""

from collections.abc import Iterable

from kvferry.core.errors import LayoutInvalid
from kvferry.core.layouts import (
    ElementType,
    GroupPlacement,
    LayerGroup,
    RankLayout,
    Strides,
    WorkerLayout,
)
from kvferry.layout.v1 import layout_pb2 as pb

_TO_WIRE = {
    ElementType.FLOAT16: pb.ELEMENT_TYPE_FLOAT16,
    ElementType.BFLOAT16: pb.ELEMENT_TYPE_BFLOAT16,
    ElementType.FLOAT32: pb.ELEMENT_TYPE_FLOAT32,
    ElementType.FLOAT8_E4M3: pb.ELEMENT_TYPE_FLOAT8_E4M3,
    ElementType.FLOAT8_E5M2: pb.ELEMENT_TYPE_FLOAT8_E5M2,
    ElementType.INT8: pb.ELEMENT_TYPE_INT8,
}
_FROM_WIRE = {wire: element for element, wire in _TO_WIRE.items()}


def layout_to_wire(layout: WorkerLayout) -> pb.WorkerLayout:
    """The wire form of a layout."""
    return pb.WorkerLayout(
        model=layout.model,
        groups=[_group_to_wire(group) for group in layout.groups],
        ranks=[
            pb.RankLayout(
                rank=rank.rank,
                placements=[_placement_to_wire(p) for p in rank.placements],
                data_parallel_rank=rank.data_parallel_rank,
            )
            for rank in layout.ranks
        ],
    )


def layout_from_wire(wire: pb.WorkerLayout) -> WorkerLayout:
    """The value type of a wire layout; not validated beyond its element types.

    Raises:
        LayoutInvalid: an element type is unknown.
    """
    return WorkerLayout(
        model=wire.model,
        groups=tuple(_group_from_wire(group) for group in wire.groups),
        ranks=tuple(
            RankLayout(
                rank=rank.rank,
                placements=tuple(_placement_from_wire(p) for p in rank.placements),
                data_parallel_rank=rank.data_parallel_rank,
            )
            for rank in wire.ranks
        ),
    )


def blocks_by_group(wire: Iterable[pb.BlockList]) -> dict[str, pb.BlockList]:
    """Block lists by group, as they came.

    Raises:
        LayoutInvalid: a group is listed twice.
    """
    blocks: dict[str, pb.BlockList] = {}
    for listed in wire:
        if listed.group in blocks:
            raise LayoutInvalid.of_field("blocks.group", listed.group, "listed twice")
        blocks[listed.group] = listed
    return blocks


def _group_to_wire(group: LayerGroup) -> pb.LayerGroup:
    return pb.LayerGroup(
        name=group.name,
        element_type=_TO_WIRE[group.element_type],
        kv_factor=group.kv_factor,
        total_kv_head_count=group.total_kv_heads,
        head_dim=group.head_dim,
        tokens_per_block=group.tokens_per_block,
        window_tokens=group.window_tokens,
        layers=group.layers,
        per_sequence=group.per_sequence,
        scales_of=group.scales_of,
    )


def _group_from_wire(wire: pb.LayerGroup) -> LayerGroup:
    if wire.element_type not in _FROM_WIRE:
        field = f"groups[{wire.name}].element_type"
        raise LayoutInvalid.of_field(field, int(wire.element_type), "unknown element type")
    return LayerGroup(
        name=wire.name,
        element_type=_FROM_WIRE[wire.element_type],
        kv_factor=wire.kv_factor,
        total_kv_heads=wire.total_kv_head_count,
        head_dim=wire.head_dim,
        tokens_per_block=wire.tokens_per_block,
        layers=tuple(wire.layers),
        window_tokens=wire.window_tokens,
        per_sequence=wire.per_sequence,
        scales_of=wire.scales_of,
    )


def _placement_to_wire(placement: GroupPlacement) -> pb.GroupPlacement:
    strides = placement.strides
    return pb.GroupPlacement(
        group=placement.group,
        layers=placement.layers,
        heads=placement.heads,
        block_count=placement.block_count,
        base_bytes=placement.base_bytes,
        strides=pb.Strides(
            block_bytes=strides.block,
            layer_bytes=strides.layer,
            kv_bytes=strides.kv,
            head_bytes=strides.head,
            token_bytes=strides.token,
            dim_bytes=strides.dim,
        ),
    )


def _placement_from_wire(wire: pb.GroupPlacement) -> GroupPlacement:
    strides = wire.strides
    return GroupPlacement(
        group=wire.group,
        layers=tuple(wire.layers),
        heads=tuple(wire.heads),
        block_count=wire.block_count,
        base_bytes=wire.base_bytes,
        strides=Strides(
            block=strides.block_bytes,
            layer=strides.layer_bytes,
            kv=strides.kv_bytes,
            head=strides.head_bytes,
            token=strides.token_bytes,
            dim=strides.dim_bytes,
        ),
    )
