"""Blocks of a pool that tasks take and give back; who finds too few waits, and is served in order."""

import asyncio
from collections import deque

from kvferry.core.errors import ResourceExhausted
from kvferry.reference_engine.block_allocator import BlockAllocator


class BlockQueue:
    """An allocator that is waited for. One event loop owns it; the waiting are as many as its users let run."""

    def __init__(self, block_count: int) -> None:
        self._allocator = BlockAllocator(block_count)
        self._waiting: deque[tuple[int, asyncio.Future[list[int]]]] = deque()

    @property
    def free_count(self) -> int:
        """Blocks that nobody holds."""
        return self._allocator.free_count

    async def take(self, count: int) -> list[int]:
        """``count`` blocks, as soon as they are free and all that asked before are served.

        Raises:
            ResourceExhausted: there are not so many blocks at all.
        """
        if count > self._allocator.num_blocks:
            raise ResourceExhausted(f"{count} blocks wanted, there are {self._allocator.num_blocks}")
        turn: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        self._serve()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(turn.result())
            else:
                self._serve()
            raise

    def give_back(self, blocks: list[int]) -> None:
        """Free blocks, and serve those that wait."""
        self._allocator.free(blocks)
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
            elif count <= self._allocator.free_count:
                self._waiting.popleft()
                turn.set_result(self._allocator.allocate(count))
            else:
                return
