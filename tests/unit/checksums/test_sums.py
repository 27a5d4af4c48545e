"""What a source keeps and answers."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kvferry.core.checksums.formula import Words
from kvferry.core.checksums.regions import DigestRegion, digest_region
from kvferry.core.checksums.shares import every_of, sample
from kvferry.core.checksums.sums import BlocksToSum, BlockSums
from kvferry.core.errors import BlockError, InvalidArgument
from kvferry.device.native import digest_host
from tests.unit.checksums.reference import Bytes
from tests.unit.checksums.regions import layouts, memory_of
from tests.unit.native.memory import window

LISTED = np.array([5, 0, 9, 2, 14, 7], dtype=np.int64)


def kept(memory: Bytes, token_count: int, every: int = 1) -> BlockSums:
    """What a source with blocks of 4 tokens keeps."""
    layout = layouts(window_tokens=0)
    blocks = BlocksToSum.of(layout.groups[0], layout.ranks[0].placements[0], LISTED, token_count, every=every, seed=3)
    return BlockSums(blocks, digest_host(window(memory), blocks.region(), 1))


@given(st.integers(21, 24), st.integers(0, 24), st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**64 - 1))
@settings(max_examples=80, deadline=None)
def test_an_answer_is_what_the_reader_sums_itself(
    token_count: int, first_token: int, every: int, rows_max: int, seed: int
) -> None:
    """Rows of any number, of a sample and from any first token on, are the sums of the ranges that they name."""
    layout = layouts()
    memory = memory_of(layout, 0)
    sums = kept(memory, token_count)
    first_token = min(first_token, token_count)

    def digest(region: DigestRegion) -> Words:
        return digest_host(window(memory), region, 1)

    answer = sums.answer(first_token, every, seed, rows_max, digest)
    ranges = answer.ranges
    region = digest_region(layout.groups[0], layout.ranks[0].placements[0], LISTED, token_count, ranges)
    assert digest(region).tolist() == answer.sums.tolist()
    assert ranges.row_count <= rows_max
    assert all(first_token <= first for first in ranges.firsts.tolist())
    blocks = -(-token_count // 4) - first_token // 4 if first_token < token_count else 0
    assert -(-blocks // every) == sum(-(-count // 4) for count in ranges.counts.tolist()) or every == 1
    if every == 1:
        assert token_count - first_token == ranges.token_count


def test_the_sums_of_a_publication_are_those_of_its_start() -> None:
    """Memory that changed after it was summed does not change an answer about whole blocks."""
    layout = layouts()
    memory = memory_of(layout, 0)
    sums = kept(memory, 24)
    before = sums.answer(0, 1, 0, 9, lambda _region: pytest.fail("nothing is to be summed anew"))
    memory[:] = 0
    after = sums.answer(0, 1, 0, 9, lambda _region: pytest.fail("nothing is to be summed anew"))
    assert before.sums.tolist() == after.sums.tolist()


def test_few_tokens_need_few_blocks() -> None:
    """A list whose last block would be empty is refused."""
    with pytest.raises(BlockError):
        kept(memory_of(layouts(), 0), 20)


def test_a_list_without_the_first_blocks_holds_the_last_tokens() -> None:
    """Two listed blocks of a request of 24 tokens hold its tokens 16 to 24."""
    layout = layouts(window_tokens=8)
    blocks = BlocksToSum.of(layout.groups[0], layout.ranks[0].placements[0], LISTED[4:], 24, every=1, seed=0)
    assert [16, 20] == blocks.ranges.firsts.tolist()
    assert [4, 4] == blocks.ranges.counts.tolist()


@given(st.integers(0, 200), st.integers(1, 20), st.integers(0, 2**64 - 1))
def test_a_sample_has_one_of_each_so_many(count: int, every: int, seed: int) -> None:
    """Each run of ``every`` neighbours gives one, the last run too if it is shorter."""
    taken = sample(count, every, seed)
    assert list(range(-(-count // every))) == (taken // every).tolist()
    assert all(0 <= number < count for number in taken.tolist())


def test_samples_of_different_seeds_differ() -> None:
    """Every block is taken by one seed or another."""
    assert set(range(12)) == {number for seed in range(50) for number in sample(12, 4, seed).tolist()}


@pytest.mark.parametrize(("text", "every"), [("off", 0), ("full", 1), ("sampled:1", 1), ("sampled:16", 16)])
def test_shares_are_read(text: str, every: int) -> None:
    """``off``, ``full`` and ``sampled:N`` are known."""
    assert every == every_of("verify", text)


@pytest.mark.parametrize("text", ["", "on", "sampled", "sampled:0", "sampled:-1", "sampled:99999999", "FULL"])
def test_other_shares_are_refused(text: str) -> None:
    """Anything else is refused by name."""
    with pytest.raises(InvalidArgument, match="verify"):
        every_of("verify", text)
