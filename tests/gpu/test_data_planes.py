"""The local path between real data planes whose pools lie on a GPU, on the host, or one on each."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import torch

from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.device.cuda import CudaDevice
from kvferry.error.v1 import error_pb2
from kvferry.sdk.pools import MappedPool, PoolInfo, map_pool
from kvferry.transfer.v1 import transfer_pb2
from tests.gpu.conftest import second_device
from tests.process.dataplane.harness import POOL_BYTES, DataPlane, large_layout, lease_of, read_command

IDS = list(range(56))
PAIRS = [
    ("cuda:0", "cuda:0"),
    ("cpu", "cuda:0"),
    ("cuda:0", "cpu"),
    ("cuda:0", "cuda:1"),
    ("cuda:1", "cuda:0"),
]
pytestmark = pytest.mark.usefixtures("device")

Start = Callable[..., Awaitable[DataPlane]]


@pytest.fixture
async def start(tmp_path: Path, device: CudaDevice) -> AsyncIterator[Start]:
    """Starts data planes on any device, adopted."""
    started: list[DataPlane] = []

    async def start_one(name: str, where: str, *flags: str) -> DataPlane:
        if where == "cuda:1":
            second_device()
        plane = DataPlane(tmp_path, name, {}, "--device", where, *flags)
        started.append(plane)
        await plane.connect(large_layout())
        return plane

    yield start_one
    for plane in started:
        await plane.close()


async def attached(plane: DataPlane) -> tuple[MappedPool, torch.Tensor]:
    """A data plane's pool as an engine sees it. The tensor goes before the pool."""
    described = await plane.stub.Describe(pb.DescribeRequest())
    access = described.access
    info = PoolInfo(0, access.device, access.pool_bytes, described.pool_socket, access.boot_id)
    mapped = await asyncio.to_thread(map_pool, info)
    if mapped.torch_device == "cpu":
        return mapped, torch.frombuffer(mapped.memory, dtype=torch.uint8)
    return mapped, torch.as_tensor(mapped.memory, device=mapped.torch_device)


def synchronize(pool: torch.Tensor) -> None:
    """Wait until it is written: data planes know nothing of torch's streams."""
    if pool.is_cuda:
        torch.cuda.synchronize(pool.device)


@pytest.mark.parametrize(("here", "there"), PAIRS)
async def test_a_pull_brings_the_bytes_over_the_local_path(start: Start, here: str, there: str) -> None:
    """Between any two kinds of memory of one host the device copies, and every byte is right."""
    source, destination = await start("source", here), await start("destination", there, "--path", "local")
    from_pool, from_bytes = await attached(source)
    to_pool, to_bytes = await attached(destination)
    from_bytes.copy_(torch.randint(0, 256, (POOL_BYTES,), dtype=torch.uint8))
    synchronize(from_bytes)
    session, lease, peer = await destination.session(), await lease_of(source, IDS), await source.as_peer()
    await session.ask(connect_peer=peer)
    await session.send(read=read_command("t", peer, lease, IDS, list(reversed(IDS))))
    finished = await session.finished("t")
    assert not finished.HasField("failure"), finished
    (carried,) = finished.figures.paths
    assert (transfer_pb2.PATH_LOCAL, "cuda") == (carried.path, carried.backend)
    assert carried.device_time.ToNanoseconds() > 0
    assert 56 << 20 == carried.received_bytes
    # K of all blocks, then V.
    expected = from_bytes.cpu()[: 56 << 20].view(2, 56, -1).flip(1)
    assert torch.equal(expected, to_bytes.cpu()[: 56 << 20].view(2, 56, -1))
    del from_bytes, to_bytes
    from_pool.connection.close()
    to_pool.connection.close()


@pytest.mark.parametrize(("here", "there"), PAIRS)
async def test_a_dead_source_is_lost_and_the_device_stays_well(start: Start, here: str, there: str) -> None:
    """After a source's death its reads fail as PEER_LOST, and reads from another source go on."""
    dead, other = await start("dead", here), await start("other", here)
    destination = await start("destination", there, "--path", "local")
    session = await destination.session()
    leases = {plane: await lease_of(plane, IDS) for plane in (dead, other)}
    peers = {plane: await plane.as_peer() for plane in (dead, other)}
    for plane, peer in peers.items():
        await session.ask(connect_peer=peer)
        await session.send(read=read_command(f"warm-{peer.peer}", peer, leases[plane], IDS, IDS))
        assert not (await session.finished(f"warm-{peer.peer}")).HasField("failure")
    for number in IDS:
        await session.send(read=read_command(f"t{number}", peers[dead], leases[dead], [number], [number]))
    dead.signal(signal.SIGKILL)
    await asyncio.to_thread(dead.process.wait, 10)
    ends = [await session.finished(f"t{number}") for number in IDS]
    assert {end.failure.reason for end in ends if end.HasField("failure")} <= {error_pb2.REASON_PEER_LOST}
    await session.send(read=read_command("after", peers[dead], leases[dead], IDS, IDS))
    assert error_pb2.REASON_PEER_LOST == (await session.finished("after")).failure.reason
    await session.send(read=read_command("on", peers[other], leases[other], IDS, IDS))
    assert not (await session.finished("on")).HasField("failure")


@pytest.mark.parametrize("here", ["cuda:0", "cuda:1"])
async def test_cancelled_copies_are_settled(start: Start, here: str) -> None:
    """A cancelled read on a device ends, and its blocks take another read at once, whose bytes are right."""
    source, destination = await start("source", here), await start("destination", "cuda:0", "--path", "local")
    from_pool, from_bytes = await attached(source)
    to_pool, to_bytes = await attached(destination)
    from_bytes.copy_(torch.randint(0, 256, (POOL_BYTES,), dtype=torch.uint8))
    synchronize(from_bytes)
    session, lease, peer = await destination.session(), await lease_of(source, IDS), await source.as_peer()
    await session.ask(connect_peer=peer)
    for attempt in range(20):
        await session.send(read=read_command(f"t{attempt}", peer, lease, IDS, IDS))
        await session.send(cancel_read={"transfer": f"t{attempt}"})
        finished = await session.finished(f"t{attempt}")
        assert finished.failure.reason in (error_pb2.REASON_UNSPECIFIED, error_pb2.REASON_CANCELLED)
    await session.send(read=read_command("whole", peer, lease, IDS, IDS))
    assert not (await session.finished("whole")).HasField("failure")
    assert torch.equal(from_bytes[: 56 << 20].cpu(), to_bytes[: 56 << 20].cpu())
    del from_bytes, to_bytes
    from_pool.connection.close()
    to_pool.connection.close()
