"""The table that tells the copy kernel what to copy, byte for byte as ``kernels/copy.cu`` reads it. Pure."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvferry.core.errors import InvalidArgument
from kvferry.core.planning.copies import Axis
from kvferry.device.copy_regions import AXES_MAX, RUNS_MAX, WIDEST_UNIT_BYTES, Region
from kvferry.device.copying import Window

REGIONS_MAX = 32
"""Of a launch: one for each lane that looks for the region of a tile."""

TILE_BYTES_MAX = 16384
TILE_BYTES_MIN = 2048
CACHE_LINE_BYTES = 128
TILES_PER_WARP = 2
"""Tiles are made smaller, down to the minimum, until every warp has so many: the last ones then end together."""

BULK_RUNS_MAX = 64
PLAIN_RUNS_MAX = 1024
BULK_RUN_BYTES_MIN = 256
BULK_BYTES_PER_ISSUE = 32768
"""A multiprocessor starts bulk copies one after the other. Runs shorter than this over the number of multiprocessors
are faster through registers (measured on an H100 with 16 to 132 of them)."""

SATURATING_RUN_BYTES_MIN = 1024
"""With bulk copies of at least this, half of an H100's multiprocessors fill its memory; more only compete."""

MIXED_RUN_BYTES_MIN = 256
MIXED_UNIT_BYTES_MAX = 4
"""Long runs that only share a narrow unit may share wide ones once their ends are set apart."""

TILES_MAX = RUNS_MAX - (1 << 20)
"""Of a launch; tickets go a little beyond, by one for each warp."""

_BULK, _MIXED, _WIDE_BASES = 1, 2, 4
_SECTION_ALIGNMENT = 16
_DIVISOR = "III"
_REGION = struct.Struct(f"<5Q4I{_DIVISOR}{_DIVISOR}4I")
_AXIS = struct.Struct(f"<qq{_DIVISOR}I")
REGION_BYTES = _REGION.size + AXES_MAX * _AXIS.size + 8

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a region is cut into tiles: some whole runs each, or each a chunk of one run."""

    runs_per_tile: int
    chunk_bytes: int
    """0 if runs are not cut."""
    chunks_per_run: int
    tile_count: int
    bulk: bool


@dataclass(frozen=True, slots=True)
class Table:
    """One launch: regions, and where what belongs to them lies in the table."""

    regions: tuple[Region, ...]
    tilings: tuple[Tiling, ...]
    bulk: bool
    """Whether the kernel for bulk copies is the better one."""

    @property
    def tile_count(self) -> int:
        """Tiles of all regions."""
        return sum(tiling.tile_count for tiling in self.tilings)

    @property
    def total_bytes(self) -> int:
        """Bytes that are copied."""
        return sum(region.total_bytes for region in self.regions)

    @property
    def size_bytes(self) -> int:
        """Bytes of the table itself."""
        return table_bytes(self.regions)


def divisor(value: int) -> tuple[int, int, int]:
    """What the kernel needs to divide numbers below 2**31 by ``value`` with a multiplication and a shift."""
    if not 1 <= value <= RUNS_MAX:
        raise InvalidArgument.of_field("divisor", value, f"must be 1 to {RUNS_MAX}")
    shift = (value - 1).bit_length()
    return value, -(-(1 << (31 + shift)) // value), shift


def tile_bytes_for(total_bytes: int, warps: int) -> int:
    """Bytes of a tile, so that each of ``warps`` gets several."""
    size = TILE_BYTES_MAX
    while size > TILE_BYTES_MIN and total_bytes < warps * TILES_PER_WARP * size:
        size //= 2
    return size


def chunk_bytes_for(run_bytes: int, tile_bytes: int) -> int:
    """Bytes of the chunks of a run longer than a tile: an odd number of cache lines.

    Chunks that start at multiples of a power of two lie on few of the memory's channels, and many warps work on
    neighbouring chunks at once: copies of 1 MiB runs by two warps on each multiprocessor lost a third of their rate so.
    """
    lines_max = tile_bytes // CACHE_LINE_BYTES - 1
    lines = -(-run_bytes // CACHE_LINE_BYTES)
    return (-(-lines // -(-lines // lines_max)) | 1) * CACHE_LINE_BYTES


def bulk_run_bytes_min(blocks: int) -> int:
    """From which length on runs are copied in bulk, if ``blocks`` blocks copy."""
    return max(BULK_BYTES_PER_ISSUE // blocks, BULK_RUN_BYTES_MIN)


def blocks_for(table: Table, blocks_max: int, blocks_saturating: int) -> int:
    """Blocks of a launch: no more than there are tiles, and with long runs no more than it takes to fill the memory."""
    blocks = min(blocks_max, table.tile_count)
    shortest = min(region.run_bytes for region in table.regions)
    return min(blocks, blocks_saturating) if table.bulk and shortest >= SATURATING_RUN_BYTES_MIN else blocks


def tiling_of(region: Region, tile_bytes: int, *, bulk_from_bytes: int | None) -> Tiling:
    """Cut ``region`` into tiles of about ``tile_bytes``, at most ``TILE_BYTES_MAX``.

    Runs of ``bulk_from_bytes`` and more are copied in bulk, if aligned; with None, none are.
    """
    aligned = region.unit_bytes == WIDEST_UNIT_BYTES
    bulk = aligned and bulk_from_bytes is not None and region.run_bytes >= bulk_from_bytes
    if region.lengths is None and region.run_bytes > tile_bytes:
        chunk = chunk_bytes_for(region.run_bytes, tile_bytes)
        chunks = -(-region.run_bytes // chunk)
        return Tiling(1, chunk, chunks, region.run_count * chunks, bulk)
    runs = max(min(tile_bytes // region.run_bytes, BULK_RUNS_MAX if bulk else PLAIN_RUNS_MAX), 1)
    return Tiling(runs, 0, 1, -(-region.run_count // runs), bulk)


def tables_of(
    regions: Sequence[Region], *, capacity_bytes: int, warps: int, bulk_from_bytes: int | None
) -> Iterator[Table]:
    """All regions as launches whose tables have at most ``capacity_bytes``; usually one.

    ``warps`` copy at the same time. ``bulk_from_bytes`` is None where the device has no bulk copy engine.

    Raises:
        InvalidArgument: a region has more tiles than a launch can count.
    """
    tile_bytes = tile_bytes_for(sum(region.total_bytes for region in regions), warps)
    for group in _groups(regions, capacity_bytes):
        tilings = tuple(tiling_of(region, tile_bytes, bulk_from_bytes=bulk_from_bytes) for region in group)
        tiles = sum(tiling.tile_count for tiling in tilings)
        if tiles > TILES_MAX:
            raise InvalidArgument.of_field("copies", tiles, f"at most {TILES_MAX} tiles of {tile_bytes} bytes")
        in_bulk = sum(region.total_bytes for region, tiling in zip(group, tilings, strict=True) if tiling.bulk)
        yield Table(group, tilings, in_bulk * 2 > sum(region.total_bytes for region in group))


def _groups(regions: Sequence[Region], capacity_bytes: int) -> Iterator[tuple[Region, ...]]:
    group: list[Region] = []
    filled = 0
    for region in regions:
        each = _bytes_per_base(region)
        first, count = 0, int(region.source_bases.size)
        while first < count:
            room = (capacity_bytes - filled - REGION_BYTES - 3 * _SECTION_ALIGNMENT) // each
            if room < min(count - first, 1024) or len(group) == REGIONS_MAX:
                if not group:
                    raise InvalidArgument.of_field("capacity_bytes", capacity_bytes, "is too small for a region")
                yield tuple(group)
                group, filled = [], 0
                continue
            taken = min(room, count - first)
            group.append(region if taken == count else region.part(first, taken))
            filled = table_bytes(group)
            first += taken
    if group:
        yield tuple(group)


def _shift(region: Region) -> int | None:
    """By how many bits bases are shifted to fit into 32; None if they do not."""
    bits = region.base_bits
    shift = (bits & -bits).bit_length() - 1 if bits else 0
    return shift if bits >> shift < 1 << 32 else None


def _bytes_per_base(region: Region) -> int:
    return (16 if _shift(region) is None else 8) + (0 if region.lengths is None else 4)


def _aligned(size: int) -> int:
    return -(-size // _SECTION_ALIGNMENT) * _SECTION_ALIGNMENT


def table_bytes(regions: Sequence[Region]) -> int:
    """Bytes of the table of these regions."""
    size = _aligned(len(regions) * REGION_BYTES)
    for region in regions:
        count = int(region.source_bases.size)
        size += _aligned(count * (16 if _shift(region) is None else 8))
        size += 0 if region.lengths is None else _aligned(count * 4)
    return size


def write_table(table: Table, windows: tuple[Window, Window], out: Bytes) -> None:
    """Write ``table`` to the start of ``out``, which has room for it and is aligned to 16 bytes."""
    at = _aligned(len(table.regions) * REGION_BYTES)
    first_tile = 0
    for number, (region, tiling) in enumerate(zip(table.regions, table.tilings, strict=True)):
        shift = _shift(region)
        bases_at = at
        at = _write_bases(region, shift, out, at)
        lengths_at = at if region.lengths is not None else 0
        if region.lengths is not None:
            end = at + 4 * int(region.lengths.size)
            np.copyto(out[at:end].view(np.uint32), region.lengths, casting="unsafe")
            at = _aligned(end)
        flags = _BULK * tiling.bulk | _MIXED * _is_mixed(region) | _WIDE_BASES * (shift is None)
        start = number * REGION_BYTES
        _REGION.pack_into(
            out.data,
            start,
            *(windows[0].address, windows[1].address, bases_at, lengths_at, region.run_bytes),
            *(first_tile, region.run_count, tiling.runs_per_tile, tiling.chunk_bytes),
            *divisor(tiling.chunks_per_run),
            *divisor(max((tiling.chunk_bytes or region.run_bytes) // region.unit_bytes, 1)),
            *(region.unit_bytes, flags, shift or 0, len(region.axes)),
        )
        _write_axes(region.axes, out, start + _REGION.size)
        first_tile += tiling.tile_count


def _is_mixed(region: Region) -> bool:
    narrow = region.unit_bytes <= MIXED_UNIT_BYTES_MAX and region.run_bytes >= MIXED_RUN_BYTES_MIN
    return region.lengths is not None or narrow


def _write_bases(region: Region, shift: int | None, out: Bytes, at: int) -> int:
    count = int(region.source_bases.size)
    sides = (region.source_bases, region.destination_bases)
    if shift is None:
        wide = out[at : at + 16 * count].view(np.int64).reshape(-1, 2)
        for side, bases in enumerate(sides):
            wide[:, side] = bases
        return at + 16 * count
    narrow = out[at : at + 8 * count].view(np.uint32).reshape(-1, 2)
    for side, bases in enumerate(sides):
        np.right_shift(bases, shift, out=narrow[:, side], casting="unsafe")
    return _aligned(at + 8 * count)


def _write_axes(axes: Sequence[Axis], out: Bytes, at: int) -> None:
    for axis in axes:
        _AXIS.pack_into(out.data, at, axis.source_stride, axis.destination_stride, *divisor(axis.length), 0)
        at += _AXIS.size
