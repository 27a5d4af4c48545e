"""Cuts a digest into launches, and writes what a launch is told. Knows nothing of the driver."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from kvferry.core.checksums.formula import CHUNK_BYTES, LINE_BYTES, word_keys
from kvferry.core.checksums.regions import DigestRegion
from kvferry.core.planning.copies import Offsets

LAUNCH_BYTES_MAX: Final = 1 << 30
"""About as much is summed by a launch: a cancel is noticed between two."""
LAUNCH_SUMS_MAX: Final = 1 << 20
UNITS: Final = 16
"""Chunks that a group of lanes sums for one cell."""
VECTOR_BYTES: Final = 16
LANES_MAX: Final = 32
PLAIN_NUMBER_MAX: Final = 1 << 31
ARGUMENTS: Final = (
    "pool",
    "bases",
    "tokens",
    "counts",
    "rows",
    "cell_offsets",
    "cell_keys",
    "word_keys",
    "sums",
    "segment_count",
    "cell_count",
    "items_per_cell",
    "token_stride",
    "dim_stride",
    "run_elements",
    "element_bytes",
    "lanes",
)
"""The kernel's structure: numbers of 8 bytes."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A part of a region whose sums are few. ``rows`` are those of the whole region that its own stand for."""

    region: DigestRegion
    rows: Offsets

    @property
    def sums_bytes(self) -> int:
        """Size of its sums."""
        return self.rows.size * self.region.cell_offsets.size * 8

    def table(self) -> npt.NDArray[np.uint8]:
        """What is uploaded: the lists one after the other, as :meth:`arguments` says where."""
        return np.concatenate([part.view(np.uint8) for part in self._parts()])

    def arguments(self, pool: int, table: int, sums: int) -> npt.NDArray[np.int64]:
        """The kernel's structure for addresses of the pool, of the uploaded table and of the sums."""
        region = self.region
        sizes = [part.nbytes for part in self._parts()]
        starts = [table + sum(sizes[:index]) for index in range(len(sizes))]
        keys, bases, tokens, counts, rows, offsets, cell_keys = starts
        values = {
            "pool": pool,
            "bases": bases,
            "tokens": tokens,
            "counts": counts,
            "rows": rows,
            "cell_offsets": offsets,
            "cell_keys": cell_keys,
            "word_keys": keys,
            "sums": sums,
            "segment_count": region.bases.size,
            "cell_count": region.cell_offsets.size,
            "items_per_cell": self.items_per_cell,
            "token_stride": region.token_stride,
            "dim_stride": region.dim_stride,
            "run_elements": region.run_elements,
            "element_bytes": region.element_bytes,
            "lanes": self.lanes,
        }
        return np.array([values[name] for name in ARGUMENTS], dtype=np.int64)

    def is_plain(self, pool: int) -> bool:
        """Whether every run is whole vectors at aligned addresses and one chunk, and numbers of 32 bits do."""
        region = self.region
        run_bytes = region.run_elements * region.element_bytes
        steps = np.concatenate((region.bases + pool, region.cell_offsets))
        return (
            run_bytes <= CHUNK_BYTES
            and run_bytes % VECTOR_BYTES == 0
            and region.dim_stride == region.element_bytes
            and region.token_stride % VECTOR_BYTES == 0
            and region.token_stride < PLAIN_NUMBER_MAX
            and self.thread_count < PLAIN_NUMBER_MAX
            and not (steps % VECTOR_BYTES).any()
        )

    @property
    def items_per_cell(self) -> int:
        """Groups of lanes that share a cell of the longest segment."""
        chunks = -(-self.region.run_elements * self.region.element_bytes // CHUNK_BYTES)
        return -(-int(self.region.counts.max()) * chunks // UNITS)

    @property
    def lanes(self) -> int:
        """Lanes of a group: enough for a vector each of the longest chunk."""
        longest = min(self.region.run_elements * self.region.element_bytes, CHUNK_BYTES)
        vectors = -(-longest // LINE_BYTES) * (LINE_BYTES // VECTOR_BYTES)
        return min(1 << (vectors - 1).bit_length(), LANES_MAX)

    @property
    def thread_count(self) -> int:
        """Threads that have something to do."""
        return int(self.region.bases.size) * int(self.region.cell_offsets.size) * self.items_per_cell * self.lanes

    def _parts(self) -> list[npt.NDArray[np.generic]]:
        # The words come first: they are read as vectors.
        region = self.region
        lists = (region.bases, region.tokens, region.counts, region.rows, region.cell_offsets, region.cell_keys)
        return [word_keys(), *(np.ascontiguousarray(part) for part in lists)]


def launches_of(region: DigestRegion, bytes_max: int = LAUNCH_BYTES_MAX) -> Iterator[Launch]:
    """The launches that together sum a region, which was checked; at least one segment each."""
    cells = int(region.cell_offsets.size)
    if not cells or not region.bases.size:
        return
    weights = np.cumsum(region.counts * (cells * region.run_elements * region.element_bytes))
    first = 0
    while first < region.bases.size:
        before = int(weights[first - 1]) if first else 0
        stop = int(np.searchsorted(weights, before + bytes_max, side="right"))
        stop = max(min(stop, first + max(LAUNCH_SUMS_MAX // cells, 1)), first + 1)
        part = slice(first, stop)
        rows, own = np.unique(region.rows[part], return_inverse=True)
        yield Launch(
            replace(
                region,
                bases=region.bases[part],
                tokens=region.tokens[part],
                counts=region.counts[part],
                rows=own.reshape(-1).astype(np.int64),
                row_count=int(rows.size),
            ),
            rows,
        )
        first = stop
