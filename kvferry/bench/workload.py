"""What is read in a benchmark: blocks in random order, the same for every method."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvferry.core.dense import CROSS_LAYER, DenseModel, dense_layout
from kvferry.core.errors import ConfigInvalid
from kvferry.core.layouts import ElementType, WorkerLayout

GROUP = "full"
POISON = 0xA5
"""What destination memory holds before a read that is verified."""
_HEAD_DIM = 64
_TOKEN_BYTES = 2 * _HEAD_DIM * ElementType.BFLOAT16.size_bytes

BlockIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Workload:
    """One pull: ``total_bytes`` in blocks of ``block_bytes``, from and to random places of pools of ``pool_bytes``."""

    block_bytes: int
    total_bytes: int
    pool_bytes: int
    seed: int

    @property
    def block_count(self) -> int:
        """Blocks of one pull."""
        return self.total_bytes // self.block_bytes

    def source_blocks(self) -> BlockIds:
        """Block ids to read from, in random order."""
        return self._choose(0)

    def destination_blocks(self) -> BlockIds:
        """Block ids to read to, in another random order."""
        return self._choose(1)

    def _choose(self, side: int) -> BlockIds:
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
        raise ConfigInvalid.of_field("sizes", total_bytes, f"must be a multiple of the block size {block_bytes}")


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
