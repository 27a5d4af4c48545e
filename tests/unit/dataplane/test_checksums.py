"""Comparisons and sums beside the event loop: their ends, their memory, and what cancels them."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from kvferry.core.checksums.comparisons import Comparison
from kvferry.core.checksums.formula import Words
from kvferry.core.checksums.regions import DigestRegion, TokenRanges
from kvferry.core.checksums.sums import BlocksToSum
from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.errors import (
    Cancelled,
    ChecksumMismatch,
    ChecksumsAbsent,
    DeadlineExceeded,
    KvferryError,
    LeaseEnded,
    NotReady,
    ResourceExhausted,
)
from kvferry.core.layouts import ElementType
from kvferry.device.native import CancelFlag
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry_dataplane.checksums.arrived import ArrivedSums
from kvferry_dataplane.checksums.published import PublishedSums
from kvferry_dataplane.checksums.threads import DigestThreads
from kvferry_dataplane.plan import Side
from kvferry_dataplane.reads.request import ReadOutcome, ReadRequest

SIDE = Side(dense_layout(DenseModel("m", 2, 2, 8, 4, ElementType.BFLOAT16), 8), 0, 1 << 20)
BLOCKS = {"full": np.array([3, 1], dtype=np.int64)}
SUMS_BYTES = 2 * 2 * 2 * 2 * 8
BOUND_S = 10.0


class Digester:
    """Gives zeros for sums, or waits until it is let go or cancelled."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.defects: list[BaseException] = []

    def digest(self, region: DigestRegion, flag: CancelFlag) -> Words:
        """Zeros."""
        deadline = time.monotonic() + BOUND_S
        while not self.free.wait(0.002):
            assert time.monotonic() < deadline
            if flag.raised:
                raise Cancelled("cancelled")
        return np.zeros((region.row_count, region.cell_offsets.size), dtype=np.uint64)


@pytest.fixture
def digester() -> Digester:
    """What sums."""
    return Digester()


@pytest.fixture
async def threads(digester: Digester) -> AsyncIterator[DigestThreads]:
    """Its threads."""
    made = DigestThreads(digester.digest, lambda: None, digester.defects.append)
    yield made
    await made.close()


def comparison(expected: int = 0) -> Comparison:
    """One cell of one token."""
    region = BlocksToSum.of(
        SIDE.layout.groups[0], SIDE.holds.placements[0], BLOCKS["full"][:1], 0, every=1, seed=0
    ).region()
    ranges = TokenRanges(np.array([0]), np.array([4]), np.array([0]), 1)
    sums = np.full((1, 8), expected, dtype=np.uint64)
    return Comparison(3, "full", region, ranges, (0, 1), 2, (0, 1), sums)


def request(seconds: float = BOUND_S) -> ReadRequest:
    """A read that has so long."""
    now = time.monotonic()
    return ReadRequest("t", (), 64, 1, now, now + seconds)


def outcome(failure: KvferryError | None = None) -> ReadOutcome:
    """How the copying ended."""
    return ReadOutcome("t", failure, 64, 1, 0.0, 0.0, 0.0, ())


async def compared(sums: ArrivedSums) -> ReadOutcome:
    """The final outcome of a read that was expected."""
    done: asyncio.Future[ReadOutcome] = asyncio.get_running_loop().create_future()
    assert sums.begin(outcome(), done.set_result)
    async with asyncio.timeout(BOUND_S):
        return await done


async def test_equal_sums_let_a_read_succeed(threads: DigestThreads) -> None:
    """A read whose sums are those of its source succeeds and says how much was compared."""
    sums = ArrivedSums(threads)
    sums.expect(request(), [comparison()])
    final = await compared(sums)
    assert final.failure is None
    assert comparison().region.total_bytes == final.compared_bytes
    assert not sums.begin(outcome(), lambda _: None)


async def test_other_sums_fail_it(threads: DigestThreads) -> None:
    """A read whose sums differ fails with the place, and says that nothing compared."""
    sums = ArrivedSums(threads)
    sums.expect(request(), [comparison(), comparison(7)])
    final = await compared(sums)
    assert isinstance(final.failure, ChecksumMismatch)
    assert "layer 0, K, head 0, tokens 0 to 4, from source rank 3 (8 of 8" in final.failure.message
    assert 0 == final.compared_bytes


async def test_a_read_that_failed_is_not_compared(threads: DigestThreads) -> None:
    """What ended before is told at once, and forgotten."""
    sums = ArrivedSums(threads)
    sums.expect(request(), [comparison()])
    assert not sums.begin(outcome(Cancelled("x")), lambda _: None)
    assert not sums.begin(outcome(), lambda _: None)


async def test_a_cancel_ends_a_comparison(threads: DigestThreads, digester: Digester) -> None:
    """A read that is cancelled while it is compared ends as cancelled."""
    digester.free.clear()
    sums = ArrivedSums(threads)
    sums.expect(request(), [comparison()])
    asyncio.get_running_loop().call_later(0.01, sums.cancel, "t")
    assert isinstance((await compared(sums)).failure, Cancelled)


@pytest.mark.parametrize("seconds", [0.02, -1.0])
async def test_a_deadline_ends_a_comparison(threads: DigestThreads, digester: Digester, seconds: float) -> None:
    """A read whose deadline passes while it is compared ends as that."""
    digester.free.clear()
    sums = ArrivedSums(threads)
    sums.expect(request(seconds), [comparison()])
    assert isinstance((await compared(sums)).failure, DeadlineExceeded)


async def test_closed_threads_fail_what_comes(threads: DigestThreads) -> None:
    """A read that ends while the data plane stops is not taken for compared."""
    sums = ArrivedSums(threads)
    sums.expect(request(), [comparison()])
    await threads.close()
    assert isinstance((await compared(sums)).failure, NotReady)


async def test_a_defect_is_told(threads: DigestThreads, digester: Digester) -> None:
    """What is no error of ours ends the process, not only its thread."""
    threads.start(lambda _digest: 1 // 0, lambda _result: None)
    async with asyncio.timeout(BOUND_S):
        while not digester.defects:  # noqa: ASYNC110 - what is waited for happens on a thread
            await asyncio.sleep(0.002)
    assert isinstance(digester.defects[0], ZeroDivisionError)


async def published(sums: PublishedSums, name: str = "p") -> KvferryError | None:
    """Sum a lease; what went wrong."""
    done: asyncio.Future[KvferryError | None] = asyncio.get_running_loop().create_future()
    sums.begin(name, sums.check(name, SIDE, BLOCKS, 0), done.set_result)
    async with asyncio.timeout(BOUND_S):
        return await done


def scope(every: int = 1) -> neg.ChecksumScope:
    """Of everything."""
    return neg.ChecksumScope(every=every)


async def test_sums_are_kept_for_as_long_as_the_lease(threads: DigestThreads) -> None:
    """Memory is counted while a lease holds; at the bound another is refused, after its end it is not."""
    sums = PublishedSums(threads, 1, 2 * SUMS_BYTES - 1)
    assert await published(sums) is None
    assert SUMS_BYTES == sums.held_bytes
    with pytest.raises(ResourceExhausted, match="checksum_bytes"):
        sums.check("q", SIDE, BLOCKS, 0)
    sums.forget("p")
    assert 0 == sums.held_bytes
    assert await published(sums, "q") is None
    with pytest.raises(LeaseEnded):
        sums.answer("p", scope(), lambda _: None)


async def test_a_lease_that_ends_while_it_is_summed_is_no_lease(threads: DigestThreads, digester: Digester) -> None:
    """The sums of a lease that ended before they were there end as cancelled."""
    digester.free.clear()
    sums = PublishedSums(threads, 1, 1 << 20)
    asyncio.get_running_loop().call_later(0.01, sums.forget, "p")
    assert isinstance(await published(sums), Cancelled)
    assert 0 == sums.held_bytes


async def test_fewer_sums_than_are_asked_for_are_absent(threads: DigestThreads) -> None:
    """A source that sums nothing, or one block in four, does not answer who wants more."""
    with pytest.raises(ChecksumsAbsent):
        PublishedSums(threads, 0, 1 << 20).answer("p", scope(), lambda _: None)
    sampled = PublishedSums(threads, 4, 1 << 20)
    assert await published(sampled) is None
    with pytest.raises(ChecksumsAbsent, match="one block in 4"):
        sampled.answer("p", scope(3), lambda _: None)
