"""Pulls of tokens that several workers hold go on elsewhere when a source fails, and read again only what they must."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kvferry import EngineClient, PullFailed, TransferResult, join_handles
from kvferry.core.dense import dense_layout
from kvferry.core.handles import new_key, payload_of, seal
from kvferry.core.reasons import Reason
from kvferry.launch.worker import WorkerSpec
from kvferry.publication.v1.publication_pb2 import HandlePayload
from tests.process.cluster.pair import eventually, ready
from tests.process.cluster.replicas import (
    ALL,
    BLOCK_BYTES,
    BLOCK_COUNT,
    BLOCK_TOKENS,
    MODEL,
    RANKS,
    REVERSED,
    SPAN_BLOCKS,
    Replicas,
    running_replicas,
    tokens_from_last,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOKENS = BLOCK_TOKENS * len(ALL)
SPAN_TOKENS = SPAN_BLOCKS * BLOCK_TOKENS
LATE_SECONDS = 2.0
TWO = [0, 1]
TWO_TOKENS = 2 * BLOCK_TOKENS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replicas() -> AsyncIterator[Replicas]:
    """All workers, ready."""
    async with running_replicas() as running:
        yield running


def reasons(result: TransferResult | None) -> list[tuple[str, Reason]]:
    """Which sources were given up, and why."""
    assert result is not None
    return [(attempt.source_worker.removeprefix("workers/"), attempt.reason) for attempt in result.attempts]


async def test_nothing_is_switched_while_the_first_source_serves(replicas: Replicas) -> None:
    """A joined handle is read from its first source alone, a span after another, and the second keeps its lease."""
    first, second = [await replicas.publish(name) for name in ("prefill-0", "prefill-1")]
    await replicas.poison()
    result = await replicas.destination.pull(join_handles([first.handle, second.handle]), REVERSED, timeout_s=30)
    assert ((), TOKENS) == (result.attempts, result.verified_tokens)
    assert RANKS * BLOCK_COUNT * BLOCK_BYTES == result.received_bytes
    assert ("workers/prefill-0", first.name) == (result.source_worker, result.publication)
    for rank in range(RANKS):
        assert await replicas.holds(rank, [("prefill-0", TOKENS)])
    assert "released" == (await replicas.engines["prefill-0"].wait_ended(first, timeout_s=5)).state
    assert "released" == (await replicas.engines["prefill-1"].release(second)).state


async def test_a_stopped_source_is_left_after_its_share_and_no_byte_comes_late(replicas: Replicas) -> None:
    """A source rank that stops in the middle of the read costs its share of the time; the rank that had read all from
    another reads no more, and what the stopped one sends later is not written over what the next source sent."""
    first, second = [await replicas.publish(name) for name in ("prefill-0", "prefill-1")]
    await replicas.poison()
    handle = join_handles([first.handle, second.handle])
    pull = await replicas.destination.start_pull(handle, REVERSED, timeout_s=15)
    await replicas.stop_midway("prefill-0")
    try:
        result = await pull.wait()
    finally:
        replicas.workers["prefill-0"].data_planes[0].resume()
    assert [("prefill-0", Reason.DEADLINE_EXCEEDED)] == reasons(result)
    verified = result.attempts[0].verified_tokens
    assert 0 < verified < TOKENS
    assert 0 == verified % SPAN_TOKENS
    assert [TOKENS - verified, 0] == [tokens_from_last(result, rank) for rank in range(RANKS)]
    await asyncio.sleep(LATE_SECONDS)
    assert await replicas.holds(0, [("prefill-0", verified), ("prefill-1", TOKENS)])
    assert await replicas.holds(1, [("prefill-0", TOKENS)])

    async def left() -> bool:
        return await replicas.readers(first, "prefill-0") == 0

    await eventually(left, "the source that was left has no reader")
    await replicas.engines["prefill-0"].release(first)


async def test_a_source_killed_in_the_middle_is_followed_by_the_next(replicas: Replicas) -> None:
    """When a data plane of the source dies, the pull goes on at once, each rank where its verified tokens end."""
    first, second = [await replicas.publish(name) for name in ("prefill-1", "prefill-0")]
    await replicas.poison()
    handle = join_handles([first.handle, second.handle])
    pull = await replicas.destination.start_pull(handle, REVERSED, timeout_s=60)
    await replicas.stop_midway("prefill-1")
    await replicas.workers["prefill-1"].data_planes[0].kill()
    result = await pull.wait()
    assert [("prefill-1", Reason.PEER_LOST)] == reasons(result), result.attempts
    verified = [TOKENS - tokens_from_last(result, rank) for rank in range(RANKS)]
    assert 0 < verified[0] < TOKENS
    assert min(verified) == result.attempts[0].verified_tokens
    for rank in range(RANKS):
        assert 0 == verified[rank] % SPAN_TOKENS
        assert await replicas.holds(rank, [("prefill-1", verified[rank]), ("prefill-0", TOKENS)])
    assert "released" == (await replicas.engines["prefill-0"].wait_ended(second, timeout_s=5)).state


async def test_a_source_without_a_data_plane_is_passed_over(replicas: Replicas) -> None:
    """A source whose data plane was killed before it was asked is followed by the next; then it begins a new life."""
    handles = [(await replicas.publish("prefill-0", TWO)).handle]
    payload = HandlePayload.FromString(payload_of(handles[0]))
    payload.worker, payload.incarnation = "prefill-1", await replicas.incarnation("prefill-1")
    handles.insert(0, seal(payload.SerializeToString(), new_key()))
    try:
        result = await replicas.destination.pull(join_handles(handles), REVERSED[:2], timeout_s=20)
    finally:
        await replicas.restart("prefill-1")
    assert ["prefill-1"] == [worker for worker, _ in reasons(result)]
    assert await replicas.holds(0, [("prefill-0", TWO_TOKENS)])


@pytest.mark.parametrize("joined", [True, False])
async def test_a_cancelled_pull_says_where_another_may_begin(replicas: Replicas, joined: bool) -> None:
    """A cancellation is no reason to go on with the next source; who pulls elsewhere himself need not read again what
    was verified, also of a single source if the pull is resumable."""
    first, second = [await replicas.publish(name) for name in ("prefill-0", "prefill-1")]
    await replicas.poison()
    handle = join_handles([first.handle, second.handle]) if joined else first.handle
    pull = await replicas.destination.start_pull(handle, REVERSED, timeout_s=60, resumable=not joined)
    await replicas.stop_midway("prefill-0")
    try:
        await pull.cancel()
        # On a busy machine a read of a stopped source may be confirmed to be over later than the cancellation is.
        cancelled = await pull.wait_settled(timeout_s=15)
    finally:
        replicas.workers["prefill-0"].data_planes[0].resume()
    assert ("cancelled", (), True) == (cancelled.state, cancelled.attempts, cancelled.destination_settled)
    verified = cancelled.verified_tokens
    assert 0 < verified < TOKENS
    assert 0 == await replicas.readers(second, "prefill-1")
    result = await replicas.destination.pull(second.handle, REVERSED, timeout_s=30, first_token=verified)
    assert RANKS * (TOKENS - verified) // BLOCK_TOKENS * BLOCK_BYTES == result.received_bytes
    for rank in range(RANKS):
        assert await replicas.holds(rank, [("prefill-0", verified), ("prefill-1", TOKENS)])
    await replicas.engines["prefill-0"].release(first)


async def test_a_control_that_does_not_answer_is_left_after_its_share(replicas: Replicas) -> None:
    """A source that is asked and says nothing costs its share of the time, not the deadline."""
    first, second = [await replicas.publish(name, TWO, ttl_s=5.0) for name in ("prefill-0", "prefill-1")]
    replicas.workers["prefill-0"].control.pause()
    try:
        handle = join_handles([first.handle, second.handle])
        result = await replicas.destination.pull(handle, REVERSED[:2], timeout_s=5)
    finally:
        replicas.workers["prefill-0"].control.resume()
    assert [("prefill-0", Reason.DEADLINE_EXCEEDED)] == reasons(result)
    assert await replicas.holds(0, [("prefill-1", TWO_TOKENS)])
    # On a busy machine it was away for so long that its sessions have to be made anew.
    await replicas.wait_reached("prefill-0")


async def test_an_unreachable_control_is_passed_over(replicas: Replicas) -> None:
    """A source whose control was killed before it was asked is followed by the next."""
    first, second = [await replicas.publish(name, TWO) for name in ("prefill-0", "prefill-1")]
    await replicas.workers["prefill-0"].control.kill()
    handle = join_handles([first.handle, second.handle])
    result = await replicas.destination.pull(handle, REVERSED[:2], timeout_s=20)
    assert [("prefill-0", Reason.PEER_UNREACHABLE)] == reasons(result)
    assert [TWO_TOKENS] * RANKS == [tokens_from_last(result, rank) for rank in range(RANKS)]
    assert await replicas.holds(0, [("prefill-1", TWO_TOKENS)])
    await replicas.restart_control("prefill-0")


async def test_sources_that_refuse_are_passed_over(replicas: Replicas) -> None:
    """A publication that has expired and one that another key signed lead to the next; a worker that is not in the
    snapshot is not even tried before one that is."""
    expired = await replicas.publish("prefill-0", TWO, ttl_s=0.2)
    await replicas.engines["prefill-0"].wait_ended(expired, timeout_s=5)
    good = await replicas.publish("prefill-1", TWO)
    payload = HandlePayload.FromString(payload_of(good.handle))
    forged = seal(payload.SerializeToString(), new_key())
    payload.worker = "nobody"
    unknown = seal(payload.SerializeToString(), new_key())
    handle = join_handles([unknown, expired.handle, forged, good.handle])
    result = await replicas.destination.pull(handle, REVERSED[:2], timeout_s=20)
    assert [("prefill-0", Reason.LEASE_ENDED), ("prefill-1", Reason.HANDLE_FORGED)] == reasons(result)
    assert await replicas.holds(0, [("prefill-1", TWO_TOKENS)])


async def test_when_all_sources_fail_each_is_named(replicas: Replicas) -> None:
    """The failure is that on which the caller can act best, its message and the attempts tell of every source."""
    expired = await replicas.publish("prefill-0", TWO, ttl_s=0.2)
    await replicas.engines["prefill-0"].wait_ended(expired, timeout_s=5)
    payload = HandlePayload.FromString(payload_of(expired.handle))
    payload.worker = "nobody"
    unknown = seal(payload.SerializeToString(), new_key())
    with pytest.raises(PullFailed) as caught:
        await replicas.destination.pull(join_handles([unknown, expired.handle]), TWO, timeout_s=20)
    assert Reason.WORKER_UNKNOWN is caught.value.reason
    assert "workers/nobody" in caught.value.message
    assert f"workers/prefill-0 {expired.name}: LEASE_ENDED" in caught.value.message
    assert [("prefill-0", Reason.LEASE_ENDED)] == reasons(caught.value.transfer)


async def test_the_destinations_own_fault_is_no_reason_to_go_on(replicas: Replicas) -> None:
    """Blocks that do not hold the tokens hold them no better for another source."""
    first, second = [await replicas.publish(name, TWO, ttl_s=5.0) for name in ("prefill-0", "prefill-1")]
    with pytest.raises(PullFailed) as caught:
        await replicas.destination.pull(join_handles([first.handle, second.handle]), [5], timeout_s=20)
    assert Reason.BLOCK_COUNT_MISMATCH is caught.value.reason
    assert [] == reasons(caught.value.transfer)


async def test_a_source_of_another_model_is_passed_over(replicas: Replicas) -> None:
    """A pair that does not fit is found out before anything is read, and the next source is asked."""
    model = dataclasses.replace(MODEL, model="other")
    spec = WorkerSpec(name="other-0", role="prefill", pool_bytes=16 << 20, metrics=False)
    worker = await replicas.cluster.start_worker(spec)
    good = await replicas.publish("prefill-1", TWO)
    async with EngineClient.connect(worker.engine_socket, "other", dense_layout(model, 8)) as engine:
        await ready([replicas.workers["decode-0"]], ["other-0"])
        odd = await engine.publish(TWO, TWO_TOKENS, 30.0)
        result = await replicas.destination.pull(join_handles([odd.handle, good.handle]), REVERSED[:2], timeout_s=20)
    assert [("other-0", Reason.LAYOUT_MISMATCH)] == reasons(result)
    assert await replicas.holds(0, [("prefill-1", TWO_TOKENS)])
