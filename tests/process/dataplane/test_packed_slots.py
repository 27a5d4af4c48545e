"""Packed reads that are carried by NIXL, from staging slots of the source, between real data planes."""

import asyncio
import json
import re
import signal
import time
import urllib.request

import numpy as np
import pytest

from kvferry.core.dense import HND, NHD, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.error.v1 import error_pb2
from kvferry.transfer.v1 import transfer_pb2
from tests.process.dataplane.conftest import Start
from tests.process.dataplane.harness import DataPlane, Session, large_layout, read_command, small_layout
from tests.process.dataplane.test_packed import begin_a_stuck_read, read
from tests.process.dataplane.test_stuck_sources import HALF, OTHER_HALF

TCP = {"UCX_TLS": "tcp"}
FLAGS = (
    *("--path", "packed", "--same-host", "backend", "--pack-wire", "nixl"),
    *("--metrics-listen", "127.0.0.1:0", "--log-format", "json"),
)
SOURCE_FLAGS = (*FLAGS, "--pack-listen", "127.0.0.1:0")
LATE_SECONDS = 1.0


async def start_pair(
    start: Start, layout: WorkerLayout, environment: dict[str, str] | None = None
) -> tuple[DataPlane, DataPlane]:
    """A source that holds chunks and a destination that reads them."""
    source = await start("source", layout, environment, *SOURCE_FLAGS)
    return source, await start("destination", layout, environment, *FLAGS)


async def expect_whole(source: DataPlane, here: Session, destination: DataPlane, ids: list[int]) -> None:
    """Read blocks into others, and see that every byte is there."""
    to_ids = ids[::-1]
    figures = await read(source, here, ids, to_ids)
    assert (transfer_pb2.PATH_PACKED, "UCX") == (figures.path, figures.backend)
    assert source.block_bytes(ids) == destination.block_bytes(to_ids)


async def slots_held(plane: DataPlane, gauge: str) -> int:
    """How many staging slots a data plane says are in use."""
    lines = map(json.loads, plane.log().splitlines())
    port = next(line["metrics_port"] for line in lines if "metrics_port" in line)
    with await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/metrics") as answer:
        page = answer.read().decode()
    return int(float(re.findall(rf"^kvferry_dataplane_{gauge} (\S+)$", page, re.MULTILINE)[0]))


async def expect_no_slot_held(source: DataPlane, destination: DataPlane) -> None:
    """Wait until no slot of either side is in use."""
    async with asyncio.timeout(10):
        for plane, gauge in ((source, "pack_slots_held"), (destination, "read_slots_held")):
            while await slots_held(plane, gauge):  # noqa: ASYNC110 - what is waited for lies in another process
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("environment", [{}, TCP], ids=["shared-memory", "sockets"])
@pytest.mark.parametrize("source_order", [HND, NHD])
async def test_every_byte_arrives(start: Start, source_order: str, environment: dict[str, str]) -> None:
    """Blocks of any layout come out exactly, over any transport of NIXL's; the result names path and backend."""
    model = DenseModel("model", 2, 2, 64, 16, ElementType.BFLOAT16)
    source = await start("source", dense_layout(model, 64, order=source_order), environment, *SOURCE_FLAGS)
    destination = await start("destination", small_layout(), environment, *FLAGS)
    figures = await read(source, await destination.session(), [3, 1, 9], [60, 2, 3])
    assert source.block_bytes([3, 1, 9]) == destination.block_bytes([60, 2, 3])
    assert (transfer_pb2.PATH_PACKED, "UCX") == (figures.path, figures.backend)
    (carried,) = figures.paths
    assert (0, transfer_pb2.PATH_PACKED, 3 * 16384) == (carried.source_rank, carried.path, carried.received_bytes)
    assert 0 < carried.descriptor_count


@pytest.mark.long
async def test_many_reads_leave_no_slot_behind(start: Start) -> None:
    """A hundred reads, and some of more bytes than all slots have, go on for as long as one likes."""
    source, destination = await start_pair(start, large_layout())
    here = await destination.session()
    for number in range(100):
        await expect_whole(source, here, destination, [number % 56])
    for _ in range(3):
        await expect_whole(source, here, destination, list(range(56)))
    await expect_no_slot_held(source, destination)
    assert "given up" not in destination.log()


async def test_reads_that_are_cancelled_leave_no_slot_behind(start: Start) -> None:
    """Reads that end early, wherever they are, cost nothing of those that come after."""
    source, destination = await start_pair(start, large_layout())
    there, here = await source.session(), await destination.session()
    lease = await there.acquire("p", OTHER_HALF)
    peer = await source.as_peer()
    await there.ask(expect_readers={"duration": {"seconds": 100}})
    await here.send(connect_peer=peer)
    for number in range(40):
        name = f"cancelled-{number}"
        await here.send(read=read_command(name, peer, lease, OTHER_HALF, list(range(28))))
        await asyncio.sleep(number * 0.0005)
        await here.ask(cancel_read={"transfer": name})
        await here.finished(name)
    for _ in range(3):
        await expect_whole(source, here, destination, list(range(56)))
    await expect_no_slot_held(source, destination)


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


@pytest.mark.long
async def test_a_source_without_slots_is_not_streamed_from_unasked(start: Start) -> None:
    """Where NIXL is forced as the wire, a source that has no slots refuses the read."""
    source = await start("source", small_layout(), {}, "--pack-listen", "127.0.0.1:0", "--same-host", "backend")
    destination = await start("destination", small_layout(), {}, *FLAGS)
    there, here = await source.session(), await destination.session()
    lease, peer = await there.acquire("p", [0]), await source.as_peer()
    await here.send(connect_peer=peer)
    await here.send(read=read_command("read", peer, lease, [0], [0]))
    finished = await here.finished("read")
    assert error_pb2.REASON_TRANSPORT_FAILED == finished.failure.reason
    assert "the source has no staging slots" in finished.failure.message


async def test_a_stopped_source_ends_at_the_deadline_without_a_late_byte(start: Start) -> None:
    """A read from a stopped source ends at its deadline, no byte comes after, and reads go on once the source does."""
    source, destination = await start_pair(start, large_layout(), TCP)
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
    for _ in range(3):
        await expect_whole(source, here, destination, OTHER_HALF)
    await expect_no_slot_held(source, destination)


@pytest.mark.long
async def test_a_source_that_stops_midway_writes_no_late_byte(start: Start) -> None:
    """However far a read has come when its source stops, it ends at its deadline and no byte comes after. Reads from
    another source go on meanwhile, reads from this one succeed once it goes on, and no slot is lost."""
    source, destination = await start_pair(start, large_layout(), TCP)
    other = await start("other", large_layout(), TCP, *SOURCE_FLAGS)
    there, here = await source.session(), await destination.session()
    lease, peer = await there.acquire("p", OTHER_HALF), await source.as_peer()
    await there.ask(expect_readers={"duration": {"seconds": 100}})
    await here.send(connect_peer=peer)
    await here.send(read=read_command("warm", peer, lease, OTHER_HALF, OTHER_HALF))
    assert not (await here.finished("warm")).HasField("failure")
    failures = 0
    for number in range(4):
        name = f"stopped-{number}"
        await here.send(read=read_command(name, peer, lease, OTHER_HALF, OTHER_HALF, time_left=0.5))
        await asyncio.sleep(0.004 * number)
        source.signal(signal.SIGSTOP)
        failures += (await here.finished(name)).HasField("failure")
        # So long that what NIXL has not ended is given up.
        await asyncio.sleep(0.6)
        await expect_whole(other, here, destination, HALF)
        destination.pool()[:] = 7
        source.signal(signal.SIGCONT)
        await asyncio.sleep(0.2)
        assert bool((destination.pool() == 7).all())
        await expect_whole(source, here, destination, OTHER_HALF)
    assert failures, "the source was never stopped midway"
    for plane in (source, other):
        await expect_no_slot_held(plane, destination)


async def test_a_cancelled_read_frees_its_blocks_while_the_source_is_stopped(start: Start) -> None:
    """A cancel is confirmed although nothing moves, and the blocks take another read as soon as there is a source."""
    source, destination = await start_pair(start, large_layout(), TCP)
    here = await destination.session()
    await begin_a_stuck_read(source, here, 60.0)
    await here.ask(cancel_read={"transfer": "stuck"})
    finished = await here.finished("stuck")
    assert error_pb2.REASON_CANCELLED == finished.failure.reason
    source.signal(signal.SIGCONT)
    await expect_whole(source, here, destination, OTHER_HALF)


@pytest.mark.long
async def test_a_killed_source_is_lost(start: Start) -> None:
    """When the source is killed around the time of a read, the read fails long before its deadline."""
    source, destination = await start_pair(start, large_layout(), TCP)
    here = await destination.session()
    await begin_a_stuck_read(source, here, 60.0)
    source.signal(signal.SIGKILL)
    finished = await here.finished("stuck")
    assert finished.failure.reason in (error_pb2.REASON_PEER_LOST, error_pb2.REASON_PEER_UNREACHABLE)


async def test_a_source_killed_midway_costs_the_others_nothing(start: Start) -> None:
    """A source dies while much is read from it; reads from another one succeed, with every slot there is."""
    dying, destination = await start_pair(start, large_layout(), TCP)
    other = await start("other", large_layout(), TCP, *SOURCE_FLAGS)
    here = await destination.session()
    there = await dying.session()
    lease, peer = await there.acquire("p", list(range(56))), await dying.as_peer()
    await there.ask(expect_readers={"duration": {"seconds": 100}})
    await here.send(connect_peer=peer)
    await here.send(read=read_command("warm", peer, lease, [0], [0]))
    assert not (await here.finished("warm")).HasField("failure")
    for number in range(4):
        ids = list(range(14 * number, 14 * number + 14))
        await here.send(read=read_command(f"dying-{number}", peer, lease, ids, ids))
    await asyncio.sleep(0.015)
    dying.signal(signal.SIGKILL)
    ends = [await here.finished(f"dying-{number}") for number in range(4)]
    assert any(end.HasField("failure") for end in ends), "all was read before the source was killed"
    for _ in range(3):
        await expect_whole(other, here, destination, list(range(56)))
    await expect_no_slot_held(other, destination)
    assert None is re.search("Traceback|defect", destination.log())
