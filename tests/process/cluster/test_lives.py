"""What an engine keeps, loses and finds again when it, or a data plane under it, is killed and comes back."""

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from grpc import aio

from kvferry import DataPlaneLost, EngineClient, LeaseEnded, PoolLost, PoolRestored
from kvferry.core.reasons import Reason
from kvferry.engine.v1 import engine_pb2
from kvferry.engine.v1.engine_pb2_grpc import EngineServiceStub
from kvferry.launch.worker import WorkerSpec
from kvferry.layout.v1 import layout_pb2
from kvferry.rpc.errors import from_rpc
from kvferry.rpc.times import duration
from tests.process.cluster import crashing_engine
from tests.process.cluster.pair import POOL_BYTES, RANKS, Pair, layout_of, ready, running_pair

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Pair]:
    """A pair whose workers come back."""
    async with running_pair(lease_ttl_s=2) as running:
        yield running


async def next_event(events: AsyncIterator[object], kind: type) -> object:
    """The next event of a kind."""
    async with asyncio.timeout(15):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError


async def test_an_engine_whose_data_plane_was_replaced(pair: Pair) -> None:
    """The engine is told of the loss and the return; until it attaches again, its old mapping gives no views, and what
    it would publish from there or pull into is refused, typed; then everything works in the new pool."""
    await pair.fill([1, 2], seed=2)
    before = await pair.publish([1, 2])
    events = pair.source.events()
    old = await pair.source.attach(1)
    view = old.numpy()
    await pair.prefill.data_planes[1].kill()
    assert PoolLost(1) == await next_event(events, PoolLost)
    await pair.prefill.start_data_plane(1)
    assert PoolRestored(1) == await next_event(events, PoolRestored)
    await ready(pair.workers, ["prefill-0"])
    with pytest.raises(DataPlaneLost):
        old.numpy()
    view[:16] = 1  # Into memory that nobody reads any more: a view that is held cannot be taken back.
    with pytest.raises(DataPlaneLost):
        await pair.source.publish([1], 16, 5.0)
    with pytest.raises(DataPlaneLost):
        await pair.source.pull(before.handle, [3, 4], timeout_s=1)
    fresh = await pair.source.attach(1)
    assert fresh.info.boot_id != old.info.boot_id
    assert 0 == int(fresh.numpy()[:16].sum())
    await pair.fill([1, 2], seed=6)
    publication = await pair.publish([1, 2])
    await pair.destination.pull(publication.handle, [3, 4], timeout_s=10)
    assert 0 == await pair.differing([1, 2], [3, 4])


async def test_what_was_written_to_a_pool_that_is_gone_is_not_published(pair: Pair) -> None:
    """Control itself refuses a publication from an earlier life of a pool: the engine may not have heard of its end."""
    request = engine_pb2.PublishRequest(
        request_id="from-the-dead",
        blocks=[layout_pb2.BlockList(group="full", block_ids=[5])],
        token_count=16,
        ttl=duration(5),
        mapped_pools=[layout_pb2.MappedPool(rank=0, boot_id=b"another life...")],
    )
    async with aio.insecure_channel(f"unix:{pair.prefill.engine_socket}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await EngineServiceStub(channel).Publish(request, timeout=5)
    assert Reason.DATA_PLANE_LOST is from_rpc(caught.value).reason


@pytest.mark.long
async def test_an_engine_that_crashed(pair: Pair) -> None:
    """After kill -9 of an engine its blocks can be pulled, and the engine that follows it finds the publication with
    its blocks and handle, and can end it."""
    worker = await pair.cluster.start_worker(
        WorkerSpec(name="crash-0", role="prefill", ranks=RANKS, pool_bytes=POOL_BYTES)
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", crashing_engine.__name__, str(worker.engine_socket), "7", "9"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    handle = bytes.fromhex((await asyncio.wait_for(process.stdout.readline(), 30)).decode())
    process.kill()
    await process.wait()
    await ready(pair.workers, ["crash-0"])
    await pair.destination.pull(handle, [20, 21], timeout_s=10)
    for rank in range(RANKS):
        assert {crashing_engine.FILL + rank} == set((await pair.pool(pair.destination, rank))[[20, 21]].flat)
    async with EngineClient.connect(worker.engine_socket, crashing_engine.ENGINE_ID, layout_of()) as engine:
        (held,) = await engine.held_publications()
        assert (crashing_engine.REQUEST_ID, {"full": (7, 9)}) == (held.request_id, held.blocks)
        assert handle == held.publication.handle
        await engine.release(held.publication)
        assert [] == await engine.held_publications()
        with pytest.raises(LeaseEnded):
            await pair.destination.pull(handle, [20, 21], timeout_s=5)
