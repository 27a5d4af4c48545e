"""What is read in a benchmark: the same blocks in the same order for every method."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvferry.core.dense import CROSS_LAYER, DenseModel, dense_layout
from kvferry.core.errors import ConfigInvalid
from kvferry.core.layouts import ElementType, WorkerLayout

GROUP = "full"
RANDOM = "random"
CONTIGUOUS = "contiguous"
ORDERS = (RANDOM, CONTIGUOUS)
POISON = 0xA5
"""What destination memory holds before a read that is verified."""
_HEAD_DIM = 64
_TOKEN_BYTES = 2 * _HEAD_DIM * ElementType.BFLOAT16.size_bytes

BlockIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Workload:
    """One pull: ``total_bytes`` in blocks of ``block_bytes``, from and to places of pools of ``pool_bytes``.

    In ``order`` random these are anywhere, chosen for each side by itself; contiguous they are the pools' first blocks.
    """

    block_bytes: int
    total_bytes: int
    pool_bytes: int
    seed: int
    order: str = RANDOM

    @property
    def block_count(self) -> int:
        """Blocks of one pull."""
        return self.total_bytes // self.block_bytes

    def source_blocks(self) -> BlockIds:
        """Block ids to read from."""
        return self._choose(0)

    def destination_blocks(self) -> BlockIds:
        """Block ids to read to, as many."""
        return self._choose(1)

    def _choose(self, side: int) -> BlockIds:
        if self.order == CONTIGUOUS:
            return np.arange(self.block_count, dtype=np.int64)
        random = np.random.default_rng([self.seed, side])
        return random.permutation(self.pool_bytes // self.block_bytes)[: self.block_count].astype(np.int64)


def check_workload(block_bytes: int, total_bytes: int) -> None:
    """Refuse sizes that cannot be measured.

    Raises:
        ConfigInvalid: names the size.
    """
    if block_bytes % _TOKEN_BYTES:
        raise ConfigInvalid.of_field("blocks", block_bytes, f"must be a multiple of {_TOKEN_BYTES} bytes")
    if total_bytes % block_bytes:
        raise ConfigInvalid.of_field("total", total_bytes, f"must be a multiple of the block size {block_bytes}")


def bench_layout(block_bytes: int, pool_bytes: int) -> WorkerLayout:
    """A layout of one rank whose blocks each are one run of ``block_bytes``: one descriptor per block."""
    model = DenseModel(
        model=f"bench-{block_bytes}",
        layer_count=1,
        kv_heads=1,
        head_dim=_HEAD_DIM,
        tokens_per_block=block_bytes // _TOKEN_BYTES,
        element_type=ElementType.BFLOAT16,
    )
    return dense_layout(model, block_count=pool_bytes // block_bytes, order=CROSS_LAYER, group=GROUP)


def random_bytes(seed: int, size_bytes: int) -> npt.NDArray[np.uint8]:
    """``size_bytes`` (a multiple of 8) of noise; the same seed gives the same bytes in every process."""
    words = np.random.default_rng(seed).integers(0, 1 << 64, size_bytes // 8, dtype=np.uint64)
    return words.view(np.uint8)
