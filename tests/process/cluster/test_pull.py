"""Pulls between two real workers of two ranks each."""

import asyncio
import time

import pytest

from kvferry import PullFailed
from kvferry.core.errors import (
    BlockError,
    Cancelled,
    ChecksumsAbsent,
    Fenced,
    HandleForged,
    HandleMalformed,
    KvferryError,
    LeaseEnded,
    PeerError,
    RequestIdReused,
)
from kvferry.core.handles import new_key, payload_of, seal
from kvferry.core.reasons import Reason
from kvferry.launch.metrics import read_metric
from kvferry.publication.v1.publication_pb2 import HandlePayload
from tests.process.cluster.pair import BLOCK_BYTES, BLOCK_COUNT, RANKS, Pair, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_bytes_arrive(pair: Pair) -> None:
    """A pull delivers exactly the published bytes, and says how."""
    source, destination = [7, 3, 500, 501], [10, 20, 30, 31]
    await pair.fill(source, seed=1)
    publication = await pair.publish(source)
    result = await pair.destination.pull(publication.handle, destination, timeout_s=10)
    assert 0 == await pair.differing(source, destination)
    assert RANKS * 4 * BLOCK_BYTES == result.received_bytes
    assert "local" == result.path
    assert "released" == (await pair.source.wait_ended(publication, timeout_s=5)).state


async def test_a_hundred_at_once(pair: Pair) -> None:
    """A hundred concurrent pulls each deliver their own bytes, and nothing stays pinned."""
    await pair.fill(range(400), seed=2)
    await pair.poison(range(400), 0xEE)
    publications = [await pair.publish(range(4 * n, 4 * n + 4)) for n in range(100)]
    await asyncio.gather(
        *(
            pair.destination.pull(publication.handle, [399 - 4 * n - k for k in range(4)], timeout_s=30)
            for n, publication in enumerate(publications)
        )
    )
    assert 0 == await pair.differing(range(400), [399 - n for n in range(400)])

    async def none_live() -> bool:
        return await pair.live_publications() == 0

    await eventually(none_live, "all publications ended after their reader")


async def test_who_compares_is_refused_by_a_source_that_sums_nothing(pair: Pair) -> None:
    """Without checksums at the source, a pull that compares is refused, and one that does not is served."""
    publication = await pair.publish([1, 2])
    with pytest.raises(ChecksumsAbsent):
        await pair.destination.pull(publication.handle, [1, 2], 10.0, verify="sampled:8")
    result = await pair.destination.pull(publication.handle, [1, 2], 10.0, verify="off")
    assert 2 * RANKS * BLOCK_BYTES == result.received_bytes
    assert 0 == result.compared_bytes


async def test_the_same_request_is_one_transfer(pair: Pair) -> None:
    """A request id that comes twice names one transfer; with another body it is refused."""
    publication = await pair.publish([1, 2], readers=0)
    first = await pair.destination.pull(publication.handle, [1, 2], request_id="same", timeout_s=10)
    again = await pair.destination.pull(publication.handle, [1, 2], request_id="same", timeout_s=10)
    assert first.name == again.name
    with pytest.raises(RequestIdReused) as caught:
        await pair.destination.pull(publication.handle, [3, 4], request_id="same", timeout_s=10)
    assert ("request_id", "same") == (caught.value.metadata["field"], caught.value.metadata["value"])
    await pair.source.release(publication)


async def test_an_expired_publication_is_refused(pair: Pair) -> None:
    """A lease that ran out before the pull gives LEASE_ENDED, and the blocks stay as they were."""
    await pair.poison([5], 0xAB)
    publication = await pair.publish([5], ttl_s=0.2)
    ended = await pair.source.wait_ended(publication, timeout_s=5)
    assert "expired" == ended.state
    with pytest.raises(LeaseEnded):
        await pair.destination.pull(publication.handle, [5], timeout_s=10)
    assert 0xAB == (await pair.pool(pair.destination, 0))[5][0]


async def test_a_lease_that_ends_during_the_read_fences_it(pair: Pair) -> None:
    """Blocks that are reused between negotiation and read make the pull fail as FENCED, never succeed."""
    await pair.fill([8, 9], seed=3)
    publication = await pair.publish([8, 9], ttl_s=0.6)
    for child in pair.decode.data_planes.values():
        child.pause()
    try:
        pull = await pair.destination.start_pull(publication.handle, [8, 9], timeout_s=10)
        assert "expired" == (await pair.source.wait_ended(publication, timeout_s=5)).state
        await pair.fill([8, 9], seed=4)
    finally:
        for child in pair.decode.data_planes.values():
            child.resume()
    with pytest.raises(PullFailed) as caught:
        await pull.wait()
    assert isinstance(caught.value, Fenced)
    assert caught.value.transfer is not None
    assert caught.value.transfer.destination_settled


async def test_a_cancelled_pull_leaves_its_blocks_alone(pair: Pair) -> None:
    """After the acknowledgement of a cancellation no byte arrives any more."""
    blocks = list(range(BLOCK_COUNT))
    publication = await pair.publish(blocks, readers=0)
    pull = await pair.destination.start_pull(publication.handle, blocks, timeout_s=30)
    result = await pull.cancel()
    assert result.state in ("cancelled", "succeeded")
    assert result.destination_settled
    await pair.poison(blocks, 0x5A)
    later = await pair.publish([1])
    assert "succeeded" == (await pair.destination.pull(later.handle, [0], timeout_s=10)).state
    for rank in range(RANKS):
        assert bool((((await pair.pool(pair.destination, rank))[1:]) == 0x5A).all())
    await pair.source.release(publication)


async def test_a_pull_of_a_cancelled_task_is_cancelled(pair: Pair) -> None:
    """Cancelling the awaiting task cancels the transfer before the cancellation goes on."""
    publication = await pair.publish([1], readers=0)
    transfers = pair.router.of_worker(pair.decode.name)

    async def reading() -> bool:
        return any(t.request_id == "given-up" and t.state == "reading" for t in await transfers.transfers())

    for child in pair.decode.data_planes.values():
        child.pause()
    try:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(
                pair.destination.pull(publication.handle, [1], request_id="given-up", timeout_s=20)
            )
            await eventually(reading, "the transfer is being read")
            waiting.cancel()
        assert waiting.cancelled()
    finally:
        for child in pair.decode.data_planes.values():
            child.resume()
    ended = [t for t in await transfers.transfers() if t.request_id == "given-up"]
    assert ["cancelled"] == [t.state for t in ended]
    await pair.source.release(publication)


async def test_the_deadline_holds_while_the_source_is_frozen(pair: Pair) -> None:
    """With the source's control stopped, a pull that needs its answer, here for checksums, ends typed within a second
    of its deadline; nothing stays pinned."""
    publication = await pair.publish([11, 12], ttl_s=4.0)
    pair.prefill.control.pause()
    try:
        begun = time.monotonic()
        with pytest.raises(KvferryError) as caught:
            await pair.destination.pull(publication.handle, [11, 12], timeout_s=1.5, verify="full")
        assert time.monotonic() - begun < 1.5 + 1.0
    finally:
        pair.prefill.control.resume()
    assert caught.value.reason in (Reason.DEADLINE_EXCEEDED, Reason.PEER_UNREACHABLE)
    reused = await pair.destination.publish([11, 12], 32, 5.0)
    await pair.destination.release(reused)
    assert "expired" == (await pair.source.wait_ended(publication, timeout_s=8)).state


async def test_a_known_reader_is_told_and_reads_before_it_is_answered(pair: Pair) -> None:
    """After its first pull a reader begins the next ones without waiting for the source; every byte is right, and the
    source knows of them all the same.
    """
    first = await pair.publish([1])
    await pair.destination.pull(first.handle, [1], timeout_s=10)
    before = await early_reads(pair)
    source, destination = [40, 41, 42], [90, 80, 70]

    async def reads_early() -> bool:
        publication = await pair.publish(source)
        await pair.destination.pull(publication.handle, destination, timeout_s=10)
        assert 0 == await pair.differing(source, destination)
        assert "released" == (await pair.source.wait_ended(publication, timeout_s=5)).state
        return await early_reads(pair) > before

    await pair.fill(source, seed=41)
    # What the source tells may be overtaken by the handle, the first time.
    await eventually(reads_early, "a read was sent early")


async def early_reads(pair: Pair) -> float:
    """Transfers of the destination that were read before their source had answered."""
    return await read_metric(pair.decode.metrics_address, "kvferry_transfer_early_reads_total")


async def test_what_was_told_needs_no_answer(pair: Pair) -> None:
    """While the source's control is stopped, a publication that its reader was told of is read all the same."""
    await pair.fill([14], seed=14)
    publication = await pair.publish([14], ttl_s=4.0, readers=0)
    # An answer of the destination's control: what it was told before has arrived.
    await pair.router.of_worker(pair.decode.name).transfers()
    pair.prefill.control.pause()
    try:
        await pair.destination.pull(publication.handle, [15], timeout_s=1.5)
    finally:
        pair.prefill.control.resume()
    assert 0 == await pair.differing([14], [15])
    assert "expired" == (await pair.source.wait_ended(publication, timeout_s=8)).state


async def test_bad_handles_are_refused(pair: Pair) -> None:
    """Truncated, forged, foreign and unknown handles each have their own refusal."""
    publication = await pair.publish([1], readers=0)
    payload = payload_of(publication.handle)
    unknown = HandlePayload.FromString(payload)
    unknown.worker = "nobody"
    gone = HandlePayload.FromString(payload)
    gone.publication = "f" * 16
    cases = [
        (publication.handle[:-1], HandleMalformed, Reason.HANDLE_MALFORMED),
        (b"", KvferryError, Reason.HANDLE_MALFORMED),
        (seal(payload, new_key()), HandleForged, Reason.HANDLE_FORGED),
        (seal(unknown.SerializeToString(), new_key()), PeerError, Reason.WORKER_UNKNOWN),
        (seal(gone.SerializeToString(), new_key()), HandleForged, Reason.HANDLE_FORGED),
    ]
    for handle, kind, reason in cases:
        with pytest.raises(kind) as caught:
            await pair.destination.pull(handle, [1], timeout_s=5)
        assert reason is caught.value.reason
    await pair.source.release(publication)


@pytest.mark.parametrize(
    ("blocks", "reason", "named"),
    [
        ([1, BLOCK_COUNT], Reason.BLOCK_OUT_OF_RANGE, str(BLOCK_COUNT)),
        ([4, 4], Reason.BLOCK_DUPLICATE, "4"),
        ([4], Reason.BLOCK_COUNT_MISMATCH, "1 blocks"),
        ([4, 5, 6], Reason.BLOCK_COUNT_MISMATCH, "3 blocks"),
    ],
)
async def test_bad_blocks_are_refused(pair: Pair, blocks: list[int], reason: Reason, named: str) -> None:
    """Block lists that do not fit are refused with the value, and nothing stays pinned."""
    publication = await pair.publish([1, 2], readers=0)
    with pytest.raises(BlockError) as caught:
        await pair.destination.pull(publication.handle, blocks, timeout_s=5)
    assert reason is caught.value.reason
    assert named in caught.value.message
    await pair.source.release(publication)
    assert 0 == await pair.live_publications()


async def test_published_blocks_are_no_destination(pair: Pair) -> None:
    """A block that others may be reading is refused as the destination of a pull."""
    pinned = await pair.destination.publish([40], 16, 10.0)
    publication = await pair.publish([1], readers=0)
    with pytest.raises(BlockError) as caught:
        await pair.destination.pull(publication.handle, [40], timeout_s=5)
    assert Reason.BLOCK_BUSY is caught.value.reason
    await pair.destination.release(pinned)
    assert "succeeded" == (await pair.destination.pull(publication.handle, [40], timeout_s=5)).state
    await pair.source.release(publication)


async def test_publishing_is_checked_too(pair: Pair) -> None:
    """Bad block lists and lifetimes are refused on the prefill side, and leave nothing pinned."""
    for blocks, token_count, ttl_s in (([BLOCK_COUNT], 16, 5.0), ([1, 1], 16, 5.0), ([1], 0, 5.0), ([1], 16, 1e9)):
        with pytest.raises(KvferryError) as caught:
            await pair.source.publish(blocks, token_count, ttl_s)
        assert "field" in caught.value.metadata
    assert 0 == await pair.live_publications()


async def test_cancel_by_a_router(pair: Pair) -> None:
    """A router ends a transfer by name, and the engine's pull ends as cancelled."""
    publication = await pair.publish([1], readers=0)
    transfers = pair.router.of_worker(pair.decode.name)
    for child in pair.decode.data_planes.values():
        child.pause()
    try:
        pull = await pair.destination.start_pull(publication.handle, [1], timeout_s=20)
        await transfers.cancel_transfer(pull.name)
    finally:
        for child in pair.decode.data_planes.values():
            child.resume()
    with pytest.raises(Cancelled):
        await pull.wait()
    await pair.source.release(publication)
