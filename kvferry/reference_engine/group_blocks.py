"""Block ids of a worker by layer group: every group has blocks of its own."""

from collections.abc import Iterable, Mapping, Sequence

from kvferry.reference_engine.block_allocator import BlockAllocator
from kvferry.reference_engine.paged_kv import blocks_needed


class GroupBlocks:
    """Hands out what a sequence needs in every layer group. Not thread-safe: one event loop or thread owns it.

    Neighbouring groups count from opposite ends, so that a list taken for another group's does not go unnoticed.
    """

    def __init__(self, groups: Iterable[str], num_blocks: int, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._allocators = {
            group: BlockAllocator(num_blocks, highest_first=index % 2 == 1) for index, group in enumerate(groups)
        }

    @property
    def allocated_count(self) -> int:
        """Blocks in use, all groups together."""
        return sum(allocator.allocated_count for allocator in self._allocators.values())

    def allocate(self, tokens: int, owner: str) -> dict[str, list[int]]:
        """Blocks for `tokens` tokens in every group, all or none.

        Raises:
            OutOfBlocks: not enough are free.
        """
        count = blocks_needed(tokens, self._block_tokens)
        taken: dict[str, list[int]] = {}
        try:
            for group, allocator in self._allocators.items():
                taken[group] = allocator.allocate(count, owner)
        except BaseException:
            self.free(taken)
            raise
        return taken

    def first(self, blocks: Mapping[str, Sequence[int]], tokens: int) -> dict[str, Sequence[int]]:
        """Those of a sequence's blocks that hold its first `tokens` tokens."""
        count = blocks_needed(tokens, self._block_tokens)
        return {group: ids[:count] for group, ids in blocks.items()}

    def free(self, blocks: Mapping[str, Sequence[int]]) -> None:
        """Give blocks back. Raises UnknownBlock, DoubleFree."""
        for group, ids in blocks.items():
            self._allocators[group].free(ids)
