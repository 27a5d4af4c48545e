"""A plan that would leave its windows is refused before a byte is copied, whatever it says."""

import numpy as np
import pytest

from kvferry.core.errors import InvalidArgument
from kvferry.device.copying import Copies, Window
from kvferry.device.native import ceiling_copy
from tests.unit.native.memory import copier, flat, strided, window

BIG = (1 << 63) - 1
SIZE = 1000


@pytest.mark.parametrize(
    ("piece", "field", "value"),
    [
        ((-1, 0, 10), "copies[1].source_offsets[1]", "-1"),
        ((991, 0, 10), "copies[1].source_offsets[1]", "991"),
        ((BIG, 0, 10), "copies[1].source_offsets[1]", str(BIG)),
        ((-BIG - 1, 0, 10), "copies[1].source_offsets[1]", str(-BIG - 1)),
        ((1001, 0, 0), "copies[1].source_offsets[1]", "1001"),
        ((0, -1, 10), "copies[1].destination_offsets[1]", "-1"),
        ((0, 991, 10), "copies[1].destination_offsets[1]", "991"),
        ((0, BIG, 1), "copies[1].destination_offsets[1]", str(BIG)),
        ((0, 0, -1), "copies[1].lengths[1]", "-1"),
        ((0, 0, -BIG - 1), "copies[1].lengths[1]", str(-BIG - 1)),
        ((0, 0, 1001), "copies[1].source_offsets[1]", "0"),
        ((0, 0, BIG), "copies[1].source_offsets[1]", "0"),
        ((BIG, BIG, BIG), "copies[1].source_offsets[1]", str(BIG)),
    ],
)
def test_a_run_that_leaves_is_named(piece: tuple[int, int, int], field: str, value: str) -> None:
    """Each end of each window holds, also where sums exceed 64 bits."""
    refuse([flat((0, 0, 5)), flat((0, 10, 5), piece)], field, value)


@pytest.mark.parametrize(
    ("base", "axes", "run_bytes", "field", "value"),
    [
        ((-1, 0), [(2, 10, 10)], 5, "copies[0].source_bases[1]", "-1"),
        ((0, -1), [(2, 10, 10)], 5, "copies[0].destination_bases[1]", "-1"),
        ((986, 0), [(2, 10, 10)], 5, "copies[0].source_bases[1]", "986"),
        ((0, 986), [(2, 10, 10)], 5, "copies[0].destination_bases[1]", "986"),
        ((9, 500), [(2, -10, 10)], 5, "copies[0].source_bases[1]", "9"),
        ((500, 9), [(2, 10, -10)], 5, "copies[0].destination_bases[1]", "9"),
        ((500, 500), [(2, 400, 10), (3, 100, 1)], 5, "copies[0].source_bases[1]", "500"),
        ((0, 0), [(BIG, BIG, 1)], 1, "copies[0].source_bases[0]", "300"),
        ((0, 0), [(BIG, 0, BIG)], 1, "copies[0].destination_bases[0]", "300"),
        ((0, 0), [(BIG, BIG, 0), (BIG, -BIG, 0)], 1, "copies[0].source_bases[0]", "300"),
        ((0, 0), [(BIG, BIG, 0)] * 2, 1, "copies[0].source_bases[0]", "300"),
        ((0, 0), [(BIG, 0, 0)] * 3, 1, "copies[0].axes[2]", str(BIG)),
        ((0, 0), [(BIG, 0, 0)] * 2, BIG, "copies[0].axes[1]", str(BIG)),
        ((0, 0), [(2, 1, 1), (-1, 1, 1)], 1, "copies[0].axes[1].length", "-1"),
        ((0, 0), [(2, 3, 3)] * 17, 1, "copies[0].axes", "17"),
        ((0, 0), [], -1, "copies[0].run_bytes", "-1"),
        ((0, 0), [], BIG, "copies[0].source_bases[0]", "300"),
        ((0, 0), [(BIG, BIG - 1, BIG - 1)], BIG - 1, "copies[0].source_bases[0]", "300"),
    ],
)
def test_a_region_that_leaves_is_named(
    base: tuple[int, int], axes: list[tuple[int, int, int]], run_bytes: int, field: str, value: str
) -> None:
    """The farthest corner of each region counts, on both sides, also where products exceed 64 and 128 bits."""
    refuse([strided([(300, 300), base], axes, run_bytes)], field, value)


def test_writing_more_than_there_is_is_refused() -> None:
    """A plan that would write bytes more than once, and so might never end, is refused."""
    refuse([flat((0, 0, 900)), strided([(0, 0)], [(1 << 40, 0, 0)], 1)], "copies[1]", "")
    refuse([strided([(0, 0)], [(BIG, 0, 0), (BIG, 0, 0)], 1)], "copies[0]", "")
    refuse([flat(*[(0, 0, 1)] * 1001)], "copies[0]", "")


def test_numbers_beyond_64_bits_are_refused() -> None:
    """Strides come as Python's own numbers, which may be of any size."""
    refuse([flat(), strided([(0, 0)], [(1 << 63, 1, 1)], 1)], "copies[1]", None)


def test_lists_must_match() -> None:
    """A run or region with an offset missing is refused."""
    runs, region = flat((0, 0, 1), (1, 1, 1)), strided([(0, 0), (1, 1)], [], 1)
    one = np.zeros(1, dtype=np.int64)
    refuse([type(runs)(runs.source_offsets, one, runs.lengths)], "copies[0].lengths", "2")
    refuse([type(region)(region.source_bases, one, (), 1)], "copies[0].destination_bases", "1")


@pytest.mark.parametrize(
    ("source", "destination", "field"),
    [
        ((4096, 100), (4195, 100), "destination.address"),
        ((4195, 100), (4096, 100), "destination.address"),
        ((4096, 100), (4096, 100), "destination.address"),
        ((4096, 1 << 63), (8192, 100), "destination.address"),
        (((1 << 64) - 10, 100), (4096, 10), "source.size_bytes"),
        ((4096, 10), ((1 << 64) - 10, 100), "destination.size_bytes"),
        ((0, 10), (4096, 10), "source.address"),
    ],
)
def test_windows_must_not_overlap_or_wrap(source: tuple[int, int], destination: tuple[int, int], field: str) -> None:
    """Copies within one memory would depend on their order; windows end in the address space."""
    with pytest.raises(InvalidArgument) as caught:
        copier().submit(Window(*source), Window(*destination), [])
    assert field == caught.value.metadata["field"]


@pytest.mark.parametrize("bad", [Window(-1, 5), Window(1 << 64, 5), Window(4096, -5), Window(4096, 1 << 64)])
def test_windows_are_no_negative_numbers(bad: Window) -> None:
    """A window that is no address and size is refused by name."""
    good = window(np.zeros(8, dtype=np.uint8))
    for pair, field in (((bad, good), "source"), ((good, bad), "destination")):
        with pytest.raises(InvalidArgument) as caught:
            copier().submit(*pair, [])
        assert field == caught.value.metadata["field"]


def test_the_ceiling_checks_too() -> None:
    """The benchmarks' plain loop does not leave the windows either."""
    source, destination = np.zeros(10, dtype=np.uint8), np.zeros(10, dtype=np.uint8)
    with pytest.raises(InvalidArgument):
        ceiling_copy(window(source), window(destination), flat((0, 5, 6)), 1)
    with pytest.raises(InvalidArgument):
        ceiling_copy(window(source), window(destination), flat((0, 5, 5)), 0)


def refuse(copies: list[Copies], field: str, value: str | None) -> None:
    """The refusal names field and value, and no byte was copied."""
    source, destination = np.ones(SIZE, dtype=np.uint8), np.zeros(SIZE, dtype=np.uint8)
    with pytest.raises(InvalidArgument) as caught:
        copier().submit(window(source), window(destination), copies)
    assert field == caught.value.metadata["field"]
    if value is not None:
        assert value == caught.value.metadata["value"]
    assert not destination.any()
