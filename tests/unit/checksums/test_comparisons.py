"""Sources' sums against what arrives, for any pair of layouts."""

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from kvferry.core.checksums.comparisons import Comparison, comparisons_of
from kvferry.core.checksums.formula import Words
from kvferry.core.checksums.regions import DigestRegion, TokenRanges
from kvferry.core.checksums.sums import BlocksToSum, BlockSums, GroupSums
from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.errors import ChecksumsAbsent, InvalidArgument
from kvferry.core.layouts import ElementType, LayerGroup
from kvferry.core.planning.planner import PairPlan
from kvferry.core.planning.tokens import TokenRange
from kvferry.device.native import digest_host
from tests.unit.native.memory import window
from tests.unit.planning import reference
from tests.unit.planning.random_layouts import Case, random_case
from tests.unit.planning.reference import Pool


def digest(pool: Pool, region: DigestRegion) -> Words:
    """The sums of a region of a pool."""
    found: Words = digest_host(window(pool), region, 1)
    return found


def first_token(group: LayerGroup, tokens: TokenRange) -> int:
    """The first token that a destination reads of a group, as its control says."""
    kept = tokens.total - group.window_tokens if group.window_tokens else 0
    return min(max(tokens.start, kept), tokens.total)


def said_by(case: Case, rank: int, pool: Pool, name: str, *, every: int, rows_max: int) -> GroupSums:
    """What a source rank says of a group."""
    group, placement = case.source.group(name), case.source.ranks[rank].placement(name)
    assert placement is not None
    listed = np.array(case.source_blocks[name], dtype=np.int64)
    blocks = BlocksToSum.of(group, placement, listed, case.tokens.total, every=1, seed=0)
    sums = BlockSums(blocks, digest(pool, blocks.region()))
    start = first_token(case.destination.group(name), case.tokens)
    return sums.answer(start, every, 5, rows_max, lambda region: digest(pool, region))


def comparisons(
    case: Case, rank: int, sources: dict[int, Pool], *, every: int = 1, rows_max: int = 9
) -> list[Comparison]:
    """All comparisons of a destination rank."""
    pair = PairPlan(
        case.source, case.destination, rank, source_data_parallel_rank=case.shards[0], replica_shift=case.shift
    )
    found: list[Comparison] = []
    for number in pair.source_ranks:
        for name, listed in case.destination_blocks.items():
            if pair.shares(number, name):
                sums = said_by(case, number, sources[number], name, every=every, rows_max=rows_max)
                blocks, held = np.array(listed, dtype=np.int64), len(case.source_blocks[name])
                found += comparisons_of(pair, number, name, sums, blocks, held, case.tokens, every=every)
    return found


def differences(found: list[Comparison], pool: Pool) -> list[str]:
    """What differs."""
    texts = [comparison.difference(digest(pool, comparison.region)) for comparison in found]
    return [text for text in texts if text]


@settings(max_examples=settings().max_examples, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 4))
def test_what_arrived_whole_compares_and_one_bit_less_does_not(seed: int, rows_max: int) -> None:
    """For any pair of layouts and any request, all bytes that are read compare, and a flipped bit in any is found."""
    case = random_case(seed)
    assume(case.tokens.stop == case.tokens.total)
    rng = np.random.default_rng(seed)
    lists = case.source_blocks, case.destination_blocks
    worlds = reference.build(case.source, case.destination, lists, case.tokens, case.shards, rng)
    for rank, pool in worlds.expected.items():
        found = comparisons(case, rank, worlds.source, rows_max=rows_max)
        assert int(worlds.written[rank].sum()) == sum(comparison.region.total_bytes for comparison in found)
        assert [] == differences(found, pool)
        for written in (0, 1):
            bytes_at = np.flatnonzero(worlds.written[rank] == written)
            if bytes_at.size:
                pool[rng.choice(bytes_at)] ^= 1 << rng.integers(8)
                assert written == len(differences(found, pool))


@settings(max_examples=settings().max_examples, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(2, 4))
def test_a_sample_compares_what_it_names(seed: int, every: int) -> None:
    """A sample of what arrived whole compares, and takes no more than all."""
    case = random_case(seed)
    assume(case.tokens.stop == case.tokens.total)
    rng = np.random.default_rng(seed)
    lists = case.source_blocks, case.destination_blocks
    worlds = reference.build(case.source, case.destination, lists, case.tokens, case.shards, rng)
    for rank, pool in worlds.expected.items():
        found = comparisons(case, rank, worlds.source, every=every)
        assert [] == differences(found, pool)
        assert int(worlds.written[rank].sum()) >= sum(comparison.region.total_bytes for comparison in found)


MODEL = DenseModel("m", 2, 2, 8, 4, ElementType.BFLOAT16)
PAIR = PairPlan(dense_layout(MODEL, 8), dense_layout(MODEL, 8), 0)
LISTED = np.array([3, 1], dtype=np.int64)


def sums_of(firsts: list[int], counts: list[int], rows: list[int], row_count: int, cells: int = 8) -> GroupSums:
    """Sums of nothing in particular."""
    lists = [np.array(part, dtype=np.int64) for part in (firsts, counts, rows)]
    ranges = TokenRanges(lists[0], lists[1], lists[2], row_count)
    return GroupSums(ranges, np.zeros((row_count, cells), dtype=np.uint64))


@pytest.mark.parametrize(
    "sums",
    [
        sums_of([0], [9], [0], 1),
        sums_of([-1], [8], [0], 1),
        sums_of([0, 2], [4, 4], [0, 0], 1),
        sums_of([4, 0], [4, 4], [0, 0], 1),
        sums_of([0, 4], [4, 0], [0, 0], 1),
        sums_of([0], [8], [1], 1),
        sums_of([0], [8], [-1], 1),
        sums_of([0], [8], [0], 1, cells=7),
        sums_of([0, 4], [8], [0], 1),
    ],
)
def test_sums_that_do_not_fit_the_read_are_refused(sums: GroupSums) -> None:
    """Ranges outside the tokens that are read, out of order or empty, rows that are not there and missing cells."""
    with pytest.raises(InvalidArgument):
        comparisons_of(PAIR, 0, "full", sums, LISTED, 2, TokenRange.whole(8), every=2)


def test_sums_of_a_part_are_not_all() -> None:
    """Where everything is to be compared, sums of fewer tokens than are read are refused."""
    with pytest.raises(ChecksumsAbsent):
        comparisons_of(PAIR, 0, "full", sums_of([0], [7], [0], 1), LISTED, 2, TokenRange.whole(8), every=1)
