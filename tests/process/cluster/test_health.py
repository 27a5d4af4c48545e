"""Health that tells a process that lives from one that gets on: really stuck threads, and others that only wait."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from grpc import aio
from grpc_health.v1 import health_pb2

from kvferry.core.errors import KvferryError
from kvferry.rpc.health import check_health
from tests.process.cluster.pair import Pair, eventually, running_pair
from tests.process.demo.commands import finished, kvferry
from tests.process.frozen_threads import frozen_thread

SERVING = health_pb2.HealthCheckResponse.SERVING
STALL_S = 1.0
SLOW = {"UCX_TLS": "tcp"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Pair]:
    """A pair that notices soon, whose reads go over sockets."""
    flags = ("--path", "nixl")
    async with running_pair(stall_s=STALL_S, data_plane_flags=flags, data_plane_environment=SLOW) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def serves(socket: Path, service: str = "") -> bool:
    """What the health socket of a process answers."""
    async with aio.insecure_channel(f"unix:{socket}.health") as channel:
        return SERVING == await check_health(channel, service, timeout_s=5)


async def becomes(socket: Path, serving: bool, service: str = "") -> None:
    """Wait until a process says so."""

    async def says_so() -> bool:
        return serving == await serves(socket, service)

    await eventually(says_so, f"{socket.name} {service} serves: {serving}")


async def probe(*arguments: str) -> int:
    """Exit status of `kvferry health`, as a container's check runs it."""
    async with kvferry("health", *arguments) as process:
        return (await finished(process))[0]


@pytest.mark.long
async def test_a_stuck_reads_thread(pair: Pair) -> None:
    """A data plane whose reads' thread is stuck says NOT_SERVING, by name, and so does its control, which is alive;
    both serve again once it goes on; the pull that it held up ended typed in time."""
    control, transfers = pair.decode.engine_socket, "kvferry.transfer.v1.TransferService"
    plane, socket = pair.decode.data_planes[0], pair.decode.rank_sockets[0]
    publication = await pair.publish([1], ttl_s=60, readers=0)
    await pair.destination.pull(publication.handle, [1], timeout_s=10)
    with frozen_thread(plane.pid, "kvferry-reads"):
        with pytest.raises(KvferryError):
            await pair.destination.pull(publication.handle, [2], timeout_s=1)
        await becomes(socket, serving=False)
        await becomes(socket, serving=False, service="reads")
        assert await serves(socket, "serving")
        assert await serves(socket, "kvferry.dataplane.v1.DataPlaneService")
        assert await serves(pair.decode.rank_sockets[1])
        await becomes(control, serving=False, service=transfers)
        assert await serves(control, "liveness")
    await becomes(socket, serving=True)
    await becomes(control, serving=True)
    await pair.destination.pull(publication.handle, [3], timeout_s=10)


@pytest.mark.parametrize("which", ["control", "data plane"])
async def test_a_stuck_event_loop(pair: Pair, which: str) -> None:
    """A process whose event loop is stuck still answers for its health, with NOT_SERVING, and recovers by itself."""
    of_control = which == "control"
    child = pair.prefill.control if of_control else pair.prefill.data_planes[0]
    socket = pair.prefill.engine_socket if of_control else pair.prefill.rank_sockets[0]
    with frozen_thread(child.pid):
        await becomes(socket, serving=False)
        await becomes(socket, serving=False, service="liveness")
    await becomes(socket, serving=True)


async def test_a_process_that_was_stopped_as_a_whole_is_not_stuck(pair: Pair) -> None:
    """A data plane that was stopped for longer than the bound and goes on never says NOT_SERVING."""
    plane, socket = pair.decode.data_planes[1], pair.decode.rank_sockets[1]
    async with aio.insecure_channel(f"unix:{socket}.health") as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest())
        first = await watch.read()
        assert isinstance(first, health_pb2.HealthCheckResponse)
        assert first.status == SERVING
        plane.pause()
        await asyncio.sleep(1.5 * STALL_S)
        plane.resume()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.read(), 1.5 * STALL_S)


async def test_a_stuck_source_does_not_make_its_reader_ill(pair: Pair) -> None:
    """While a source is stopped, reads of it end typed by their deadlines, and the reading data planes keep serving."""
    publication = await pair.publish(range(200), ttl_s=60, readers=0)
    for child in pair.prefill.data_planes.values():
        child.pause()
    try:
        with pytest.raises(KvferryError):
            await pair.destination.pull(publication.handle, range(200), timeout_s=2 * STALL_S)
        assert all([await serves(socket) for socket in pair.decode.rank_sockets])
        assert await serves(pair.decode.engine_socket)
    finally:
        for child in pair.prefill.data_planes.values():
            child.resume()


async def test_a_control_without_a_data_plane_is_alive_but_does_not_serve(pair: Pair) -> None:
    """A control that has lost a data plane says NOT_SERVING for what needs it, and SERVING for the rest."""
    socket = pair.prefill.engine_socket
    await pair.prefill.data_planes[1].kill()
    await becomes(socket, serving=False)
    await becomes(socket, serving=False, service="kvferry.transfer.v1.TransferService")
    assert await serves(socket, "liveness")
    assert await serves(socket, "kvferry.worker.v1.WorkerService")
    assert 1 == await probe(f"unix:{socket}.health")
    assert 0 == await probe(pair.prefill.endpoint, "--service", "liveness")
    await pair.prefill.start_data_plane(1)
    await becomes(socket, serving=True)
