"""Reads over the packed path between real data planes."""

import asyncio
import signal
import socket
import time

import numpy as np
import pytest

from kvferry.core.dense import HND, NHD, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.error.v1 import error_pb2
from kvferry.transfer.v1 import transfer_pb2
from tests.process.dataplane.conftest import Start
from tests.process.dataplane.harness import DataPlane, Session, large_layout, read_command, small_layout, until
from tests.process.dataplane.test_stuck_sources import HALF, OTHER_HALF, stop

TCP = {"UCX_TLS": "tcp"}
SOURCE_FLAGS = ("--pack-listen", "127.0.0.1:0")
PACKED = ("--path", "packed")
LATE_SECONDS = 1.0


async def start_pair(start: Start, layout: WorkerLayout, *flags: str) -> tuple[DataPlane, DataPlane]:
    """A source that packs and a destination with these flags."""
    return (
        await start("source", layout, TCP, *SOURCE_FLAGS),
        await start("destination", layout, TCP, *(flags or PACKED)),
    )


async def read(source: DataPlane, here: Session, from_ids: list[int], to_ids: list[int]) -> transfer_pb2.RankFigures:
    """Publish and read blocks, expecting that it works."""
    there = await source.session()
    lease = await there.acquire(f"p{from_ids[0]}", from_ids)
    await there.ask(expect_readers={"duration": {"seconds": 100}})
    peer = await source.as_peer()
    await here.send(connect_peer=peer)
    await here.send(read=read_command("read", peer, lease, from_ids, to_ids))
    finished = await here.finished("read")
    assert not finished.HasField("failure"), finished
    await there.ask(release_lease={"publication": f"p{from_ids[0]}"})
    return finished.figures


@pytest.mark.parametrize("source_order", [HND, NHD])
async def test_every_byte_arrives_and_the_path_is_told(start: Start, source_order: str) -> None:
    """Blocks of any layout come out exactly; the result names the path, its pieces and why it was taken."""
    model = DenseModel("model", 2, 2, 64, 16, ElementType.BFLOAT16)
    source = await start("source", dense_layout(model, 64, order=source_order), TCP, *SOURCE_FLAGS)
    destination = await start("destination", small_layout(), TCP, *PACKED)
    figures = await read(source, await destination.session(), [3, 1, 9], [60, 2, 3])
    assert source.block_bytes([3, 1, 9]) == destination.block_bytes([60, 2, 3])
    assert (transfer_pb2.PATH_PACKED, "stream") == (figures.path, figures.backend)
    (carried,) = figures.paths
    assert (0, transfer_pb2.PATH_PACKED, 3 * 16384) == (carried.source_rank, carried.path, carried.received_bytes)
    assert "path=packed is configured" == carried.choice


async def test_the_cost_model_packs_small_pieces_and_shows_its_figures(start: Start) -> None:
    """Without a forced path, many pieces of 4 KiB over sockets are packed, and the choice shows both estimates."""
    source, destination = await start_pair(start, small_layout(1024), "--path", "auto")
    ids = list(range(512))
    figures = await read(source, await destination.session(), ids, list(reversed(range(512, 1024))))
    assert transfer_pb2.PATH_PACKED == figures.path
    assert "ms" in figures.paths[0].choice
    assert "nixl" in figures.paths[0].choice


@pytest.mark.long
async def test_a_forced_path_that_is_impossible_refuses(start: Start) -> None:
    """A source that does not pack is not read over another path behind the operator's back."""
    source = await start("source", small_layout(), TCP)
    destination = await start("destination", small_layout(), TCP, *PACKED)
    there, here = await source.session(), await destination.session()
    lease = await there.acquire("p", [0])
    peer = await source.as_peer()
    await here.send(connect_peer=peer)
    await here.send(read=read_command("read", peer, lease, [0], [0]))
    finished = await here.finished("read")
    assert error_pb2.REASON_TRANSPORT_FAILED == finished.failure.reason
    assert "the source does not pack" in finished.failure.message


async def test_a_lease_that_ended_fences(start: Start) -> None:
    """A read under a lease that ended fails as FENCED, told by the source itself."""
    source, destination = await start_pair(start, small_layout())
    there, here = await source.session(), await destination.session()
    lease = await there.acquire("p", [0])
    await there.ask(release_lease={"publication": "p"})
    peer = await source.as_peer()
    await here.send(connect_peer=peer)
    before = destination.pool().copy()
    await here.send(read=read_command("read", peer, lease, [0], [0]))
    finished = await here.finished("read")
    assert error_pb2.REASON_FENCED == finished.failure.reason
    assert np.array_equal(before, destination.pool())


async def begin_a_stuck_read(source: DataPlane, here: Session, time_left: float) -> None:
    """Connect by a small read, stop the source and ask it for half of its pool."""
    there = await source.session()
    lease = await there.acquire("p", HALF)
    await there.ask(expect_readers={"duration": {"seconds": 100}})
    peer = await source.as_peer()
    await here.send(connect_peer=peer)
    await here.send(read=read_command("warm", peer, lease, [0], [55]))
    assert not (await here.finished("warm")).HasField("failure")
    await stop(source)
    await here.send(read=read_command("stuck", peer, lease, HALF, OTHER_HALF, time_left=time_left))


async def test_a_stopped_source_ends_at_the_deadline_without_a_late_byte(start: Start) -> None:
    """When the source is stopped the read ends at its deadline, without a new reader agent, and no byte comes after."""
    source, destination = await start_pair(start, large_layout())
    here = await destination.session()
    started = time.monotonic()
    await begin_a_stuck_read(source, here, 1.0)
    finished = await here.finished("stuck")
    assert error_pb2.REASON_DEADLINE_EXCEEDED == finished.failure.reason
    assert time.monotonic() - started < 5.0
    destination.pool()[:] = 7
    source.signal(signal.SIGCONT)
    await asyncio.sleep(LATE_SECONDS)
    assert bool((destination.pool() == 7).all())
    assert "rollover" not in destination.log()


@pytest.mark.long
async def test_a_cancelled_read_frees_its_blocks_while_the_source_is_stopped(start: Start) -> None:
    """A cancel is confirmed although nothing moves, and the blocks take another read at once."""
    source, destination = await start_pair(start, large_layout())
    here = await destination.session()
    await begin_a_stuck_read(source, here, 60.0)
    await here.ask(cancel_read={"transfer": "stuck"})
    finished = await here.finished("stuck")
    assert error_pb2.REASON_CANCELLED == finished.failure.reason
    source.signal(signal.SIGCONT)
    figures = await read(source, here, OTHER_HALF, OTHER_HALF)
    assert source.block_bytes(OTHER_HALF) == destination.block_bytes(OTHER_HALF)
    assert transfer_pb2.PATH_PACKED == figures.path


async def test_a_killed_source_is_lost(start: Start) -> None:
    """When the source is killed around the time of a read, the read fails long before its deadline: as PEER_LOST, or as
    PEER_UNREACHABLE where the source was gone before it was asked."""
    source, destination = await start_pair(start, large_layout())
    here = await destination.session()
    await begin_a_stuck_read(source, here, 60.0)
    source.signal(signal.SIGKILL)
    finished = await here.finished("stuck")
    assert finished.failure.reason in (error_pb2.REASON_PEER_LOST, error_pb2.REASON_PEER_UNREACHABLE)


async def test_garbage_on_the_port_harms_nobody(start: Start) -> None:
    """A source that got garbage from strangers serves readers as before."""
    source, destination = await start_pair(start, small_layout())
    peer = await source.as_peer()
    host, _, port = peer.access.pack_endpoint.rpartition(":")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000, b""):
        with socket.create_connection((host, int(port)), 5.0) as stranger:
            stranger.sendall(garbage)
    await read(source, await destination.session(), [1], [2])
    assert source.block_bytes([1]) == destination.block_bytes([2])
    assert source.process.poll() is None
    await until(lambda: "does not speak this protocol" in source.log())
