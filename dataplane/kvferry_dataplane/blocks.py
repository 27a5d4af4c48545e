"""Block lists by layer group: their checks, and counters over them. Pure."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kvferry.core.errors import BlockError, InvalidArgument
from kvferry.core.reasons import Reason

BlockIds = npt.NDArray[np.int64]
BlockLists = Mapping[str, BlockIds]
"""Block ids by layer group, in order of tokens."""

BLOCKS_LISTED_MAX = 1 << 20
"""Bound on the ids of one command, all groups together."""


def checked_blocks(
    lists: Iterable[tuple[str, Sequence[int]]], block_counts: Mapping[str, int], field: str
) -> BlockLists:
    """Check block lists as they came over the wire.

    Raises:
        InvalidArgument: no blocks at all, an unknown group, or a group that is listed twice.
        BlockError: an id out of range or listed twice; the message names group, position and id.
    """
    checked: dict[str, BlockIds] = {}
    for group, ids in lists:
        if group not in block_counts:
            raise InvalidArgument.of_field(f"{field}.group", group, "this rank holds no such layer group")
        if group in checked:
            raise InvalidArgument.of_field(f"{field}.group", group, "listed twice")
        checked[group] = _checked_ids(
            group, np.fromiter(ids, dtype=np.int64, count=len(ids)), block_counts[group], field
        )
    total = sum(ids.size for ids in checked.values())
    if not 0 < total <= BLOCKS_LISTED_MAX:
        raise InvalidArgument.of_field(field, f"{total} blocks", f"must list 1 to {BLOCKS_LISTED_MAX} blocks")
    return checked


def _checked_ids(group: str, ids: BlockIds, block_count: int, field: str) -> BlockIds:
    outside = np.flatnonzero((ids < 0) | (ids >= block_count))
    if outside.size:
        raise _block_error(
            group,
            int(outside[0]),
            ids,
            field,
            f"the group has blocks 0 to {block_count - 1}",
            Reason.BLOCK_OUT_OF_RANGE,
        )
    _, first = np.unique(ids, return_index=True)
    if first.size != ids.size:
        repeated = np.setdiff1d(np.arange(ids.size), first)
        raise _block_error(group, int(repeated[0]), ids, field, "listed twice", Reason.BLOCK_DUPLICATE)
    return ids


def _block_error(group: str, position: int, ids: BlockIds, field: str, why: str, reason: Reason) -> BlockError:
    return BlockError.of_field(f"{field}[{group}].block_ids[{position}]", int(ids[position]), why, reason=reason)


class BlockCounters:
    """Counts, for each block of each group, how many holders it has: leases that pin it, or reads that write to it."""

    def __init__(self, block_counts: Mapping[str, int]) -> None:
        self._counts = {group: np.zeros(count, dtype=np.int32) for group, count in block_counts.items()}

    def hold(self, blocks: BlockLists) -> None:
        """Add a holder to each block."""
        for group, ids in blocks.items():
            self._counts[group][ids] += 1

    def drop(self, blocks: BlockLists) -> None:
        """Take a holder from each block."""
        for group, ids in blocks.items():
            self._counts[group][ids] -= 1

    def held_count(self) -> int:
        """Blocks that have at least one holder."""
        return int(sum(np.count_nonzero(counts) for counts in self._counts.values()))

    def is_held(self, blocks: BlockLists) -> bool:
        """Whether any of the blocks has a holder."""
        return any(self._counts[group][ids].any() for group, ids in blocks.items())

    def refuse_held(self, blocks: BlockLists, field: str, why: str) -> None:
        """Refuse blocks that have a holder.

        Raises:
            BlockError: reason BLOCK_BUSY; names the first such block.
        """
        for group, ids in blocks.items():
            held = np.flatnonzero(self._counts[group][ids])
            if held.size:
                raise _block_error(group, int(held[0]), ids, field, why, Reason.BLOCK_BUSY)
