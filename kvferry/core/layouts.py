"""Layouts: how a worker holds KV in its pools, as data.

A rank's part of a layer group is a strided array indexed ``[block, layer, kv, head, token, dim]`` at
``base_bytes + sum(index * stride)``. Memory orders (NHD or HND, K and V apart or together, one region per layer or
blocks across layers) are nothing but strides.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from kvferry.core.errors import LayoutInvalid
from kvferry.core.overlap import first_too_small, share_bytes

GROUPS_MAX = 64
RANKS_MAX = 1024
LAYERS_MAX = 4096
HEADS_MAX = 4096
CELLS_MAX = 1 << 20
"""Bound on the layers times the heads of a group."""
BLOCKS_MAX = 1 << 26
EXTENT_MAX = 1 << 30
"""Bound on head_dim and tokens_per_block."""
NAME_CHARS_MAX = 256
BYTES_MAX = 1 << 50
"""Bound on every stride and offset, and on the end of every placement, checked in Python's own integers."""
WINDOW_TOKENS_MAX = (1 << 32) - 1


class ElementType(StrEnum):
    """Element type of a layer group; ``size_bytes`` is its size."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT8_E4M3 = "float8_e4m3"
    FLOAT8_E5M2 = "float8_e5m2"
    INT8 = "int8"

    @property
    def size_bytes(self) -> int:
        """Bytes of one element."""
        return _SIZES[self]


_SIZES = {
    ElementType.FLOAT16: 2,
    ElementType.BFLOAT16: 2,
    ElementType.FLOAT32: 4,
    ElementType.FLOAT8_E4M3: 1,
    ElementType.FLOAT8_E5M2: 1,
    ElementType.INT8: 1,
}


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers of the model whose KV has one shape; it speaks of the whole model, not of one rank."""

    name: str
    element_type: ElementType
    kv_factor: int
    """2 for K and V, 1 for MLA."""
    total_kv_heads: int
    head_dim: int
    tokens_per_block: int
    layers: tuple[int, ...]
    """The model's layer indices, ascending."""
    window_tokens: int = 0
    """Tokens a sliding window keeps; 0 keeps all."""
    per_sequence: bool = False
    """State without tokens (Mamba, linear attention): one block holds all of a sequence, as if it were one token."""
    scales_of: str = ""
    """The 8-bit group whose scales these are; the two move together."""


class Strides(NamedTuple):
    """Byte distances between neighbours along each axis."""

    block: int
    layer: int
    kv: int
    head: int
    token: int
    dim: int


@dataclass(frozen=True, slots=True)
class GroupPlacement:
    """Where a rank holds its part of a layer group."""

    group: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    block_count: int
    base_bytes: int
    strides: Strides


@dataclass(frozen=True, slots=True)
class RankLayout:
    """What one rank holds: one placement per layer group."""

    rank: int
    placements: tuple[GroupPlacement, ...]
    data_parallel_rank: int = 0
    """Ranks of one data-parallel rank hold a request together; another data-parallel rank holds other requests."""

    def placement(self, group: str) -> GroupPlacement | None:
        """This rank's part of ``group``, or None if it holds none."""
        return next((p for p in self.placements if p.group == group), None)


@dataclass(frozen=True, slots=True)
class WorkerLayout:
    """What a worker holds: all its ranks together."""

    model: str
    groups: tuple[LayerGroup, ...]
    ranks: tuple[RankLayout, ...]

    def group(self, name: str) -> LayerGroup:
        """The layer group of that name.

        Raises:
            KeyError: there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def data_parallel_size(self) -> int:
        """Data-parallel ranks: 1 where every rank takes part in every request."""
        return 1 + max(rank.data_parallel_rank for rank in self.ranks)

    def ranks_of(self, data_parallel_rank: int) -> tuple[RankLayout, ...]:
        """The ranks that hold a request of that data-parallel rank."""
        return tuple(rank for rank in self.ranks if rank.data_parallel_rank == data_parallel_rank)

    def block_count(self, group: str, data_parallel_rank: int | None = None) -> int:
        """Blocks of ``group`` that every rank holding it has room for, of all data-parallel ranks or of one."""
        ranks = self.ranks if data_parallel_rank is None else self.ranks_of(data_parallel_rank)
        return min((p.block_count for r in ranks if (p := r.placement(group)) is not None), default=0)


def shape_of(group: LayerGroup, placement: GroupPlacement) -> tuple[int, int, int, int, int, int]:
    """Counts along ``[block, layer, kv, head, token, dim]``."""
    return (
        placement.block_count,
        len(placement.layers),
        group.kv_factor,
        len(placement.heads),
        group.tokens_per_block,
        group.head_dim,
    )


def block_bytes(group: LayerGroup, placement: GroupPlacement) -> int:
    """Bytes of KV in one block of a rank's placement."""
    elements = group.kv_factor * group.tokens_per_block * group.head_dim * len(placement.layers) * len(placement.heads)
    return elements * group.element_type.size_bytes


def end_bytes(group: LayerGroup, placement: GroupPlacement) -> int:
    """Offset in the pool just past the placement's last element."""
    reach = sum((count - 1) * s for count, s in zip(shape_of(group, placement), placement.strides, strict=True))
    return placement.base_bytes + reach + group.element_type.size_bytes


def validate_layout(layout: WorkerLayout, pool_bytes: dict[int, int] | None = None) -> None:
    """Refuse a layout that contradicts itself or, with ``pool_bytes`` by rank, that leaves a pool.

    Raises:
        LayoutInvalid: names the field and its value.
    """
    _name("model", layout.model)
    _count("groups", len(layout.groups), GROUPS_MAX)
    _count("ranks", len(layout.ranks), RANKS_MAX)
    _unique("groups", [g.name for g in layout.groups])
    for group in layout.groups:
        _validate_group(group)
    for group in layout.groups:
        _validate_scales(layout, group)
    if [r.rank for r in layout.ranks] != list(range(len(layout.ranks))):
        raise LayoutInvalid.of_field("ranks", [r.rank for r in layout.ranks], "ranks must be numbered 0, 1, … in order")
    _validate_data_parallel(layout)
    for rank in layout.ranks:
        limit = None if pool_bytes is None else pool_bytes.get(rank.rank)
        _validate_rank(layout, rank, limit)
    held = {placement.group for rank in layout.ranks for placement in rank.placements}
    for group in layout.groups:
        if group.name not in held:
            raise LayoutInvalid.of_field("groups", group.name, "no rank holds this layer group")


def _validate_group(group: LayerGroup) -> None:
    where = f"groups[{group.name}]"
    _name(f"{where}.name", group.name)
    if group.kv_factor not in (1, 2):
        raise LayoutInvalid.of_field(f"{where}.kv_factor", group.kv_factor, "must be 2 (K and V) or 1 (MLA)")
    _count(f"{where}.total_kv_heads", group.total_kv_heads, HEADS_MAX)
    _count(f"{where}.head_dim", group.head_dim, EXTENT_MAX)
    _count(f"{where}.tokens_per_block", group.tokens_per_block, EXTENT_MAX)
    _count(f"{where}.layers", len(group.layers), LAYERS_MAX)
    _ascending(f"{where}.layers", group.layers, LAYERS_MAX)
    cells = len(group.layers) * group.total_kv_heads
    if cells > CELLS_MAX:
        raise LayoutInvalid.of_field(where, f"{cells} layers times heads", f"at most {CELLS_MAX}")
    if not 0 <= group.window_tokens <= WINDOW_TOKENS_MAX:
        raise LayoutInvalid.of_field(f"{where}.window_tokens", group.window_tokens, f"must be 0 to {WINDOW_TOKENS_MAX}")
    if group.per_sequence:
        for name, needed in (("tokens_per_block", 1), ("window_tokens", 0)):
            if getattr(group, name) != needed:
                why = f"must be {needed} for state without tokens"
                raise LayoutInvalid.of_field(f"{where}.{name}", getattr(group, name), why)


def _validate_scales(layout: WorkerLayout, group: LayerGroup) -> None:
    if not group.scales_of:
        return
    where = f"groups[{group.name}]"
    scaled = next((g for g in layout.groups if g.name == group.scales_of), None)
    if scaled is None or scaled is group or scaled.scales_of:
        raise LayoutInvalid.of_field(f"{where}.scales_of", group.scales_of, "must be another layer group, of elements")
    if scaled.element_type.size_bytes != 1:
        why = f"its elements are {scaled.element_type}, not of 8 bits"
        raise LayoutInvalid.of_field(f"{where}.scales_of", group.scales_of, why)
    for name in ("layers", "window_tokens", "per_sequence"):
        if getattr(group, name) != getattr(scaled, name):
            why = f"the group that it scales has {getattr(scaled, name)}"
            raise LayoutInvalid.of_field(f"{where}.{name}", getattr(group, name), why)


def _validate_data_parallel(layout: WorkerLayout) -> None:
    used = {rank.data_parallel_rank for rank in layout.ranks}
    for rank in layout.ranks:
        field = f"ranks[{rank.rank}].data_parallel_rank"
        _range(field, rank.data_parallel_rank, 0, RANKS_MAX - 1)
    if used != set(range(len(used))):
        raise LayoutInvalid.of_field("ranks.data_parallel_rank", sorted(used), "must be numbered from 0 without gaps")


def _validate_rank(layout: WorkerLayout, rank: RankLayout, pool_bytes: int | None) -> None:
    where = f"ranks[{rank.rank}]"
    _count(f"{where}.placements", len(rank.placements), GROUPS_MAX)
    _unique(f"{where}.placements", [p.group for p in rank.placements])
    for placement in rank.placements:
        field = f"{where}.placements[{placement.group}]"
        try:
            group = layout.group(placement.group)
        except KeyError:
            raise LayoutInvalid.of_field(f"{field}.group", placement.group, "no such layer group") from None
        _validate_placement(field, group, placement)
        end = end_bytes(group, placement)
        if pool_bytes is not None and end > pool_bytes:
            raise LayoutInvalid.of_field(field, f"ends at byte {end}", f"the rank's pool has {pool_bytes} bytes")
    _refuse_shared_bytes(layout, rank)


def _validate_placement(field: str, group: LayerGroup, placement: GroupPlacement) -> None:
    _ascending(f"{field}.layers", placement.layers, LAYERS_MAX)
    _ascending(f"{field}.heads", placement.heads, group.total_kv_heads)
    _count(f"{field}.layers", len(placement.layers), LAYERS_MAX)
    _count(f"{field}.heads", len(placement.heads), HEADS_MAX)
    _count(f"{field}.block_count", placement.block_count, BLOCKS_MAX)
    if not set(placement.layers) <= set(group.layers):
        raise LayoutInvalid.of_field(f"{field}.layers", placement.layers, f"the group has layers {group.layers}")
    _range(f"{field}.base_bytes", placement.base_bytes, 0, BYTES_MAX)
    for axis, stride in placement.strides._asdict().items():
        if not 0 < stride <= BYTES_MAX:
            raise LayoutInvalid.of_field(f"{field}.strides.{axis}", stride, f"must be 1 to {BYTES_MAX} bytes")
    too_small = first_too_small(_axes(group, placement), group.element_type.size_bytes)
    if too_small is not None:
        index, inside = too_small
        name, stride = Strides._fields[index], placement.strides[index]
        why = f"smaller than the {inside} bytes inside it: elements would overlap"
        raise LayoutInvalid.of_field(f"{field}.strides.{name}", stride, why)
    end = end_bytes(group, placement)
    if end > BYTES_MAX:
        raise LayoutInvalid.of_field(field, f"ends at byte {end}", f"at most {BYTES_MAX}")


def _refuse_shared_bytes(layout: WorkerLayout, rank: RankLayout) -> None:
    """Placements of one rank may interleave, but not share bytes."""
    placed = [(layout.group(p.group), p) for p in sorted(rank.placements, key=lambda p: p.base_bytes)]
    for index, (first_group, first) in enumerate(placed):
        end = end_bytes(first_group, first)
        for second_group, second in placed[index + 1 :]:
            if second.base_bytes >= end:
                break
            axes = _axes(first_group, first), _axes(second_group, second)
            sizes = first_group.element_type.size_bytes, second_group.element_type.size_bytes
            if share_bytes(*axes, second.base_bytes - first.base_bytes, *sizes):
                field = f"ranks[{rank.rank}].placements[{second.group}].base_bytes"
                raise LayoutInvalid.of_field(field, second.base_bytes, f"inside the bytes of group {first.group!r}")


def _axes(group: LayerGroup, placement: GroupPlacement) -> list[tuple[int, int]]:
    return list(zip(shape_of(group, placement), placement.strides, strict=True))


def _range(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise LayoutInvalid.of_field(field, value, f"must be {least} to {most}")


def _count(field: str, value: int, bound: int) -> None:
    if not 1 <= value <= bound:
        raise LayoutInvalid.of_field(field, value, f"must be 1 to {bound}")


def _name(field: str, value: str) -> None:
    if not 1 <= len(value) <= NAME_CHARS_MAX:
        raise LayoutInvalid.of_field(field, value, f"must have 1 to {NAME_CHARS_MAX} characters")


def _unique(field: str, values: Iterable[str]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise LayoutInvalid.of_field(field, value, "listed twice")


def _ascending(field: str, values: tuple[int, ...], bound: int) -> None:
    if any(not 0 <= v < bound for v in values):
        raise LayoutInvalid.of_field(field, values, f"each must be 0 to {bound - 1}")
    if any(a >= b for a, b in pairwise(values)):
        raise LayoutInvalid.of_field(field, values, "must ascend, each listed once")
