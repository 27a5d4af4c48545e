"""Counters over the blocks of a pool. Pure."""

from collections.abc import Mapping

import numpy as np

from kvferry.core.blocks import BlockIds, BlockLists, block_error
from kvferry.core.reasons import Reason


class BlockCounters:
    """Counts, for each block of each group, how many holders it has: leases that pin it, or reads that write to it.

    Blocks of groups that it was not made for, since this rank holds no part of them, are passed over.
    """

    def __init__(self, block_counts: Mapping[str, int]) -> None:
        self._holders = 0
        self._counts = {group: np.zeros(count, dtype=np.int32) for group, count in block_counts.items()}

    def hold(self, blocks: BlockLists) -> None:
        """Add a holder to each block."""
        self._holders += 1
        for group, ids in self._held(blocks):
            self._counts[group][ids] += 1

    def drop(self, blocks: BlockLists) -> None:
        """Take a holder from each block, which was added before."""
        self._holders -= 1
        for group, ids in self._held(blocks):
            self._counts[group][ids] -= 1

    def held_count(self) -> int:
        """Blocks that have at least one holder."""
        return int(sum(np.count_nonzero(counts) for counts in self._counts.values()))

    def is_held(self, blocks: BlockLists) -> bool:
        """Whether any of the blocks has a holder."""
        return any(self._counts[group][ids].any() for group, ids in self._held(blocks))

    def refuse_held(self, blocks: BlockLists, field: str, why: str) -> None:
        """Refuse blocks that have a holder.

        Raises:
            BlockError: reason BLOCK_BUSY; names the first such block.
        """
        if not self._holders:
            return
        for group, ids in self._held(blocks):
            held = self._counts[group][ids]
            if held.any():
                raise block_error(group, int(np.flatnonzero(held)[0]), ids, field, why, Reason.BLOCK_BUSY)

    def _held(self, blocks: BlockLists) -> list[tuple[str, BlockIds]]:
        return [(group, ids) for group, ids in blocks.items() if group in self._counts]
