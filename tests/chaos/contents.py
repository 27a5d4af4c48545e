"""What blocks hold during chaos: contents that follow from a seed, so that whoever has the seed can check them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kvferry.core.dense import CROSS_LAYER, HND, NHD, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, GroupPlacement, WorkerLayout

Words = npt.NDArray[np.uint32]
"""``[block, layer, kv, token, head, dim]``, elements as bit patterns."""

MODEL = DenseModel(
    model="chaos", layer_count=2, kv_heads=4, head_dim=16, tokens_per_block=16, element_type=ElementType.FLOAT32
)
GROUP = "full"
BLOCK_TOKENS = MODEL.tokens_per_block
BLOCK_COUNT = 512
BLOCK_BYTES = MODEL.layer_count * MODEL.kv_factor * BLOCK_TOKENS * MODEL.kv_heads * MODEL.head_dim * 4
"""Of one block over all ranks: 16 KiB."""
POOL_BYTES = BLOCK_COUNT * BLOCK_BYTES
"""Of a worker with one rank; with more, each needs its part of that."""
ORDERS = {"cross-layer": CROSS_LAYER, "nhd": NHD, "hnd": HND}
_SHAPE = (MODEL.layer_count, MODEL.kv_factor, BLOCK_TOKENS, MODEL.kv_heads, MODEL.head_dim)


def layout_of(ranks: int, order: str) -> WorkerLayout:
    """The layout of a worker; ``order`` is a key of ``ORDERS``."""
    return dense_layout(replace(MODEL), BLOCK_COUNT, ranks, order=ORDERS[order], group=GROUP)


def contents(seed: int, block_count: int) -> Words:
    """Random bit patterns of so many blocks, all heads."""
    return np.random.default_rng(seed).integers(0, 1 << 32, (block_count, *_SHAPE), dtype=np.uint32)


def blocks_of(token_count: int) -> int:
    """Blocks that so many tokens take."""
    return -(-token_count // BLOCK_TOKENS)


class RankBlocks:
    """One rank's blocks in an attached pool."""

    def __init__(self, pool: npt.NDArray[np.uint8], placement: GroupPlacement) -> None:
        strides = placement.strides
        axes = (strides.block, strides.layer, strides.kv, strides.token, strides.head, strides.dim)
        shape = (placement.block_count, *_SHAPE[:3], len(placement.heads), MODEL.head_dim)
        base = pool[placement.base_bytes :]
        words = base[: len(base) // 4 * 4].view(np.uint32)
        self._blocks: Words = np.lib.stride_tricks.as_strided(words, shape, axes)
        self._heads = list(placement.heads)

    def write(self, blocks: Sequence[int], words: Words) -> None:
        """Write this rank's heads of ``words``."""
        self._blocks[list(blocks)] = words[..., self._heads, :]

    def fill(self, blocks: Sequence[int], word: int) -> None:
        """Write one bit pattern everywhere."""
        self._blocks[list(blocks)] = np.uint32(word)

    def wrong_bytes(self, blocks: Sequence[int], words: Words, token_count: int) -> int:
        """Bytes that differ from ``words``, of the first ``token_count`` tokens."""
        same = self._blocks[list(blocks)] == words[..., self._heads, :]
        used = np.arange(len(blocks) * BLOCK_TOKENS).reshape(len(blocks), 1, 1, BLOCK_TOKENS, 1, 1) < token_count
        return 4 * int(np.count_nonzero(~same & used))

    def other_bytes(self, blocks: Sequence[int], word: int) -> int:
        """Bytes of elements that are not the one bit pattern."""
        return 4 * int(np.count_nonzero(self._blocks[list(blocks)] != np.uint32(word)))

    def first_words(self, blocks: Sequence[int]) -> list[int]:
        """One word of each block."""
        return [int(word) for word in self._blocks[list(blocks), 0, 0, 0, 0, 0]]
