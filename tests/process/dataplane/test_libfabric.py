"""Reads over NIXL's LIBFABRIC backend, on libfabric's tcp provider, between two network namespaces.

Namespaces, since libfabric finds no device where there is the loopback alone; and a wire, since that is what stalls.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.error.v1 import error_pb2
from kvferry.launch.namespaces import NamespacePair
from kvferry.negotiation.v1.negotiation_pb2 import RankLease
from kvferry.transfer.v1 import transfer_pb2
from kvferry_dataplane.reads.unsafe import CONFIRMATION, SKIP_ROLLOVER
from tests.process.dataplane.conftest import Start
from tests.process.dataplane.harness import DataPlane, Session, large_layout, read_command, small_layout, until
from tests.process.launch.capabilities import needs_namespaces

pytestmark = needs_namespaces

FLAGS = ("--nixl-backend", "LIBFABRIC", "--path", "nixl", "--same-host", "backend")
BLOCKS = list(range(28))
OTHER_BLOCKS = list(range(28, 56))
DEADLINE_SECONDS = 2.0
LATE_SECONDS = 2.0

StartOn = Callable[[str, str], Awaitable[DataPlane]]


@pytest.fixture
async def start_on(start: Start) -> AsyncIterator[StartOn]:
    """Starts data planes with large blocks on a side of the wire, given the side and a name."""
    with NamespacePair() as pair:

        async def start_one(side: str, name: str) -> DataPlane:
            namespace = pair.source if side == "source" else pair.destination
            return await start(name, large_layout(), None, *FLAGS, launcher=namespace.launcher)

        yield start_one


async def serve(source: DataPlane) -> tuple[RankLease, pb.ConnectPeer]:
    """Lease the blocks of a source, and have it expect readers."""
    there = await source.session()
    lease = await there.acquire("p", BLOCKS)
    await there.ask(expect_readers={"duration": {"seconds": 100}})
    return lease, await source.as_peer()


async def warm(here: Session, peer: pb.ConnectPeer, lease: RankLease) -> None:
    """One small read, so that the connection is there."""
    await here.send(connect_peer=peer)
    await here.send(read=read_command(f"warm-{peer.peer}", peer, lease, [0], [55]))
    finished = await here.finished(f"warm-{peer.peer}")
    assert not finished.HasField("failure"), finished


async def stop(source: DataPlane) -> None:
    """Stop a process and wait until the kernel says so."""
    source.signal(signal.SIGSTOP)
    stat = Path(f"/proc/{source.process.pid}/stat")
    await until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")


async def arriving(destination: DataPlane) -> None:
    """Wait until the first block has begun to arrive in a pool that was zeroed."""
    first = destination.pool()[: 1 << 20]
    await until(lambda: bool(first.any()))


async def midway(
    source: DataPlane, destination: DataPlane, here: Session, peer: pb.ConnectPeer, lease: RankLease
) -> None:
    """A read of which something has arrived, and whose source has stopped."""
    destination.pool()[:] = 0
    await here.send(read=read_command("midway", peer, lease, BLOCKS, BLOCKS, time_left=DEADLINE_SECONDS))
    await arriving(destination)
    await stop(source)


async def test_scattered_blocks_arrive_and_the_result_names_the_backend(start: Start) -> None:
    """Blocks in a random order, in runs of 4 KiB, arrive as they were, and the read says over what."""
    with NamespacePair() as pair:
        source = await start("source", small_layout(), None, *FLAGS, launcher=pair.source.launcher)
        destination = await start("destination", small_layout(), None, *FLAGS, launcher=pair.destination.launcher)
        there, here = await source.session(), await destination.session()
        order = np.random.default_rng(5).permutation(64).tolist()
        lease = await there.acquire("p", order[:40])
        await there.ask(expect_readers={"duration": {"seconds": 100}})
        peer = await source.as_peer()
        await here.send(connect_peer=peer)
        await here.send(read=read_command("t", peer, lease, order[:40], order[24:]))
        finished = await here.finished("t")
    assert not finished.HasField("failure"), finished
    assert source.block_bytes(order[:40]) == destination.block_bytes(order[24:])
    figures = finished.figures
    assert (transfer_pb2.PATH_NIXL, "LIBFABRIC") == (figures.path, figures.backend)
    assert 40 * 16384 == figures.received_bytes


async def test_settings_of_libfabric_are_reported(start_on: StartOn) -> None:
    """What libfabric was told to do is described like UCX's settings are."""
    plane = await start_on("source", "source")
    described = await plane.stub.Describe(pb.DescribeRequest())
    assert "nixl/LIBFABRIC" == described.access.backend
    settings = {setting.name: setting.from_environment for setting in described.transport_settings}
    assert settings.get("NIXL_LOG_LEVEL") is False
    assert not any(name.startswith("UCX_") for name in settings)


async def test_a_killed_source_is_lost(start_on: StartOn) -> None:
    """A read from a source that is killed midway fails as PEER_LOST within a second of its deadline at the latest, and
    the next read from it fails likewise."""
    source, destination = await start_on("source", "source"), await start_on("destination", "destination")
    here = await destination.session()
    lease, peer = await serve(source)
    await warm(here, peer, lease)
    await midway(source, destination, here, peer, lease)
    started = time.monotonic()
    source.signal(signal.SIGKILL)
    finished = await here.finished("midway")
    assert error_pb2.REASON_PEER_LOST == finished.failure.reason
    assert time.monotonic() - started < DEADLINE_SECONDS + 1
    started = time.monotonic()
    await here.send(read=read_command("after", peer, lease, BLOCKS, BLOCKS, time_left=DEADLINE_SECONDS))
    finished = await here.finished("after")
    assert error_pb2.REASON_PEER_LOST == finished.failure.reason
    assert time.monotonic() - started < DEADLINE_SECONDS + 1


@pytest.mark.long
async def test_a_killed_source_harms_no_other(start_on: StartOn) -> None:
    """While one source is killed midway, reads from another go on: libfabric tells its failures to whoever looks."""
    killed, other = await start_on("source", "killed"), await start_on("source", "other")
    destination = await start_on("destination", "destination")
    here = await destination.session()
    lease, peer = await serve(killed)
    other_lease, other_peer = await serve(other)
    await warm(here, peer, lease)
    await warm(here, other_peer, other_lease)
    await midway(killed, destination, here, peer, lease)
    await here.send(read=read_command("other", other_peer, other_lease, BLOCKS[:20], OTHER_BLOCKS[:20]))
    killed.signal(signal.SIGKILL)
    finished = await here.finished("other")
    assert not finished.HasField("failure"), finished
    assert other.block_bytes(BLOCKS[:20]) == destination.block_bytes(OTHER_BLOCKS[:20])
    assert error_pb2.REASON_PEER_LOST == (await here.finished("midway")).failure.reason


@pytest.mark.long
async def test_no_byte_comes_after_a_cancel_or_a_deadline(start_on: StartOn) -> None:
    """Reads from a source that has stopped midway end at the cancel, and at the deadline; no byte comes when it goes
    on, and it can be read again."""
    source, destination = await start_on("source", "source"), await start_on("destination", "destination")
    here = await destination.session()
    lease, peer = await serve(source)
    await warm(here, peer, lease)
    for cancels, reason in ((True, error_pb2.REASON_CANCELLED), (False, error_pb2.REASON_DEADLINE_EXCEEDED)):
        await midway(source, destination, here, peer, lease)
        started = time.monotonic()
        if cancels:
            await here.ask(cancel_read={"transfer": "midway"})
        finished = await here.finished("midway")
        destination.pool()[:] = 0
        assert reason == finished.failure.reason
        assert time.monotonic() - started < (1 if cancels else DEADLINE_SECONDS + 1)
        source.signal(signal.SIGCONT)
        await asyncio.sleep(LATE_SECONDS)
        assert 0 == np.count_nonzero(destination.pool())
    await here.send(read=read_command("again", peer, lease, BLOCKS, BLOCKS))
    assert not (await here.finished("again")).HasField("failure")
    assert source.block_bytes(BLOCKS) == destination.block_bytes(BLOCKS)


@pytest.mark.long
async def test_without_the_rollover_late_bytes_are_found(start: Start) -> None:
    """With the agents kept, bytes come after a cancel: the test above can fail."""
    with NamespacePair() as pair:
        source = await start("source", large_layout(), None, *FLAGS, launcher=pair.source.launcher)
        unsafe = {SKIP_ROLLOVER: CONFIRMATION}
        destination = await start("unsafe", large_layout(), unsafe, *FLAGS, launcher=pair.destination.launcher)
        here = await destination.session()
        lease, peer = await serve(source)
        await warm(here, peer, lease)
        await midway(source, destination, here, peer, lease)
        await here.ask(cancel_read={"transfer": "midway"})
        await here.finished("midway")
        destination.pool()[:] = 0
        source.signal(signal.SIGCONT)
        await until(lambda: bool(destination.pool().any()))


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_source_that_never_answered_ends_the_read_in_time(start_on: StartOn, number: signal.Signals) -> None:
    """A read from a source that stopped or died before the first contact ends in time, and holds up no other source."""
    silent, other = await start_on("source", "silent"), await start_on("source", "other")
    destination = await start_on("destination", "destination")
    here = await destination.session()
    lease, peer = await serve(silent)
    other_lease, other_peer = await serve(other)
    await warm(here, other_peer, other_lease)
    silent.signal(number)
    started = time.monotonic()
    await here.send(connect_peer=peer)
    await here.send(read=read_command("silent", peer, lease, BLOCKS, BLOCKS, time_left=DEADLINE_SECONDS))
    await here.send(read=read_command("other", other_peer, other_lease, BLOCKS, OTHER_BLOCKS))
    finished = await here.finished("silent")
    assert error_pb2.REASON_PEER_LOST == finished.failure.reason
    assert time.monotonic() - started < DEADLINE_SECONDS + 1
    assert not (await here.finished("other")).HasField("failure")
    assert other.block_bytes(BLOCKS) == destination.block_bytes(OTHER_BLOCKS)


@pytest.mark.long
async def test_a_source_that_comes_back_is_read(start_on: StartOn) -> None:
    """A source that had stopped before the first contact is read once it goes on."""
    source, destination = await start_on("source", "source"), await start_on("destination", "destination")
    here = await destination.session()
    lease, peer = await serve(source)
    await stop(source)
    await here.send(connect_peer=peer)
    await here.send(read=read_command("early", peer, lease, BLOCKS, BLOCKS, time_left=DEADLINE_SECONDS))
    assert error_pb2.REASON_PEER_LOST == (await here.finished("early")).failure.reason
    source.signal(signal.SIGCONT)
    await here.send(read=read_command("later", peer, lease, BLOCKS, BLOCKS))
    finished = await here.finished("later")
    assert not finished.HasField("failure"), finished
    assert source.block_bytes(BLOCKS) == destination.block_bytes(BLOCKS)


@pytest.mark.long
async def test_readers_that_die_harm_no_other_reader(start_on: StartOn) -> None:
    """A source goes on to serve when a reader is killed midway, and one right after it said who it is."""
    source = await start_on("source", "source")
    lease, peer = await serve(source)
    for name in ("midway", "early"):
        reader = await start_on("destination", name)
        reader.pool()[:] = 0
        here = await reader.session()
        await here.send(connect_peer=peer)
        await here.send(read=read_command("t", peer, lease, BLOCKS, BLOCKS))
        if name == "midway":
            await arriving(reader)
        reader.signal(signal.SIGKILL)
    reader = await start_on("destination", "last")
    here = await reader.session()
    await warm(here, peer, lease)
