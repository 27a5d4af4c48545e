"""Pulls that wait and pulls that are refused, through the whole chain: a source stops, and its reads pile up."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import pytest
import pytest_asyncio

from kvferry import EngineClient, PullFailed, QueueTimeout, Reason, ResourceExhausted, RouterClient
from kvferry.core.dense import dense_layout
from kvferry.core.drain import RETRY_S_MAX
from kvferry.launch.cluster import LocalCluster
from kvferry.launch.metrics import read_metric
from kvferry.launch.worker import LocalWorker, WorkerSpec
from kvferry.sdk.pulls import Pull
from tests.process.cluster.pair import BLOCK_BYTES, MODEL, eventually, ready

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCK_COUNT = 128
LAYOUT = dense_layout(MODEL, BLOCK_COUNT)
READS_MAX = 24
LANE = 16
"""Reads from one source that are active at a time."""


@dataclass
class Piled:
    """A destination with as many reads under way from a stopped source as are active at a time."""

    source: LocalWorker
    destination: LocalWorker
    engine: EngineClient
    router: RouterClient
    handle: bytes
    pulls: list[Pull]

    async def pull(self, block: int, timeout_s: float = 60, queue_timeout_s: float | None = None) -> Pull:
        """One more."""
        return await self.engine.start_pull(self.handle, [block], timeout_s, queue_timeout_s=queue_timeout_s)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def piled() -> AsyncIterator[Piled]:
    """Both workers, and the pulls under way."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(LocalCluster())
        flags = {"source-0": (), "destination-0": ("--max-reads", str(READS_MAX))}
        specs = [
            WorkerSpec(
                name=name,
                role="prefill" if name == "source-0" else "decode",
                pool_bytes=2 * BLOCK_BYTES * BLOCK_COUNT,
                data_plane_flags=("--path", "nixl", *more),
                data_plane_environment={"UCX_TLS": "tcp"},
            )
            for name, more in flags.items()
        ]
        source, destination = await asyncio.gather(*map(cluster.start_worker, specs))
        prefill, decode = [
            await stack.enter_async_context(EngineClient.connect(worker.engine_socket, worker.name, LAYOUT))
            for worker in (source, destination)
        ]
        router = await stack.enter_async_context(RouterClient([source.endpoint, destination.endpoint]))
        await ready([destination], [source.name, destination.name])
        handle = (await prefill.publish([1], MODEL.tokens_per_block, 600, 0)).handle
        await decode.pull(handle, [0], timeout_s=10)
        piled = Piled(source, destination, decode, router, handle, [])
        # The probe of a source has a place among its reads for as long as it runs.
        await eventually(lambda: attested(piled), "the source is attested")
        source.data_planes[0].pause()
        piled.pulls += [await piled.pull(block) for block in range(LANE)]
        await eventually(lambda: under_way(piled), "the reads are under way")
        yield piled


async def attested(piled: Piled) -> bool:
    """Whether the data plane has probed the source."""
    address = piled.destination.data_plane_metrics_address(0)
    return 1 == await read_metric(address, "kvferry_dataplane_attested_peers")


async def under_way(piled: Piled) -> bool:
    """Whether the data plane has them all, and none of them waits for its turn."""
    address = piled.destination.data_plane_metrics_address(0)
    outstanding = await read_metric(address, "kvferry_dataplane_reads_outstanding")
    return (LANE, 0) == (outstanding, await read_metric(address, "kvferry_dataplane_reads_queued"))


async def decided(piled: Piled, pull: Pull) -> bool:
    """Whether the data plane has refused the last pull, or has it like all others."""
    return pull.done() or await all_held(piled)


async def all_held(piled: Piled) -> bool:
    """Whether the data plane has the reads of these pulls, and of no other."""
    address = piled.destination.data_plane_metrics_address(0)
    return len(piled.pulls) == await read_metric(address, "kvferry_dataplane_reads_outstanding")


async def failure_of(pull: Pull) -> PullFailed:
    """How a pull fails."""
    with pytest.raises(PullFailed) as caught:
        await pull.wait()
    return caught.value


async def test_a_pull_that_is_not_served_in_time_says_so(piled: Piled) -> None:
    """A pull behind others of its source fails as QUEUE_TIMEOUT when its time to wait is over, long before its timeout,
    and nothing was read."""
    started = time.monotonic()
    # One read more than the others is let in once it has waited for a second.
    failure = await failure_of(await piled.pull(40, queue_timeout_s=0.5))
    assert time.monotonic() - started < 2.0
    assert isinstance(failure, QueueTimeout)
    assert failure.transfer is not None
    assert (Reason.QUEUE_TIMEOUT, True) == (failure.reason, failure.destination_settled)
    assert 0 == failure.transfer.received_bytes
    assert 0.4 < failure.transfer.queue_s


async def test_a_source_that_does_not_answer_uses_up_the_time_to_wait(piled: Piled) -> None:
    """The negotiation is part of the wait: with the source's control stopped too, the pull ends as QUEUE_TIMEOUT."""
    piled.source.control.pause()
    try:
        failure = await failure_of(await piled.pull(41, queue_timeout_s=0.5))
    finally:
        piled.source.control.resume()
    assert Reason.QUEUE_TIMEOUT == failure.reason
    assert "negotiating" in failure.message


async def test_overload_is_refused_at_once_with_a_time_to_come_back(piled: Piled) -> None:
    """Past its share of the bound a source's pulls fail as RESOURCE_EXHAUSTED at once, with the bound's name and after
    how long to retry; router and metrics see the same."""
    address = piled.destination.data_plane_metrics_address(0)
    pull = piled.pulls[-1]
    while not pull.done():
        pull = await piled.pull(50 + len(piled.pulls))
        piled.pulls.append(pull)
        await eventually(partial(decided, piled, pull), "the data plane has decided")
    refused = await failure_of(piled.pulls.pop())
    assert isinstance(refused, ResourceExhausted)
    assert f"max_reads={READS_MAX}" in refused.message
    assert refused.retry_after_s is not None
    assert 0 < refused.retry_after_s <= RETRY_S_MAX
    assert refused.transfer is not None
    seen = await piled.router.of_worker(piled.destination.name).transfer(refused.transfer.name)
    assert refused.retry_after_s == pytest.approx(seen.retry_after_s, abs=0.001)
    assert 1 == await read_metric(address, "kvferry_dataplane_bounds_reached_total", bound="max_reads")
    control = piled.destination.metrics_address
    assert 1 == await read_metric(control, "kvferry_bounds_reached_total", bound="max_reads")


async def test_what_waited_is_served_when_the_source_goes_on(piled: Piled) -> None:
    """Once the source goes on, all that waited succeeds; the wait counts as such and not against the timeout."""
    assert "cancelled" == (await piled.pulls.pop().cancel()).state
    # Its room is free once its read has ended, which takes longer than the cancellation where it was under way.
    await eventually(partial(all_held, piled), "the cancelled read has ended")
    piled.pulls.append(await piled.pull(120, queue_timeout_s=30, timeout_s=5))
    await eventually(partial(all_held, piled), "the late read waits")
    piled.source.data_planes[0].resume()
    for pull in piled.pulls:
        assert (await pull.wait()).succeeded
    address = piled.destination.data_plane_metrics_address(0)
    waited = await read_metric(address, "kvferry_dataplane_queue_seconds_count", priority="normal")
    assert waited >= len(piled.pulls)
