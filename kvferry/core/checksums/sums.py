"""The sums that a source rank keeps of what it has published, and what a reader gets of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvferry.core.blocks import BlockIds
from kvferry.core.checksums.formula import Words
from kvferry.core.checksums.regions import DigestRegion, TokenRanges, digest_region, listed_tokens, total_tokens
from kvferry.core.checksums.shares import sample
from kvferry.core.layouts import GroupPlacement, LayerGroup
from kvferry.core.planning.copies import Offsets


@dataclass(frozen=True, slots=True)
class BlocksToSum:
    """Blocks of one layer group that are to be summed, each by itself."""

    group: LayerGroup
    placement: GroupPlacement
    listed: BlockIds
    total: int
    ranges: TokenRanges

    @classmethod
    def of(
        cls,
        group: LayerGroup,
        placement: GroupPlacement,
        listed: BlockIds,
        token_count: int,
        *,
        every: int,
        seed: int,
    ) -> "BlocksToSum":
        """One in ``every`` of the blocks of a request with ``token_count`` tokens, 0 for whole blocks.

        Raises:
            BlockError: the list does not hold the tokens.
        """
        firsts, counts = listed_tokens("blocks", group, int(listed.size), token_count)
        taken = sample(int(listed.size), every, seed)
        ranges = TokenRanges(firsts[taken], counts[taken], np.arange(taken.size, dtype=np.int64), int(taken.size))
        total = total_tokens(group, int(listed.size) * group.tokens_per_block, token_count)
        return cls(group, placement, listed, total, ranges)

    @property
    def sums_bytes(self) -> int:
        """Memory that the sums will take."""
        return self.ranges.row_count * self.cell_count * 8

    @property
    def cell_count(self) -> int:
        """Sums of one block."""
        return len(self.placement.layers) * self.group.kv_factor * len(self.placement.heads)

    def region(self) -> DigestRegion:
        """What is to be summed."""
        return digest_region(self.group, self.placement, self.listed, self.total, self.ranges)


@dataclass(frozen=True, slots=True)
class BlockSums:
    """Sums of the blocks of one layer group: ``sums[row, cell]``, a row for each summed block."""

    blocks: BlocksToSum
    sums: Words

    def answer(
        self, first_token: int, every: int, seed: int, rows_max: int, digest: Callable[[DigestRegion], Words]
    ) -> "GroupSums":
        """What a reader of the tokens from ``first_token`` on compares with: of one in ``every`` of the summed blocks.

        Where the first token lies inside a block, the sum of the tokens before it is taken off: those are summed now,
        by ``digest``.
        """
        whole = self.blocks.ranges
        stops = whole.firsts + whole.counts
        start = 0 if self.blocks.group.per_sequence else first_token
        wanted = np.flatnonzero(stops > start)
        wanted = wanted[sample(int(wanted.size), every, seed)]
        firsts, sums = whole.firsts[wanted], self.sums[wanted]
        if wanted.size and firsts[0] < start:
            # Fancy indexing made copies.
            before = TokenRanges(firsts[:1].copy(), start - firsts[:1], np.zeros(1, dtype=np.int64), 1)
            blocks = self.blocks
            sums[0] -= digest(digest_region(blocks.group, blocks.placement, blocks.listed, blocks.total, before))[0]
            firsts[0] = start
        rows = np.arange(wanted.size, dtype=np.int64)
        if wanted.size > rows_max:
            rows = rows * rows_max // wanted.size
            sums = np.add.reduceat(sums, np.searchsorted(rows, np.arange(rows_max)), axis=0, dtype=np.uint64)
        return GroupSums(_joined(firsts, stops[wanted], rows, int(sums.shape[0])), sums)


@dataclass(frozen=True, slots=True)
class GroupSums:
    """What a source rank says of a layer group: ``sums[row, cell]``, cells in the order of its placement."""

    ranges: TokenRanges
    sums: Words


def _joined(firsts: Offsets, stops: Offsets, rows: Offsets, row_count: int) -> TokenRanges:
    """Neighbours of one row as one range."""
    if not firsts.size:
        return TokenRanges(firsts, firsts, rows, row_count)
    begins = np.concatenate(([True], (firsts[1:] != stops[:-1]) | (rows[1:] != rows[:-1])))
    first = np.flatnonzero(begins)
    last = np.concatenate((first[1:], [firsts.size])) - 1
    return TokenRanges(firsts[first], stops[last] - firsts[first], rows[first], row_count)
