"""A pool of paged KV as bytes by block, for filling and comparing what a request holds."""

from collections.abc import Sequence

import torch

from kvferry.bench.memory import finish
from kvferry.bench.workload import GROUP, POISON
from kvferry.core.layouts import WorkerLayout


class PagedBytes:
    """The only rank's pool in a layout that keeps the blocks of each layer, K and V apart, in one region (NHD)."""

    def __init__(self, pool: torch.Tensor, layout: WorkerLayout) -> None:
        group, placement = layout.group(GROUP), layout.ranks[0].placements[0]
        self._token_bytes = placement.strides.token
        regions = len(placement.layers) * group.kv_factor
        block = placement.strides.block
        used = regions * placement.block_count * block
        # [region, block, byte]
        self._blocks = pool[:used].view(regions, placement.block_count, block)

    def poison(self, blocks: Sequence[int]) -> None:
        """Overwrite blocks, so that a read that does nothing shows."""
        self._blocks[:, self._index(blocks)] = POISON
        finish(self._blocks)

    def equals(self, blocks: Sequence[int], other: "PagedBytes", other_blocks: Sequence[int], last_tokens: int) -> bool:
        """Whether blocks hold the bytes of as many of ``other``; of the last one only the first ``last_tokens``."""
        ours = self._blocks[:, self._index(blocks)]
        theirs = other._blocks[:, other._index(other_blocks)]
        end = last_tokens * self._token_bytes
        return torch.equal(ours[:, :-1], theirs[:, :-1]) and torch.equal(ours[:, -1, :end], theirs[:, -1, :end])

    def _index(self, blocks: Sequence[int]) -> torch.Tensor:
        return torch.tensor(blocks, dtype=torch.int64, device=self._blocks.device)
