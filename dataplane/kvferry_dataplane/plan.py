"""Turns two layouts and two block lists into copies of byte runs. Pure: no I/O, no clock.

Both sides are strided arrays indexed ``[block, layer, kv, head, token, dim]``. Axes that are contiguous on both sides
fold into one run; the others are enumerated; neighbours that touch on both sides are joined in the end.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvferry.core.errors import BlockError, InvalidArgument, LayoutMismatch, MessageTooLarge
from kvferry.core.layouts import GroupPlacement, LayerGroup, RankLayout, block_bytes, shape_of
from kvferry.core.reasons import Reason
from kvferry_dataplane.blocks import BlockLists

Offsets = npt.NDArray[np.int64]

PIECES_MAX = 1 << 20
"""Bound on the pieces of one plan, before neighbours are joined."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a copy: the rank's layout, its layer groups and the size of its pool."""

    groups: tuple[LayerGroup, ...]
    rank: RankLayout
    pool_bytes: int


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """Runs of bytes to copy; three arrays of one length, offsets in the two pools, ascending by source."""

    source_offsets: Offsets
    destination_offsets: Offsets
    lengths: Offsets

    @property
    def piece_count(self) -> int:
        """Runs."""
        return int(self.lengths.size)

    @property
    def total_bytes(self) -> int:
        """Bytes of all runs."""
        return int(self.lengths.sum())


@dataclass(frozen=True, slots=True)
class PlanSize:
    """What a plan will come to: ``total_bytes`` exactly, ``pieces_max`` before neighbours are joined."""

    total_bytes: int
    pieces_max: int


@dataclass(frozen=True, slots=True)
class _GroupCopy:
    """How one block of a group is copied: runs of ``run_bytes`` at these offsets from the block's first byte."""

    run_bytes: int
    source_offsets: Offsets
    destination_offsets: Offsets


def check_plan(source: Side, destination: Side, source_blocks: BlockLists, destination_blocks: BlockLists) -> PlanSize:
    """Refuse what :func:`make_plan` cannot do, without making the plan. The block lists are checked already.

    Raises:
        LayoutMismatch: the ranks do not hold the same part of the same model.
        InvalidArgument: one side lists a group that the other does not.
        BlockError: reason BLOCK_COUNT_MISMATCH.
        MessageTooLarge: more than ``PIECES_MAX`` pieces.
    """
    if set(source_blocks) != set(destination_blocks):
        raise InvalidArgument.of_field(
            "destination_blocks.group", sorted(destination_blocks), f"the source lists {sorted(source_blocks)}"
        )
    total_bytes = pieces = 0
    for name, ids in source_blocks.items():
        if ids.size != destination_blocks[name].size:
            raise BlockError.of_field(
                f"destination_blocks[{name}]",
                f"{destination_blocks[name].size} blocks",
                f"the source lists {ids.size}",
                reason=Reason.BLOCK_COUNT_MISMATCH,
            )
        group, held, wanted = _pair(name, source, destination)
        run, _ = _fold(group, held, wanted)
        bytes_each = block_bytes(group, held)
        total_bytes += int(ids.size) * bytes_each
        pieces += int(ids.size) * (bytes_each // run)
    if pieces > PIECES_MAX:
        raise MessageTooLarge.of_field("sources.blocks", f"{pieces} pieces", f"at most {PIECES_MAX} are read at once")
    return PlanSize(total_bytes, pieces)


def make_plan(source: Side, destination: Side, source_blocks: BlockLists, destination_blocks: BlockLists) -> CopyPlan:
    """The copies that bring ``source_blocks`` to ``destination_blocks``, block by block in the order they are listed.

    Raises:
        LayoutMismatch: the ranks do not hold the same part of the same model.
        BlockError: a run would leave one of the pools.
    """
    sources, destinations, lengths = [], [], []
    for name, ids in source_blocks.items():
        group, held, wanted = _pair(name, source, destination)
        copy = _group_copy(group, held, wanted)
        starts = held.base_bytes + ids * held.strides.block
        ends = wanted.base_bytes + destination_blocks[name] * wanted.strides.block
        sources.append((copy.source_offsets[:, None] + starts[None, :]).ravel())
        destinations.append((copy.destination_offsets[:, None] + ends[None, :]).ravel())
        lengths.append(np.full(sources[-1].size, copy.run_bytes, dtype=np.int64))
    plan = _join(CopyPlan(np.concatenate(sources), np.concatenate(destinations), np.concatenate(lengths)))
    _require_inside("sources.blocks", plan.source_offsets, plan.lengths, source.pool_bytes)
    _require_inside("destination_blocks", plan.destination_offsets, plan.lengths, destination.pool_bytes)
    return plan


def _pair(name: str, source: Side, destination: Side) -> tuple[LayerGroup, GroupPlacement, GroupPlacement]:
    """The group on both sides, refused unless both ranks hold the same part of it."""
    groups = [next((g for g in side.groups if g.name == name), None) for side in (source, destination)]
    placements = [side.rank.placement(name) for side in (source, destination)]
    if groups[0] is None or groups[1] is None or placements[0] is None or placements[1] is None:
        raise _mismatch(name, "placements", placements[0] is not None, placements[1] is not None)
    if groups[0] != groups[1]:
        raise _mismatch(name, "group", groups[0], groups[1])
    held, wanted = placements[0], placements[1]
    if held.layers != wanted.layers:
        raise _mismatch(name, "layers", held.layers, wanted.layers)
    if held.heads != wanted.heads:
        raise _mismatch(name, "heads", held.heads, wanted.heads)
    return groups[0], held, wanted


def _mismatch(name: str, field: str, source: object, destination: object) -> LayoutMismatch:
    where = f"groups[{name}].{field}"
    values = {"field": where, "source": str(source), "destination": str(destination)}
    return LayoutMismatch(f"{where}: source has {source}, destination {destination}", metadata=values)


def _fold(group: LayerGroup, held: GroupPlacement, wanted: GroupPlacement) -> tuple[int, list[tuple[int, int, int]]]:
    """The bytes of one run, and the axes that remain outside it as (count, source stride, destination stride)."""
    counts = shape_of(group, held)[1:]
    inside_block = zip(counts, held.strides[1:], wanted.strides[1:], strict=True)
    axes = sorted((axis for axis in inside_block if axis[0] > 1), key=lambda axis: axis[1])
    run = group.element_type.size_bytes
    while axes and axes[0][1] == axes[0][2] == run:
        run *= axes.pop(0)[0]
    return run, axes


def _group_copy(group: LayerGroup, held: GroupPlacement, wanted: GroupPlacement) -> _GroupCopy:
    run, axes = _fold(group, held, wanted)
    source = np.zeros(1, dtype=np.int64)
    destination = np.zeros(1, dtype=np.int64)
    for count, source_stride, destination_stride in axes:
        steps = np.arange(count, dtype=np.int64)[:, None]
        source = (steps * source_stride + source[None, :]).ravel()
        destination = (steps * destination_stride + destination[None, :]).ravel()
    return _GroupCopy(run, source, destination)


def _join(plan: CopyPlan) -> CopyPlan:
    """Sort by source and join neighbours that touch on both sides."""
    if plan.piece_count > 1 and not bool((np.diff(plan.source_offsets) >= 0).all()):
        order = np.argsort(plan.source_offsets, kind="stable")
        plan = CopyPlan(plan.source_offsets[order], plan.destination_offsets[order], plan.lengths[order])
    ends_here = plan.source_offsets[:-1] + plan.lengths[:-1]
    ends_there = plan.destination_offsets[:-1] + plan.lengths[:-1]
    touching = (ends_here == plan.source_offsets[1:]) & (ends_there == plan.destination_offsets[1:])
    if not touching.any():
        return plan
    firsts = np.flatnonzero(np.concatenate(([True], ~touching)))
    return CopyPlan(
        plan.source_offsets[firsts], plan.destination_offsets[firsts], np.add.reduceat(plan.lengths, firsts)
    )


def _require_inside(field: str, offsets: Offsets, lengths: Offsets, pool_bytes: int) -> None:
    if int(offsets.min()) < 0 or int((offsets + lengths).max()) > pool_bytes:
        raise BlockError.of_field(
            field,
            f"bytes {int(offsets.min())} to {int((offsets + lengths).max())}",
            f"the pool has {pool_bytes} bytes",
            reason=Reason.BLOCK_OUT_OF_RANGE,
        )
