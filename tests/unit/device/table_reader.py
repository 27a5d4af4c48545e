"""What the kernel makes of a table, tile by tile: the reference for the table's writer."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvferry.device.copy_regions import AXES_MAX
from kvferry.device.copy_table import REGION_BYTES

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ReadDivisor:
    """A division as the kernel does it."""

    value: int
    magic: int
    shift: int

    def divide(self, number: int) -> int:
        """``number`` over the value, in 64 bits."""
        assert number < 1 << 31
        assert self.magic < 1 << 32
        return (number * self.magic) >> (31 + self.shift)


@dataclass(frozen=True)
class ReadRegion:
    """A region of a table."""

    windows: tuple[int, int]
    bases: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.uint32] | None
    run_bytes: int
    first_tile: int
    run_count: int
    runs_per_tile: int
    chunk_bytes: int
    chunks_per_run: ReadDivisor
    units_per_run: ReadDivisor
    unit_bytes: int
    bulk: bool
    mixed: bool
    axes: tuple[tuple[int, int, ReadDivisor], ...]

    def pieces(self, tile: int) -> Iterator[tuple[int, int, int]]:
        """Source address, destination address and bytes of everything in a tile."""
        index = tile - self.first_tile
        if not self.chunk_bytes:
            first = index * self.runs_per_tile
            for run in range(first, min(first + self.runs_per_tile, self.run_count)):
                yield (*self.start(run), int(self.lengths[run]) if self.lengths is not None else self.run_bytes)
            return
        run = self.chunks_per_run.divide(index)
        offset = (index - run * self.chunks_per_run.value) * self.chunk_bytes
        source, destination = self.start(run)
        yield source + offset, destination + offset, min(self.run_bytes - offset, self.chunk_bytes)

    def start(self, run: int) -> tuple[int, int]:
        """Where a run begins in both windows."""
        source, destination = self.windows
        for source_stride, destination_stride, length in reversed(self.axes):
            following = length.divide(run)
            index = run - following * length.value
            source += index * source_stride
            destination += index * destination_stride
            run = following
        return source + int(self.bases[run, 0]), destination + int(self.bases[run, 1])


def read_table(table: Bytes, region_count: int) -> list[ReadRegion]:
    """The regions of a table."""
    return [_region(table, number * REGION_BYTES) for number in range(region_count)]


def _region(table: Bytes, at: int) -> ReadRegion:
    data = table.tobytes()
    source, destination, bases_at, lengths_at, run_bytes = struct.unpack_from("<5Q", data, at)
    first_tile, run_count, runs_per_tile, chunk_bytes = struct.unpack_from("<4I", data, at + 40)
    chunks, units = (
        ReadDivisor(*struct.unpack_from("<3I", data, at + 56)),
        ReadDivisor(*struct.unpack_from("<3I", data, at + 68)),
    )
    unit_bytes, flags, shift, axis_count = struct.unpack_from("<4I", data, at + 80)
    assert axis_count <= AXES_MAX
    axes = []
    for number in range(axis_count):
        steps = struct.unpack_from("<qq3I", data, at + 96 + 32 * number)
        axes.append((steps[0], steps[1], ReadDivisor(*steps[2:])))
    base_count = run_count
    for _, _, length in axes:
        base_count //= length.value
    kind, size = (np.int64, 16) if flags & 4 else (np.uint32, 8)
    bases = np.frombuffer(data, kind, 2 * base_count, bases_at).reshape(-1, 2).astype(np.int64) << shift
    lengths = np.frombuffer(data, np.uint32, run_count, lengths_at) if lengths_at else None
    assert bases_at % 16 == lengths_at % 16 == 0, size
    return ReadRegion(
        (source, destination), bases, lengths, run_bytes, first_tile, run_count, runs_per_tile, chunk_bytes, chunks,
        units, unit_bytes, bool(flags & 1), bool(flags & 2), tuple(axes),
    )  # fmt: skip
