"""The router's client against several scripted controls."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kvferry.core.errors import InvalidArgument, NotFound, NotReady
from kvferry.core.reasons import Reason
from kvferry.sdk.results import Role, TransferState, WorkerState
from kvferry.sdk.router import RouterClient
from kvferry.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from kvferry.worker.v1 import worker_pb2 as pb
from tests.contract.sdk.fake_cluster import FakeCluster
from tests.contract.sdk.fake_control import FakeControl


def worker(name: str, endpoint: str = "") -> pb.Worker:
    """A ready decode worker."""
    return pb.Worker(
        name=f"workers/{name}",
        incarnation=3,
        role=pb.ROLE_DECODE,
        state=pb.WORKER_STATE_READY,
        endpoint=endpoint,
        ranks=[pb.RankRecord(rank=0, device="cpu", pool_bytes=1, method="nixl/ucx")],
    )


@pytest_asyncio.fixture(loop_scope="session")
async def clusters() -> AsyncIterator[tuple[FakeCluster, FakeCluster]]:
    """Two controls of one cluster of five workers."""
    workers = [worker(name) for name in "abcde"]
    first, second = await FakeCluster(*workers).start(), await FakeCluster(*workers).start()
    yield first, second
    await first.kill()
    await second.kill()


async def test_all_pages_are_listed(clusters: tuple[FakeCluster, FakeCluster]) -> None:
    """workers() gives every page's workers, in order."""
    async with RouterClient(clusters[0].endpoint) as router:
        listed = await router.workers()
    assert [w.name for w in listed] == [f"workers/{name}" for name in "abcde"]
    assert (listed[0].role, listed[0].state, listed[0].layout) == (Role.DECODE, WorkerState.READY, None)
    assert listed[0].ranks[0].method == "nixl/ucx"
    assert clusters[0].calls == ["ListWorkers"] * 3


async def test_name_with_or_without_collection(clusters: tuple[FakeCluster, FakeCluster]) -> None:
    """worker() takes `c` and `workers/c`, and raises NotFound for what does not live."""
    async with RouterClient(clusters[0].endpoint) as router:
        assert (await router.worker("c")) == (await router.worker("workers/c"))
        with pytest.raises(NotFound):
            await router.worker("z")
        with pytest.raises(InvalidArgument):
            await router.worker("transfers/c")


async def test_dead_control_is_passed_over(clusters: tuple[FakeCluster, FakeCluster]) -> None:
    """A call that the first control cannot take is answered by the second, and so are later ones."""
    first, second = clusters
    await first.kill()
    async with RouterClient([first.endpoint, second.endpoint]) as router:
        assert (await router.worker("a")).name == "workers/a"
        await router.worker("b")
    assert second.calls == ["GetWorker workers/a", "GetWorker workers/b"]


async def test_refusal_is_not_passed_on(clusters: tuple[FakeCluster, FakeCluster]) -> None:
    """A control that is not ready is passed over; a refusal of the call itself is final."""
    first, second = clusters
    async with RouterClient([first.endpoint, second.endpoint]) as router:
        first.refusal = NotReady("shutting down")
        await router.worker("a")
        second.calls.clear()
        second.refusal = InvalidArgument.of_field("name", "x", "refused")
        with pytest.raises(InvalidArgument):
            await router.worker("a")
        assert second.calls == ["GetWorker workers/a"]
    assert first.calls == ["GetWorker workers/a"]


async def test_no_control_left(clusters: tuple[FakeCluster, FakeCluster]) -> None:
    """With every control gone, NotReady names each."""
    first, second = clusters
    await first.kill()
    await second.kill()
    async with RouterClient([first.endpoint, second.endpoint]) as router:
        with pytest.raises(NotReady) as caught:
            await router.workers()
    assert first.endpoint in str(caught.value)
    assert second.endpoint in str(caught.value)


async def test_watch_goes_on_at_another_control(clusters: tuple[FakeCluster, FakeCluster]) -> None:
    """A watch whose control dies goes on with the other control's view."""
    first, second = clusters
    async with RouterClient([first.endpoint, second.endpoint]) as router:
        views = router.watch_workers()
        view = await anext(views)
        assert (view.endpoint, len(view.workers), view.etcd_connected) == (first.endpoint, 5, True)
        await first.kill()
        view = await anext(views)
        assert view.endpoint == second.endpoint
        await views.aclose()  # type: ignore[attr-defined]


async def test_pairs_and_their_mismatches(clusters: tuple[FakeCluster, FakeCluster]) -> None:
    """check_pair gives every mismatch with both sides' values; pairs() asks for compatible ones."""
    async with RouterClient(clusters[0].endpoint) as router:
        pair = await router.check_pair("a", "workers/b")
        assert (pair.source, pair.destination, pair.compatible) == ("workers/a", "workers/b", False)
        assert pair.mismatches[0].reason is Reason.LAYOUT_MISMATCH
        assert pair.to_dict()["mismatches"] == [
            {"reason": "LAYOUT_MISMATCH", "field": "model", "source": "a", "destination": "b"}
        ]
        assert [p.source for p in await router.pairs()] == ["workers/p"]
        await router.pairs(compatible_only=False)
    assert clusters[0].calls == ["CheckPair", "ListPairs True", "ListPairs False"]


async def test_transfers_are_asked_of_the_workers_own_control(
    clusters: tuple[FakeCluster, FakeCluster], folder: Path
) -> None:
    """of_worker() finds the worker's control, lists in pages up to a limit, and follows it to a new endpoint."""
    cluster = clusters[0]
    fake = FakeControl(folder / "unused.sock")
    for number in range(5):
        name = f"transfers/{number}"
        fake.transfers[name] = transfer_pb2.Transfer(name=name, state=transfer_pb2.TRANSFER_STATE_READING)
    homes = [FakeCluster(), FakeCluster()]
    for home in homes:
        transfer_pb2_grpc.add_TransferServiceServicer_to_server(fake, home.server)
        await home.start()
    try:
        cluster.workers[3].endpoint = homes[0].endpoint
        async with RouterClient(cluster.endpoint) as router:
            client = router.of_worker("d")
            assert router.of_worker("workers/d") is client
            assert [t.name for t in await client.transfers(limit=3)] == [f"transfers/{n}" for n in range(3)]
            assert len(await client.transfers()) == 5
            cluster.workers[3].endpoint = homes[1].endpoint
            await homes[0].kill()
            assert (await client.transfer("4")).state is TransferState.READING
            assert (await client.cancel_transfer("transfers/4")).name == "transfers/4"
            assert (await client.transfer("4")).state is TransferState.CANCELLED
            with pytest.raises(NotFound):
                await client.transfer("9")
            with pytest.raises(NotFound):
                await router.of_worker("nobody").transfers()
    finally:
        for home in homes:
            await home.kill()


async def test_bad_arguments_name_the_field() -> None:
    """No endpoints, an empty one or a wrong timeout is refused; a client that is not entered says so."""
    for endpoints in ([], [""]):
        with pytest.raises(InvalidArgument, match="endpoints"):
            RouterClient(endpoints)
    with pytest.raises(InvalidArgument, match="timeout_s"):
        RouterClient("127.0.0.1:1", timeout_s=0)
    with pytest.raises(NotReady):
        await RouterClient("127.0.0.1:1").workers()
