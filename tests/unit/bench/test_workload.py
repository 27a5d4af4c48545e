"""What is measured: the same blocks for every method, and summaries that say what they claim."""

import torch

from kvferry.bench.figures import Timing
from kvferry.bench.memory import fill, first_wrong_block, poison
from kvferry.bench.workload import CONTIGUOUS, Workload, bench_layout
from kvferry.core.layouts import block_bytes

WORKLOAD = Workload(block_bytes=4096, total_bytes=4096 * 6, pool_bytes=4096 * 16, seed=3)


def copied(workload: Workload) -> torch.Tensor:
    """A destination pool after a right read."""
    source, destination = (torch.zeros(workload.pool_bytes, dtype=torch.uint8) for _ in range(2))
    fill(source, seed=9)
    poison(destination)
    size = workload.block_bytes
    for there, here in zip(workload.source_blocks(), workload.destination_blocks(), strict=True):
        destination[here * size : (here + 1) * size] = source[there * size : (there + 1) * size]
    return destination


def test_blocks_are_distinct_and_the_same_in_every_process() -> None:
    """Two equal workloads choose equal blocks, each once, in different orders on the two sides."""
    again = Workload(**{field: getattr(WORKLOAD, field) for field in WORKLOAD.__slots__})
    assert WORKLOAD.source_blocks().tolist() == again.source_blocks().tolist()
    assert 6 == len(set(WORKLOAD.destination_blocks().tolist()))
    assert WORKLOAD.source_blocks().tolist() != WORKLOAD.destination_blocks().tolist()


def test_a_right_read_is_accepted() -> None:
    """A destination that holds every source block has no wrong block."""
    assert first_wrong_block(copied(WORKLOAD), WORKLOAD, seed=9) is None


def test_one_wrong_byte_is_found() -> None:
    """A single byte that differs names its block."""
    destination, block = copied(WORKLOAD), int(WORKLOAD.destination_blocks()[4])
    destination[block * 4096 + 17] ^= 1
    assert block == first_wrong_block(destination, WORKLOAD, seed=9)


def test_a_block_of_the_layout_is_one_run() -> None:
    """The declared layout's blocks have the measured size, one after the other without gaps."""
    layout = bench_layout(64 << 10, 1 << 20)
    placement = layout.ranks[0].placements[0]
    sizes = (block_bytes(layout.groups[0], placement), placement.strides.block, placement.block_count)
    assert (65536, 65536, 16) == sizes


def test_quantiles_are_rounds_that_were_measured() -> None:
    """The median of a hundred rounds is the fiftieth, the 99th centile the ninety-ninth."""
    timing = Timing(tuple(range(100, 0, -1)))
    assert (50, 99, 1) == (timing.quantile_s(0.5), timing.quantile_s(0.99), timing.quantile_s(0.001))


def test_contiguous_blocks_are_the_first_on_both_sides() -> None:
    """In contiguous order block n goes to block n."""
    workload = Workload(block_bytes=4096, total_bytes=4096 * 3, pool_bytes=4096 * 16, seed=3, order=CONTIGUOUS)
    assert [0, 1, 2] == workload.source_blocks().tolist() == workload.destination_blocks().tolist()


def test_the_slowest_round_is_the_least_rate() -> None:
    """Rates are bytes over seconds: the longest round gives the minimum."""
    assert {"median": 2.0, "min": 1.0, "max": 4.0} == Timing((1.0, 0.5, 0.25)).rates(10**9)
