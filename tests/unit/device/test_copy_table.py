"""Tables say what the regions say, in the form that the kernel reads."""

import numpy as np
import pytest

from kvferry.core.planning.copies import Axis, CopyPlan, StridedCopy
from kvferry.device.copy_regions import RUNS_MAX, regions_of
from kvferry.device.copy_table import (
    BULK_RUNS_MAX,
    REGIONS_MAX,
    TILE_BYTES_MAX,
    Table,
    blocks_for,
    bulk_run_bytes_min,
    chunk_bytes_for,
    divisor,
    tables_of,
    tile_bytes_for,
    write_table,
)
from kvferry.device.copying import Copies, Window
from tests.unit.device.random_copies import random_copies
from tests.unit.device.table_reader import ReadDivisor, ReadRegion, read_table
from tests.unit.planning import reference

SPACE = 1 << 16


def written(table: Table, windows: tuple[Window, Window]) -> list[ReadRegion]:
    """The regions of a table, read back."""
    out = np.full(table.size_bytes, 0xAB, dtype=np.uint8)
    write_table(table, windows, out)
    return read_table(out, len(table.regions))


def copied(tables: list[Table], windows: tuple[Window, Window], source: reference.Pool, pool: reference.Pool) -> None:
    """Do what the tables say, as the kernel does it."""
    for table in tables:
        regions = written(table, windows)
        for tile in range(table.tile_count):
            region = [region for region in regions if region.first_tile <= tile][-1]
            total = 0
            for here, there, size in region.pieces(tile):
                at = here - windows[0].address, there - windows[1].address
                pool[at[1] : at[1] + size] = source[at[0] : at[0] + size]
                total += size
                assert (here | there) % region.unit_bytes == 0
                assert region.mixed or size % region.unit_bytes == 0
            assert 0 < total <= TILE_BYTES_MAX


@pytest.mark.parametrize("seed", range(30))
def test_tables_copy_what_the_copies_say(seed: int) -> None:
    """Whatever the copies are, the table leads the kernel to the same bytes, and no other byte changes."""
    rng = np.random.default_rng(seed)
    copies, unit = random_copies(rng, SPACE)
    source, pool = rng.integers(0, 256, (2, 10 * SPACE), np.uint8)
    expected = pool.copy()
    for copy in copies:
        if isinstance(copy, CopyPlan):
            reference.run(copy, source, expected)
        else:
            reference.run_strided([copy], source, expected)
    windows = Window(1 << 33, source.size), Window(3 << 34, pool.size)
    capacity = int(rng.choice([4096, 1 << 20]))
    bulk = None if rng.random() < 0.3 else 256
    tables = list(tables_of(regions_of(*windows, copies), capacity_bytes=capacity * 8, warps=64, bulk_from_bytes=bulk))
    copied(tables, windows, source, pool)
    assert np.array_equal(expected, pool), (seed, unit)
    assert all(table.size_bytes <= capacity * 8 for table in tables)


@pytest.mark.parametrize("value", [1, 2, 3, 5, 7, 127, 128, 12345, (1 << 30) + 1, RUNS_MAX - 1, RUNS_MAX])
def test_division_is_exact(value: int) -> None:
    """Multiplying and shifting gives the quotient of every number that the kernel divides."""
    exact = ReadDivisor(*divisor(value))
    rng = np.random.default_rng(value)
    numbers = {0, 1, value - 1, value, 2 * value - 1, 2 * value, RUNS_MAX - 1, RUNS_MAX}
    numbers |= set(rng.integers(0, RUNS_MAX, 500).tolist())
    for number in numbers:
        if number <= RUNS_MAX:
            assert number // value == exact.divide(number)


def one(copies: list[Copies], size: int, *, bulk_from_bytes: int | None = 256, warps: int = 8) -> Table:
    """The only table of these copies within windows of ``size``."""
    window = Window(1 << 32, size)
    (table,) = tables_of(
        regions_of(window, window, copies), capacity_bytes=1 << 20, warps=warps, bulk_from_bytes=bulk_from_bytes
    )
    return table


def blocks(run_bytes: int, count: int = 64, skew: int = 0) -> StridedCopy:
    """Runs of one length, reversed."""
    bases = np.arange(count, dtype=np.int64) * (run_bytes + skew)
    return StridedCopy(bases, bases[::-1].copy(), (), run_bytes)


@pytest.mark.parametrize(
    ("copy", "bulk_from_bytes", "bulk"),
    [
        (blocks(4096), 256, True),
        (blocks(4096), None, False),
        (blocks(4096), 8192, False),
        (blocks(4096, skew=8), 256, False),
        (blocks(4104), 256, False),
        (blocks(128), 256, False),
    ],
)
def test_bulk_needs_alignment_length_and_device(copy: StridedCopy, bulk_from_bytes: int | None, bulk: bool) -> None:
    """Runs are copied in bulk if the device can, they are long enough and everything is aligned to 16 bytes."""
    table = one([copy], 1 << 20, bulk_from_bytes=bulk_from_bytes)
    assert bulk == table.bulk == table.tilings[0].bulk


def test_the_kernel_follows_most_bytes() -> None:
    """A plan of mostly bulk copies goes to that kernel with all it has, and otherwise to the plain one."""
    assert one([blocks(4096), blocks(12)], 1 << 20).bulk
    assert not one([blocks(4096, count=1), blocks(1000, count=100)], 1 << 20).bulk


def test_bulk_tiles_fit_a_slot() -> None:
    """A tile of a bulk copy has at most as many runs as a slot notes, and at most its bytes."""
    table = one([blocks(256, count=10000)], 1 << 23)
    assert BULK_RUNS_MAX == table.tilings[0].runs_per_tile
    table = one([blocks(4096, count=1000)], 1 << 23)
    assert TILE_BYTES_MAX == table.tilings[0].runs_per_tile * 4096


@pytest.mark.parametrize("run_bytes", [16400, 25600, 65536, 1 << 20, (1 << 33) + 16])
def test_chunks_spread_over_the_channels(run_bytes: int) -> None:
    """Chunks of a long run are an odd number of cache lines, and no longer than a tile."""
    chunk = chunk_bytes_for(run_bytes, TILE_BYTES_MAX)
    assert 1 == chunk // 128 % 2
    assert chunk <= TILE_BYTES_MAX
    assert 0 == chunk % 128


def test_small_jobs_have_small_tiles() -> None:
    """Tiles shrink until every warp has work, but not below the minimum."""
    assert [TILE_BYTES_MAX, 8192, 2048] == [tile_bytes_for(size, 100) for size in (1 << 30, 2 << 20, 4096)]


def test_wide_offsets() -> None:
    """Offsets that do not fit into 32 bits even without their trailing zeros are kept in 64."""
    size = 1 << 40
    bases = np.array([16, size - 4096 - 48], dtype=np.int64)
    window = Window(1 << 41, size)
    regions = regions_of(window, window, [StridedCopy(bases, bases, (), 4096)])
    (table,) = tables_of(regions, capacity_bytes=1 << 16, warps=1, bulk_from_bytes=256)
    (region,) = written(table, (window, window))
    assert bases.tolist() == [region.start(run)[0] - window.address for run in range(2)]


def test_more_regions_than_a_launch_looks_through() -> None:
    """Many regions are dealt out over several launches."""
    window = Window(1 << 32, 1 << 20)
    copies = [blocks(size, count=2) for size in range(16, 16 * (REGIONS_MAX + 2), 16)]
    tables = list(tables_of(regions_of(window, window, copies), capacity_bytes=1 << 20, warps=1, bulk_from_bytes=256))
    assert [REGIONS_MAX, 1] == [len(table.regions) for table in tables]


def test_long_runs_need_fewer_blocks() -> None:
    """Long bulk copies take no more blocks than fill the memory; others take all; none has no tile."""
    assert 66 == blocks_for(one([blocks(4096, 1000)], 1 << 23), 132, 66)
    assert 16 == blocks_for(one([blocks(4096, 1000)], 1 << 23), 16, 66)
    assert 132 == blocks_for(one([blocks(256, 10000)], 1 << 23), 132, 66)
    assert 132 == blocks_for(one([blocks(4100, 1000)], 1 << 23), 132, 66)
    assert 3 == blocks_for(one([blocks(4096, 1)], 1 << 23), 132, 66)


def test_few_blocks_need_longer_runs() -> None:
    """The fewer blocks copy, the longer a run has to be to go in bulk."""
    assert [256, 512, 1024, 2048, 4096] == [bulk_run_bytes_min(count) for count in (132, 64, 32, 16, 8)]


def test_axes_are_written_outermost_first() -> None:
    """A run's axes are stepped along as the plan says, the last one fastest."""
    window = Window(1 << 32, 1 << 20)
    copy = StridedCopy(np.array([100]), np.array([50000]), (Axis(3, 1000, -2000), Axis(2, 40, 300)), 10)
    (table,) = tables_of(regions_of(window, window, [copy]), capacity_bytes=1 << 16, warps=1, bulk_from_bytes=256)
    (region,) = written(table, (window, window))
    expected = [(100 + i * 1000 + j * 40, 50000 - i * 2000 + j * 300) for i in range(3) for j in range(2)]
    assert expected == [tuple(at - window.address for at in region.start(run)) for run in range(region.run_count)]
