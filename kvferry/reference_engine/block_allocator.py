"""Which KV blocks of a worker are in use, and by whom."""

from collections import Counter
from collections.abc import Sequence
from typing import Self

from kvferry.core.errors import BlockError, ResourceExhausted
from kvferry.core.reasons import Reason
from kvferry.reference_engine.config import require_int


class OutOfBlocks(ResourceExhausted):
    """More blocks were wanted than are free."""

    @classmethod
    def of(cls, wanted: int, free: int) -> Self:
        """An error that names both counts, also as metadata."""
        return cls(f"{wanted} blocks wanted, {free} free", metadata={"wanted": str(wanted), "free": str(free)})


class UnknownBlock(BlockError):
    """A block id that does not exist."""

    default_reason = Reason.BLOCK_OUT_OF_RANGE


class DoubleFree(BlockError):
    """A block to be freed that is free already, or named twice in one call."""

    default_reason = Reason.BLOCK_DUPLICATE


class BlockAllocator:
    """Hands out block ids 0 to num_blocks - 1. Not thread-safe: one event loop or thread owns it.

    The block freed last is handed out first. A reader that still relies on freed blocks then meets other
    bytes soon, where a long rest would hide the mistake.
    """

    def __init__(self, num_blocks: int, *, highest_first: bool = False) -> None:
        require_int("num_blocks", num_blocks, at_least=1)
        self._num_blocks = num_blocks
        self._free = list(range(num_blocks) if highest_first else reversed(range(num_blocks)))
        self._owners: dict[int, str] = {}

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def free_count(self) -> int:
        return len(self._free)

    @property
    def allocated_count(self) -> int:
        return len(self._owners)

    def blocks_by_owner(self) -> dict[str, int]:
        """How many blocks each owner holds. Empty when nothing leaked."""
        return dict(Counter(self._owners.values()))

    def allocate(self, count: int, owner: str = "") -> list[int]:
        """`count` free blocks, all or none, booked to `owner`. O(count).

        Raises:
            OutOfBlocks: fewer than `count` are free.
            InvalidArgument: `count` is not an integer of at least 0.
        """
        require_int("count", count, at_least=0)
        if count > len(self._free):
            raise OutOfBlocks.of(count, len(self._free))
        blocks = [self._free.pop() for _ in range(count)]
        self._owners.update(dict.fromkeys(blocks, owner))
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """Give all of `blocks` back, or none. O(len(blocks)).

        Raises:
            UnknownBlock: an id that does not exist.
            DoubleFree: a block that is not allocated, or is named twice.
        """
        seen: set[int] = set()
        for index, block in enumerate(blocks):
            if type(block) is not int or not 0 <= block < self._num_blocks:
                raise UnknownBlock.of_field(f"blocks[{index}]", block, f"not an id from 0 to {self._num_blocks - 1}")
            if block in seen or block not in self._owners:
                raise DoubleFree.of_field(f"blocks[{index}]", block, "not allocated, or named twice")
            seen.add(block)
        for block in blocks:
            del self._owners[block]
        self._free.extend(reversed(blocks))
