"""The native digest, against the sums by their definition."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from kvferry.core.checksums.regions import DigestRegion, TokenRanges, digest_region
from kvferry.core.errors import Cancelled, ConfigInvalid, InvalidArgument
from kvferry.device.native import CancelFlag, digest_host, digest_instruction_sets
from tests.unit.checksums.reference import Bytes, sums_of
from tests.unit.checksums.regions import layouts, memory_of, regions
from tests.unit.native.memory import guarded, window


@given(regions())
@settings(max_examples=60, deadline=None)
def test_every_instruction_set_gives_the_defined_sums(drawn: tuple[DigestRegion, Bytes]) -> None:
    """Whatever the layout, element type and tokens, each instruction set gives the sums of the definition."""
    region, memory = drawn
    expected = sums_of(memory, region)
    for name in digest_instruction_sets():
        assert expected.tolist() == digest_host(window(memory), region, 1, instruction_set=name).tolist(), name


def test_threads_share_the_work_and_give_the_same_sums() -> None:
    """A region of some MiB has the same sums with one thread and with four."""
    region, memory = large_region()
    assert region.total_bytes > 4 << 20
    assert digest_host(window(memory), region, 1).tolist() == digest_host(window(memory), region, 4).tolist()


@pytest.mark.parametrize("at_end", [False, True])
def test_nothing_outside_the_window_is_read(at_end: bool) -> None:
    """Runs that are no multiple of a vector are summed beside pages that must not be touched."""
    region, memory = small_region(head_dim=3)
    placed = guarded(memory.size, at_end=at_end)
    placed[:] = memory
    for name in digest_instruction_sets():
        assert sums_of(memory, region).tolist() == digest_host(window(placed), region, 1, instruction_set=name).tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"bases": np.array([1 << 40])},
        {"bases": np.array([-1])},
        {"rows": np.array([1])},
        {"counts": np.array([1 << 40])},
        {"counts": np.array([0])},
        {"tokens": np.array([-1])},
        {"token_stride": 1 << 40},
        {"run_elements": 1 << 40},
        {"element_bytes": 3},
        {"inner": 5},
        {"bases": np.array([0, 0])},
    ],
)
def test_a_region_that_leaves_its_bounds_is_refused(change: dict[str, object]) -> None:
    """A segment, row or shape that is out of bounds is refused with its name before anything is read."""
    region, memory = small_region()
    with pytest.raises(InvalidArgument):
        digest_host(window(memory), replace(region, **change), 1)  # type: ignore[arg-type]


def test_a_raised_flag_ends_a_digest() -> None:
    """A digest whose flag is raised ends as cancelled."""
    region, memory = small_region()
    flag = CancelFlag()
    flag.raise_()
    with pytest.raises(Cancelled):
        digest_host(window(memory), region, 1, flag)


def test_wrong_options_are_refused_by_name() -> None:
    """No threads, or an instruction set that is not there, are refused."""
    region, memory = small_region()
    with pytest.raises(ConfigInvalid, match="thread_count"):
        digest_host(window(memory), region, 0)
    with pytest.raises(ConfigInvalid, match="instruction_set"):
        digest_host(window(memory), region, 1, instruction_set="none")


def small_region(head_dim: int = 8) -> tuple[DigestRegion, Bytes]:
    """One block."""
    layout = layouts(head_dim=head_dim)
    ranges = TokenRanges(np.array([0]), np.array([4]), np.array([0]), 1)
    placement = layout.ranks[0].placements[0]
    return digest_region(layout.groups[0], placement, np.array([15]), 4, ranges), memory_of(layout, 0)


def large_region() -> tuple[DigestRegion, Bytes]:
    """16 blocks of 64 tokens."""
    layout = layouts(head_dim=512, tokens_per_block=64)
    firsts = np.arange(16) * 64
    ranges = TokenRanges(firsts, np.full(16, 64), np.arange(16) % 2, 2)
    region = digest_region(layout.groups[0], layout.ranks[0].placements[0], np.arange(16)[::-1].copy(), 1024, ranges)
    return region, memory_of(layout, 0)
