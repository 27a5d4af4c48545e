"""Model memory: what every pool holds, which block is whose, and what a pull must bring."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
import numpy.typing as npt

from kvferry.core.layouts import WorkerLayout
from kvferry.core.planning.planner import PairPlan
from kvferry.core.planning.tokens import TokenRange

Bytes = npt.NDArray[np.uint8]
GROUP = "full"
PROBE_SOURCE, PROBE_DESTINATION = 0, 1
"""Blocks that only probes use, at the end of a run."""


class Use(Enum):
    """Whose a block is at the moment."""

    ENGINE = auto()
    """The engine's, which may compute into it: nobody else may write."""
    PUBLISHED = auto()
    DESTINATION = auto()
    """Of a pull that has not ended."""
    QUARANTINED = auto()
    """Of a pull that ended without the word that nothing can still arrive."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication promised: the pools as they were when it was made."""

    worker: str
    layout: WorkerLayout
    blocks: tuple[int, ...]
    token_count: int
    pools: Mapping[int, Bytes]


@dataclass(eq=False)
class WorkerMemory:
    """The pools of one worker's data planes, by rank, and the use of its blocks. A block is one on all ranks."""

    worker: str
    layout: WorkerLayout
    pools: dict[int, Bytes] = field(default_factory=dict)
    uses: list[Use] = field(init=False)
    holders: dict[int, str] = field(default_factory=dict)
    """By block, who has it, for people."""
    _bytes_of_block: dict[int, npt.NDArray[np.int64]] = field(init=False)
    """By rank, the offsets of each block's bytes."""
    _block_of_byte: dict[int, npt.NDArray[np.int64]] = field(init=False)

    def __post_init__(self) -> None:
        self.uses = [Use.ENGINE] * self.layout.block_count(GROUP)
        self.use((PROBE_SOURCE,), Use.PUBLISHED, "probes")
        self.use((PROBE_DESTINATION,), Use.DESTINATION, "probes")
        self._bytes_of_block = {rank.rank: _bytes_by_block(self.layout, rank.rank) for rank in self.layout.ranks}
        self._block_of_byte = {rank: _inverted(offsets) for rank, offsets in self._bytes_of_block.items()}

    def pool_bytes(self, rank: int) -> int:
        """Size of a rank's pool."""
        return int(self._block_of_byte[rank].size)

    def blocks_at(self, rank: int, offset: int, length: int) -> list[int]:
        """The blocks that hold some bytes of a rank's pool."""
        return sorted(set(self._block_of_byte[rank][offset : offset + length].tolist()))

    def write(self, blocks: tuple[int, ...], content: random.Random) -> None:
        """The engine computes: new bytes in some blocks, on every rank that has a pool."""
        for rank, pool in self.pools.items():
            inside = self._bytes_of_block[rank][list(blocks)].reshape(-1)
            pool[inside] = np.frombuffer(content.randbytes(inside.size), dtype=np.uint8)

    def use(self, blocks: tuple[int, ...], use: Use, holder: str) -> None:
        """Note whose blocks are."""
        for block in blocks:
            self.uses[block] = use
            self.holders[block] = holder

    def free(self) -> list[int]:
        """Blocks that the engine can use."""
        return [block for block, use in enumerate(self.uses) if use is Use.ENGINE]

    def snapshot(self) -> dict[int, Bytes]:
        """The pools as they are."""
        return {rank: pool.copy() for rank, pool in self.pools.items()}

    def wrong_bytes(self, blocks: tuple[int, ...], published: Published, pools: Mapping[int, Bytes]) -> int:
        """How many bytes of a pull's destination, in ``pools`` by rank, are not what was published."""
        wrong = 0
        tokens = TokenRange(0, published.token_count, published.token_count)
        for rank in self.layout.ranks:
            plan = PairPlan(published.layout, self.layout, rank.rank).request(
                {GROUP: np.array(published.blocks)}, {GROUP: np.array(blocks)}, tokens
            )
            for source in plan.sizes:
                for chunk in plan.chunks(source, 1 << 20):
                    for start, to, length in zip(
                        chunk.source_offsets.tolist(),
                        chunk.destination_offsets.tolist(),
                        chunk.lengths.tolist(),
                        strict=True,
                    ):
                        expected = published.pools[source][start : start + length]
                        wrong += int(np.count_nonzero(expected != pools[rank.rank][to : to + length]))
        return wrong


def _bytes_by_block(layout: WorkerLayout, rank: int) -> npt.NDArray[np.int64]:
    """Offsets in a rank's pool, `[block, byte]`; elements have one byte."""
    placement = layout.ranks[rank].placements[0]
    group = layout.groups[0]
    shape = (
        placement.block_count,
        len(placement.layers),
        group.kv_factor,
        len(placement.heads),
        group.tokens_per_block,
        group.head_dim,
    )
    offsets = np.zeros(shape, dtype=np.int64) + placement.base_bytes
    # The strides come in the order of the axes.
    for axis, step in enumerate(placement.strides):
        index = np.arange(shape[axis], dtype=np.int64) * step
        offsets += index.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return offsets.reshape(placement.block_count, -1)


def _inverted(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For every byte the block that it belongs to."""
    blocks = np.zeros(int(offsets.max()) + 1, dtype=np.int64)
    blocks[offsets] = np.arange(offsets.shape[0], dtype=np.int64)[:, np.newaxis]
    return blocks
