"""What goes on, and what is refused, when processes of a cluster die and come back."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from grpc import aio

from kvferry import EngineClient
from kvferry.core.errors import KvferryError, RetryableError, StaleIncarnation
from kvferry.core.reasons import Reason
from kvferry.engine.v1 import engine_pb2
from kvferry.engine.v1.engine_pb2_grpc import EngineServiceStub
from kvferry.launch.errors import ProcessEnded
from kvferry.launch.metrics import read_metric
from kvferry.launch.worker import WorkerSpec
from kvferry.layout.v1 import layout_pb2
from kvferry.rpc.times import duration
from tests.process.cluster.pair import BLOCK_BYTES, POOL_BYTES, RANKS, Pair, eventually, layout_of, ready, running_pair


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    """A pair of its own for each test."""
    async with running_pair(lease_ttl_s=2) as running:
        yield running


async def incarnation_of(pair: Pair, name: str) -> int:
    """The incarnation that the cluster knows."""
    return (await pair.router.worker(name)).incarnation


async def renewed(pair: Pair, before: int) -> None:
    """Wait until the source is ready in a later incarnation than ``before``."""

    async def is_renewed() -> bool:
        workers = {worker.name: worker for worker in await pair.router.workers()}
        worker = workers.get("workers/prefill-0")
        return worker is not None and worker.incarnation > before and worker.state == "ready"

    await eventually(is_renewed, "a new incarnation is ready")


async def test_publications_outlive_control(pair: Pair) -> None:
    """After kill -9 of the source's control, its successor goes on with incarnation, publications and handles."""
    await pair.fill([1, 2, 3], seed=1)
    publication = await pair.publish([1, 2, 3], ttl_s=60)
    before = await incarnation_of(pair, "prefill-0")
    await pair.prefill.control.kill()
    await pair.prefill.start_control()
    await ready(pair.workers, ["prefill-0"])
    assert before == await incarnation_of(pair, "prefill-0")
    await pair.destination.pull(publication.handle, [4, 5, 6], timeout_s=10)
    assert 0 == await pair.differing([1, 2, 3], [4, 5, 6])
    assert "released" == (await pair.source.wait_ended(publication, timeout_s=5)).state


@pytest.mark.long
async def test_a_pull_ends_typed_when_its_own_control_dies(pair: Pair) -> None:
    """The engine is told within its time-out, and the next pull works without a restart by hand."""
    publication = await pair.publish([1], ttl_s=60, readers=0)
    for child in pair.decode.data_planes.values():
        child.pause()
    pull = await pair.destination.start_pull(publication.handle, [1], timeout_s=3)
    await pair.decode.control.kill()
    for child in pair.decode.data_planes.values():
        child.resume()
    with pytest.raises(KvferryError):
        await pull.wait()
    await pair.decode.start_control()
    await ready(pair.workers, ["decode-0"])

    refused: set[Reason] = set()

    async def works() -> bool:
        try:
            await pair.destination.pull(publication.handle, [1], timeout_s=5)
        except KvferryError as error:
            refused.add(error.reason)
            return False
        return True

    await eventually(works, "pulls work again")
    assert refused <= {Reason.NOT_READY, Reason.DATA_PLANE_LOST, Reason.WORKER_UNKNOWN, Reason.BLOCK_BUSY}


async def test_a_pull_goes_on_with_the_successor_of_its_own_control(pair: Pair) -> None:
    """A pull whose control is killed while it reads is asked of the next one, and delivers the right bytes."""
    await pair.fill([1, 2], seed=5)
    publication = await pair.publish([1, 2], ttl_s=60, readers=0)
    transfers = pair.router.of_worker(pair.decode.name)

    async def reading() -> bool:
        return any(t.state == "reading" for t in await transfers.transfers())

    for child in pair.decode.data_planes.values():
        child.pause()
    async with asyncio.TaskGroup() as tasks:
        pull = tasks.create_task(pair.destination.pull(publication.handle, [3, 4], timeout_s=30))
        await eventually(reading, "the transfer is being read")
        await pair.decode.control.kill()
        for child in pair.decode.data_planes.values():
            child.resume()
        await pair.decode.start_control()
    assert "succeeded" == pull.result().state
    assert 2 * RANKS * BLOCK_BYTES == pull.result().received_bytes
    assert 0 == await pair.differing([1, 2], [3, 4])


@pytest.mark.long
async def test_a_restarted_source_refuses_old_handles(pair: Pair) -> None:
    """When control and data planes of the source began a new life, its old handles are STALE_INCARNATION."""
    publication = await pair.publish([1], ttl_s=60)
    before = await incarnation_of(pair, "prefill-0")
    await pair.prefill.control.kill()
    for rank in range(RANKS):
        await pair.prefill.data_planes[rank].kill()
        await pair.prefill.start_data_plane(rank)
    await pair.prefill.start_control()
    await renewed(pair, before)
    with pytest.raises(StaleIncarnation) as caught:
        await pair.destination.pull(publication.handle, [1], timeout_s=5)
    assert "handle.incarnation" == caught.value.metadata["field"]


async def test_a_lost_data_plane_begins_a_new_life(pair: Pair) -> None:
    """When one data plane of the source is killed and comes back, the worker gets a new incarnation by itself."""
    publication = await pair.publish([1], ttl_s=60)
    before = await incarnation_of(pair, "prefill-0")
    await pair.prefill.data_planes[1].kill()
    await pair.prefill.start_data_plane(1)

    await renewed(pair, before)
    now = await incarnation_of(pair, "prefill-0")
    await eventually(lambda: now == pair.source.incarnation, "the engine is told the new incarnation")
    assert "failed" == (await pair.source.wait_ended(publication, timeout_s=5)).state
    with pytest.raises(StaleIncarnation):
        await pair.destination.pull(publication.handle, [1], timeout_s=5)
    await pair.fill([2], seed=9)
    fresh = await pair.publish([2])
    await pair.destination.pull(fresh.handle, [2], timeout_s=10)
    assert 0 == await pair.differing([2], [2])


async def test_pulls_go_on_without_etcd(pair: Pair) -> None:
    """With etcd killed, past every lease, pulls go on; when it is back without its data, both workers re-register."""
    before = await incarnation_of(pair, "prefill-0")
    await asyncio.to_thread(pair.cluster.etcd.kill)
    await pair.fill(range(8), seed=5)
    loop = asyncio.get_running_loop()
    until = loop.time() + 4.0
    pulls = 0
    while loop.time() < until:
        publication = await pair.publish([pulls % 8])
        await pair.destination.pull(publication.handle, [8 + pulls % 8], timeout_s=5)
        pulls += 1
    assert 0 == await pair.differing(range(8), range(8, 16))
    assert pulls > 8
    await asyncio.to_thread(pair.cluster.etcd.wipe)
    await asyncio.to_thread(pair.cluster.etcd.restart)
    await ready(pair.workers, ["prefill-0", "decode-0"])

    async def connected() -> bool:
        async for view in pair.router.watch_workers():
            return view.etcd_connected and len(view.workers) == 2
        return False

    await eventually(connected, "both workers are registered in the new etcd")
    assert before == await incarnation_of(pair, "prefill-0")
    publication = await pair.publish([1])
    await pair.destination.pull(publication.handle, [30], timeout_s=5)
    assert 0 == await pair.differing([1], [30])


@pytest.mark.long
async def test_a_second_worker_of_one_name_is_refused(pair: Pair) -> None:
    """Another worker with a name that is held ends with a clear message, and the holder is not disturbed."""
    directory = pair.cluster.directory / "second"
    directory.mkdir()
    spec = WorkerSpec(name="prefill-0", role="prefill", ranks=1, pool_bytes=POOL_BYTES, lease_ttl_s=1)
    second = type(pair.prefill)(spec, directory, [pair.cluster.etcd.endpoint], pair.cluster.etcd_prefix)
    try:
        await second.start()
        assert 2 == await asyncio.wait_for(second.control.wait(), 15)
        assert "WORKER_NAME_TAKEN" in second.control.log_tail()
        assert "prefill-0" in second.control.log_tail()
    finally:
        await second.stop()
    publication = await pair.publish([1])
    await pair.destination.pull(publication.handle, [1], timeout_s=5)


@pytest.mark.long
async def test_a_mismatched_layout_is_refused_at_pairing(pair: Pair) -> None:
    """A worker of another head dimension is no pair, and a pull from it names the field and both values."""
    worker = await pair.cluster.start_worker(
        WorkerSpec(name="other-0", role="prefill", ranks=RANKS, pool_bytes=POOL_BYTES)
    )
    async with EngineClient.connect(worker.engine_socket, "engine-other", layout_of(512, head_dim=64)) as engine:
        await ready(pair.workers, ["other-0"])
        verdict = await pair.router.check_pair("other-0", "decode-0")
        assert not verdict.compatible
        assert "groups[full].head_dim" in [mismatch.field for mismatch in verdict.mismatches]
        compatible = {(p.source, p.destination) for p in await pair.router.pairs(compatible_only=True)}
        assert {("workers/prefill-0", "workers/decode-0")} == compatible
        publication = await engine.publish([1], 16, 30.0)
        with pytest.raises(KvferryError) as caught:
            await pair.destination.pull(publication.handle, [1], timeout_s=5)
        assert Reason.LAYOUT_MISMATCH is caught.value.reason
        assert "64" in caught.value.message
        assert "32" in caught.value.message
        await engine.release(publication)


@pytest.mark.long
async def test_a_port_that_is_taken_is_named(pair: Pair) -> None:
    """A control whose port another process has ends with the field and the address."""
    spec = WorkerSpec(name="third-0", role="decode", pool_bytes=POOL_BYTES, listen=pair.decode.endpoint)
    with pytest.raises(ProcessEnded) as caught:
        await pair.cluster.start_worker(spec)
    assert "ADDRESS_IN_USE" in str(caught.value)
    assert "worker.listen" in str(caught.value)
    assert pair.decode.endpoint in str(caught.value)


@pytest.mark.long
async def test_a_source_that_leaves_the_cluster_during_negotiation() -> None:
    """A source whose control is frozen until its registration is gone ends the pull typed, never as a defect."""
    async with running_pair(limits={"told_readers": 0}) as pair:
        publication = await pair.publish([1], ttl_s=60)
        pair.prefill.control.pause()
        try:
            with pytest.raises(KvferryError) as caught:
                await pair.destination.pull(publication.handle, [1], timeout_s=8)
        finally:
            pair.prefill.control.resume()
    assert caught.value.reason in (Reason.PEER_UNREACHABLE, Reason.PEER_LOST, Reason.DEADLINE_EXCEEDED)


@pytest.mark.long
async def test_a_cancelled_publish_leaves_nothing_behind(pair: Pair) -> None:
    """A Publish call given up while the ranks are asked is finished all the same: its request id still answers."""
    request = engine_pb2.PublishRequest(
        request_id="given-up",
        blocks=[layout_pb2.BlockList(group="full", block_ids=[1, 2])],
        token_count=32,
        ttl=duration(30),
    )
    async with aio.insecure_channel(f"unix:{pair.prefill.engine_socket}") as channel:
        publish = EngineServiceStub(channel).Publish
        pair.prefill.data_planes[0].pause()
        with pytest.raises(grpc.RpcError):
            await publish(request, timeout=0.5)
        pair.prefill.data_planes[0].resume()
        answer = await publish(request, timeout=5)
    assert 2 == answer.publication.block_count
    await pair.source.release(answer.publication.name)


async def test_an_engine_is_told_what_holds_when_it_begins_to_watch(pair: Pair) -> None:
    """What changed after OpenEngine is not missed: pools, those that are lost, and the incarnation come first."""
    pool = await pair.source.attach(1)
    await pair.prefill.data_planes[1].kill()
    await eventually(lambda: pool.lost, "the pool of rank 1 is lost")
    async with aio.insecure_channel(f"unix:{pair.prefill.engine_socket}") as channel:
        request = engine_pb2.WatchEngineRequest(engine_id="looks")
        stream = EngineServiceStub(channel).WatchEngine(request, timeout=5)
        messages = [await stream.read() for _ in range(1 + RANKS + 1)]
        stream.cancel()
    first, *events = [message for message in messages if isinstance(message, engine_pb2.WatchEngineResponse)]
    assert first.WhichOneof("event") is None
    assert [("pool_restored", 0), ("pool_lost", 1)] == [
        (kind, getattr(event, kind).rank) for event in events[:RANKS] if (kind := event.WhichOneof("event"))
    ]
    assert await incarnation_of(pair, "prefill-0") == events[RANKS].worker_registered.incarnation


@pytest.mark.long
async def test_a_watcher_of_an_earlier_control_hears_everything(pair: Pair) -> None:
    """A revision that this control has not reached is another life's: the stream starts from the beginning."""
    publication = await pair.publish([1])
    result = await pair.destination.pull(publication.handle, [1], timeout_s=5)
    async with asyncio.timeout(5):
        async for change in pair.router.of_worker("decode-0").watch_transfers(after_revision=1_000_000):
            if change.name == result.name:
                return


@pytest.mark.long
async def test_a_broken_session_leaves_no_noise(pair: Pair) -> None:
    """A data plane that stops or dies is a warning in control's log: no traceback, no task that nobody looked after."""
    for end in (pair.decode.data_planes[0].stop, pair.decode.data_planes[1].kill):
        await end()
    await eventually(
        lambda: pair.decode.control.log_tail(100).count("session with data plane broke") == 2, "control noticed"
    )
    for rank in range(RANKS):
        await pair.decode.start_data_plane(rank)
    await ready(pair.workers, ["decode-0"])
    await pair.decode.control.stop()
    log = pair.decode.control.log_tail(500)
    assert "Traceback" not in log
    assert "Task " not in log


@pytest.mark.long
async def test_many_negotiations_end_typed_when_the_source_dies() -> None:
    """Pulls whose source's control is killed while it is asked all end typed before their deadline, not one hangs."""
    async with running_pair(lease_ttl_s=30, limits={"told_readers": 0}) as pair:
        publication = await pair.publish([1], ttl_s=60, readers=0)
        await pair.destination.pull(publication.handle, [1], timeout_s=10)
        transfers = pair.router.of_worker(pair.decode.name)

        async def all_made() -> bool:
            return len(await transfers.transfers(limit=500)) == 101

        pair.prefill.control.pause()
        async with asyncio.TaskGroup() as tasks:
            pulls = [tasks.create_task(outcome_of(pair, publication.handle, n)) for n in range(100)]
            await eventually(all_made, "all pulls are under way")
            await pair.prefill.control.kill()
        assert {pull.result() for pull in pulls} <= {Reason.PEER_UNREACHABLE, Reason.PEER_LOST}
        await pair.prefill.start_control()
        await ready(pair.workers, ["prefill-0"])

        async def works() -> bool:
            # The connection is tried again only after a pause, up to a second long.
            return await outcome_of(pair, publication.handle, 1) is None

        await eventually(works, "pulls work again")


@pytest.mark.long
async def test_sessions_follow_a_restarted_source(pair: Pair) -> None:
    """After the source's control was killed and came back in the same life, pulls negotiate on a new session."""
    publication = await pair.publish([1, 2, 3], ttl_s=60, readers=0)
    for _ in range(3):
        await pair.destination.pull(publication.handle, [4, 5, 6], timeout_s=10)
        await pair.prefill.control.kill()
        await pair.prefill.start_control()
        await ready(pair.workers, ["prefill-0"])

        async def works() -> bool:
            return await outcome_of(pair, publication.handle, 4, 5, 6) is None

        await eventually(works, "pulls work again")
    await asyncio.gather(
        *(pair.destination.pull(publication.handle, [3 * n + k for k in range(3)], timeout_s=10) for n in range(50))
    )


async def outcome_of(pair: Pair, handle: bytes, *blocks: int) -> Reason | None:
    """Why a pull fails; None if it succeeds."""
    try:
        await pair.destination.pull(handle, blocks, timeout_s=20)
    except KvferryError as error:
        return error.reason
    return None


@pytest.mark.parametrize("which", [pytest.param("control", marks=pytest.mark.long), "data plane"])
async def test_a_process_that_was_stopped_leaves_the_engine_its_pools(pair: Pair, which: str) -> None:
    """A control or data plane that was stopped until its connections broke, and goes on, has lost nothing: what the
    engine has mapped and published stays so."""
    pool = await pair.source.attach(0)
    await pair.fill([1, 2], seed=6)
    publication = await pair.publish([1, 2], ttl_s=60, readers=0)
    of_control = which == "control"
    child = pair.prefill.control if of_control else pair.prefill.data_planes[0]
    address = pair.prefill.data_plane_metrics_address(0) if of_control else pair.prefill.metrics_address
    figure, whole = ("kvferry_dataplane_session_connected", 1) if of_control else ("kvferry_ranks_up", RANKS)

    async def is_whole() -> bool:
        return whole == await read_metric(address, figure)

    async def is_broken() -> bool:
        return not await is_whole()

    async def publishes() -> bool:
        try:
            await pair.publish([3], ttl_s=60, readers=0)
        except RetryableError:
            return False
        return True

    child.pause()
    await eventually(is_broken, "the session is known to be broken")
    child.resume()
    await eventually(is_whole, "there is another session")
    await eventually(publishes, "the engine publishes again")
    assert pool.valid
    assert pool is await pair.source.attach(0)
    await pair.destination.pull(publication.handle, [4, 5], timeout_s=10)
    assert 0 == await pair.differing([1, 2], [4, 5])
