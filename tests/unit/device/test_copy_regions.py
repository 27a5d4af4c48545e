"""Copies become regions that stay inside the windows, or are refused."""

import numpy as np
import pytest

from kvferry.core.errors import InvalidArgument
from kvferry.core.planning.copies import Axis, CopyPlan, StridedCopy, steps
from kvferry.device import copy_regions
from kvferry.device.copy_regions import AXES_MAX, CHUNK_BYTES, folded, regions_of
from kvferry.device.copying import Copies, Window

SOURCE = Window(1 << 20, 1000)
DESTINATION = Window(1 << 30, 2000)


def offsets(*values: int) -> "np.typing.NDArray[np.int64]":
    """Offsets as plans hold them."""
    return np.array(values, dtype=np.int64)


def test_touching_runs_fold() -> None:
    """Axes along which both sides run on become part of the run; others that step together become one."""
    axes = (Axis(3, 4096, 2048), Axis(5, 512, 256), Axis(1, 7, 9), Axis(4, 64, 32), Axis(2, 16, 16))
    assert ((Axis(3, 4096, 2048), Axis(5, 512, 256), Axis(4, 64, 32)), 32) == folded(axes, 16)
    assert ((Axis(15, 512, 256),), 32) == folded((Axis(3, 2560, 1280), Axis(5, 512, 256)), 32)
    assert ((), 240) == folded((Axis(3, 80, 80), Axis(5, 16, 16)), 16)


@pytest.mark.parametrize(
    ("copy", "named"),
    [
        (StridedCopy(offsets(0, 901), offsets(0, 100), (), 100), "copies[1].source[1]"),
        (StridedCopy(offsets(0, 100), offsets(0, 1901), (), 100), "copies[1].destination[1]"),
        (StridedCopy(offsets(-1), offsets(0), (), 1), "copies[1].source[0]"),
        (StridedCopy(offsets(0), offsets(-(1 << 63)), (), 1), "copies[1].destination[0]"),
        (StridedCopy(offsets(1 << 62), offsets(0), (Axis(1 << 20, 1 << 62, 1),), 1), "copies[1].source[0]"),
        (StridedCopy(offsets(0), offsets(50), (Axis(3, 1, -26),), 1), "copies[1].destination[0]"),
        (StridedCopy(offsets(0), offsets(0), (Axis(11, 100, 1),), 1), "copies[1].source[0]"),
        (StridedCopy(offsets(0), offsets(0), (), 1001), "copies[1].source[0]"),
        (CopyPlan(offsets(0, 995), offsets(0, 9), offsets(5, 6)), "copies[1].source[1]"),
        (CopyPlan(offsets(0, 5), offsets(0, 1999), offsets(5, 2)), "copies[1].destination[1]"),
        (CopyPlan(offsets(0, 5), offsets(-3, 7), offsets(5, 2)), "copies[1].destination[0]"),
        (CopyPlan(offsets(0, (1 << 63) - 1), offsets(0, 9), offsets(5, 6)), "copies[1].source[1]"),
        (CopyPlan(offsets(0, 5), offsets(0, 9), offsets(5, (1 << 63) - 1)), "copies[1].source[1]"),
        (CopyPlan(offsets(0, 5), offsets(0, 9), offsets(5, -1)), "copies[1].lengths"),
        (CopyPlan(offsets(0, 5), offsets(0), offsets(5, 1)), "copies[1]"),
        (StridedCopy(offsets(0), offsets(0, 1), (), 1), "copies[1]"),
        (StridedCopy(offsets(0), offsets(0), (Axis(2, 0, 0),) * (AXES_MAX + 1), 1), "copies[1].axes"),
        (StridedCopy(offsets(0), offsets(0), (Axis(-1, 0, 0),), 1), "copies[1]"),
        (StridedCopy(offsets(0), offsets(0), (Axis(1 << 30, 0, 0), Axis(1 << 30, 0, 1)), 1), "copies[1]"),
    ],
)
def test_what_leaves_a_window_is_refused(copy: Copies, named: str) -> None:
    """A copy that leaves a window or contradicts itself is refused, and the error names the copy and the piece."""
    fine = StridedCopy(offsets(0, 900), offsets(1900, 0), (), 100)
    with pytest.raises(InvalidArgument) as refused:
        regions_of(SOURCE, DESTINATION, [fine, copy])
    assert named == refused.value.metadata["field"]


def test_whole_windows_are_allowed() -> None:
    """Runs that end with the window, also backwards, are inside."""
    copies: list[Copies] = [
        StridedCopy(offsets(900), offsets(1900), (Axis(10, -100, -100),), 100),
        CopyPlan(offsets(0, 600), offsets(1400, 0), offsets(600, 400)),
    ]
    assert [1000, 400, 600] == [region.total_bytes for region in regions_of(SOURCE, DESTINATION, copies)]


def test_nothing_gives_no_region() -> None:
    """Copies of no byte give no region."""
    nothing: list[Copies] = [
        StridedCopy(offsets(), offsets(), (), 100),
        StridedCopy(offsets(5), offsets(5), (), 0),
        StridedCopy(offsets(5), offsets(5), (Axis(0, 1, 1),), 7),
        CopyPlan(offsets(5), offsets(5), offsets(0)),
        CopyPlan(offsets(), offsets(), offsets()),
    ]
    assert [] == regions_of(SOURCE, DESTINATION, nothing)


@pytest.mark.parametrize(
    ("copy", "unit"),
    [
        (StridedCopy(offsets(0, 32), offsets(64, 16), (), 48), 16),
        (StridedCopy(offsets(0, 32), offsets(64, 24), (), 48), 8),
        (StridedCopy(offsets(0, 32), offsets(64, 16), (), 44), 4),
        (StridedCopy(offsets(0, 32), offsets(64, 16), (Axis(2, 64, -2),), 16), 2),
        (StridedCopy(offsets(1), offsets(1), (), 16), 1),
    ],
)
def test_the_unit_divides_everything(copy: StridedCopy, unit: int) -> None:
    """Accesses are as wide as all addresses and lengths allow."""
    (region,) = regions_of(SOURCE, DESTINATION, [copy])
    assert unit == region.unit_bytes


def test_few_lengths_become_uniform_regions() -> None:
    """A flat plan with few lengths becomes one region for each of them."""
    plan = CopyPlan(offsets(0, 100, 200, 300), offsets(300, 200, 100, 0), offsets(16, 32, 16, 32))
    assert [(16, 2, None), (32, 2, None)] == [
        (region.run_bytes, region.run_count, region.lengths) for region in regions_of(SOURCE, DESTINATION, [plan])
    ]


def test_many_lengths_become_regions_of_similar_runs() -> None:
    """A flat plan with many lengths becomes regions whose runs are more than half as long as the longest."""
    lengths = np.arange(0, 3 * CHUNK_BYTES, 777, dtype=np.int64)
    ends = np.cumsum(lengths)
    window = Window(1 << 30, int(ends[-1]))
    regions = regions_of(window, window, [CopyPlan(ends - lengths, ends - lengths, lengths)])
    assert int(lengths.sum()) == sum(region.total_bytes for region in regions)
    for region in regions:
        assert region.lengths is not None
        assert region.run_bytes <= CHUNK_BYTES
        assert region.run_bytes < 2 * int(region.lengths.min())
        assert int(region.lengths.max()) <= region.run_bytes


@pytest.mark.parametrize("runs_max", [1, 5, 6, 7, 100])
def test_more_runs_than_the_kernel_counts_are_split(monkeypatch: pytest.MonkeyPatch, runs_max: int) -> None:
    """A region of too many runs comes in parts that together are the same runs."""
    monkeypatch.setattr(copy_regions, "RUNS_MAX", runs_max)
    copy = StridedCopy(offsets(0, 3, 500), offsets(700, 300, 900), (Axis(7, 60, -30), Axis(3, 20, 9)), 2)
    regions = regions_of(SOURCE, DESTINATION, [copy])
    assert all(region.run_count <= runs_max for region in regions)
    runs = [
        (int(source) + i, int(destination) + j)
        for region in regions
        for source, destination in zip(region.source_bases, region.destination_bases, strict=True)
        for i, j in zip(*(side.tolist() for side in steps(region.axes)), strict=True)
    ]
    expected = [
        (source + i * 60 + j * 20, destination - i * 30 + j * 9)
        for source, destination in ((0, 700), (3, 300), (500, 900))
        for i in range(7)
        for j in range(3)
    ]
    assert sorted(expected) == sorted(runs)
