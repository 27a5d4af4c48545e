"""The local path between real data planes: what is mapped, how it ends, and what is left."""

import asyncio
import contextlib
import signal
from pathlib import Path

import psutil
import pytest

from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.error.v1 import error_pb2
from kvferry.negotiation.v1.negotiation_pb2 import RankLease
from kvferry.transfer.v1 import transfer_pb2
from tests.process.dataplane.conftest import LOCAL_FLAGS, Start
from tests.process.dataplane.harness import DataPlane, Session, large_layout, lease_of, read_command, until

IDS = list(range(56))
THREADS_OF_POOLS = 8
"""Fewer than the connections that are counted."""


def mapped_pools(plane: DataPlane) -> int:
    """Pools that a data plane has mapped, its own included."""
    maps = Path(f"/proc/{plane.process.pid}/maps").read_text().splitlines()
    return len({line.split()[4] for line in maps if "memfd:kvferry-pool" in line})


def is_socket(path: str) -> bool:
    """Whether a socket lies there."""
    return Path(path).is_socket()


def held(plane: DataPlane) -> tuple[int, int, int]:
    """Descriptors, mapped pools and threads of a data plane."""
    process = psutil.Process(plane.process.pid)
    return process.num_fds(), mapped_pools(plane), process.num_threads()


async def read(here: Session, transfer: str, peer: pb.ConnectPeer, lease: RankLease, ids: list[int]) -> pb.ReadFinished:
    """Read blocks into those of the same numbers."""
    await here.send(read=read_command(transfer, peer, lease, ids, ids))
    return await here.finished(transfer)


async def test_a_stopped_source_is_read_all_the_same(start: Start) -> None:
    """A source that is stopped still has its blocks pinned: they are copied from its memory, and are right."""
    source, destination = await start("source"), await start("destination", None, None, *LOCAL_FLAGS)
    here, lease, peer = await destination.session(), await lease_of(source, [1, 5]), await source.as_peer()
    await here.ask(connect_peer=peer)
    await read(here, "t1", peer, lease, [1])
    source.signal(signal.SIGSTOP)
    finished = await read(here, "t2", peer, lease, [1, 5])
    source.signal(signal.SIGCONT)
    assert not finished.HasField("failure"), finished
    assert source.block_bytes([1, 5]) == destination.block_bytes([1, 5])


@pytest.mark.long
async def test_a_source_stopped_before_it_is_mapped_is_not_waited_for(start: Start) -> None:
    """A share socket that does not answer is given up in time, and the reason is told."""
    source, destination = await start("source"), await start("destination", None, None, *LOCAL_FLAGS)
    here, lease, peer = await destination.session(), await lease_of(source, [1]), await source.as_peer()
    source.signal(signal.SIGSTOP)
    await here.ask(connect_peer=peer)
    finished = await read(here, "t", peer, lease, [1])
    source.signal(signal.SIGCONT)
    assert error_pb2.REASON_TRANSPORT_FAILED == finished.failure.reason
    assert "path" in finished.failure.message


async def test_a_dead_source_is_lost_and_its_memory_given_back(start: Start) -> None:
    """After a source's death its reads fail as PEER_LOST, and its pool is mapped nowhere any more."""
    source, destination = await start("source"), await start("destination", None, None, *LOCAL_FLAGS)
    here, lease, peer = await destination.session(), await lease_of(source, [1]), await source.as_peer()
    await here.ask(connect_peer=peer)
    await read(here, "t1", peer, lease, [1])
    assert 2 == mapped_pools(destination)
    source.signal(signal.SIGKILL)
    await asyncio.to_thread(source.process.wait, 10)
    finished = await read(here, "t2", peer, lease, [1])
    assert error_pb2.REASON_PEER_LOST == finished.failure.reason
    await until(lambda: mapped_pools(destination) == 1)


async def test_a_death_during_the_copies_fails_them(start: Start) -> None:
    """Reads under way or waiting when their source is killed succeed with the right bytes, or fail as PEER_LOST."""
    source, destination = (
        await start("source", large_layout()),
        await start("destination", large_layout(), None, *LOCAL_FLAGS),
    )
    here, lease, peer = await destination.session(), await lease_of(source, IDS), await source.as_peer()
    await here.ask(connect_peer=peer)
    await read(here, "t", peer, lease, IDS)
    expected = source.block_bytes(IDS)
    for number in IDS:
        await here.send(read=read_command(f"t{number}", peer, lease, [number], [number]))
    source.signal(signal.SIGKILL)
    ends = [await here.finished(f"t{number}") for number in IDS]
    reasons = {end.failure.reason for end in ends if end.HasField("failure")}
    assert reasons <= {error_pb2.REASON_PEER_LOST}
    size = len(expected) // len(IDS)
    for number, end in zip(IDS, ends, strict=True):
        if not end.HasField("failure"):
            assert expected[number * size : (number + 1) * size] == destination.block_bytes([number])


async def test_cancelled_copies_are_settled_and_write_no_more(start: Start) -> None:
    """What a cancelled read has left is not touched any more once its end is told."""
    source, destination = (
        await start("source", large_layout()),
        await start("destination", large_layout(), None, *LOCAL_FLAGS),
    )
    here, lease, peer = await destination.session(), await lease_of(source, IDS), await source.as_peer()
    await here.ask(connect_peer=peer)
    cancelled = 0
    for attempt in range(100):
        await here.send(read=read_command(f"t{attempt}", peer, lease, IDS, IDS))
        await here.send(cancel_read={"transfer": f"t{attempt}"})
        finished = await here.finished(f"t{attempt}")
        if finished.failure.reason == error_pb2.REASON_CANCELLED:
            cancelled += 1
            assert finished.figures.received_bytes < 56 << 20
            destination.pool()[:] = attempt
            # Another read goes through the same threads after it.
            await read(here, f"after{attempt}", peer, lease, [0])
            assert destination.block_bytes(IDS[1:]) == bytes([attempt]) * (55 << 20)
            if cancelled == 3:
                break
    assert 3 == cancelled
    finished = await read(here, "whole", peer, lease, IDS)
    assert not finished.HasField("failure"), finished
    assert source.block_bytes(IDS) == destination.block_bytes(IDS)


async def test_connecting_and_disconnecting_leaves_nothing(start: Start) -> None:
    """Descriptors, mappings and threads are no more after many connections than after the first."""
    source, destination = await start("source"), await start("destination", None, None, *LOCAL_FLAGS)
    here, lease, peer = await destination.session(), await lease_of(source, [1]), await source.as_peer()
    before: list[tuple[int, int, int]] = []
    for attempt in range(30):
        await here.ask(connect_peer=peer)
        finished = await read(here, f"t{attempt}", peer, lease, [1])
        assert not finished.HasField("failure"), finished
        await here.ask(disconnect_peer={"peer": peer.peer})
        await until(lambda: mapped_pools(destination) == 1)
        if attempt == 4:
            before = [held(source), held(destination)]
    with contextlib.suppress(TimeoutError):
        await until(lambda: all(map(no_more, before, (held(source), held(destination)))))
    after = [held(source), held(destination)]
    assert before
    assert all(map(no_more, before, after)), (before, after)


def no_more(before: tuple[int, int, int], after: tuple[int, int, int]) -> bool:
    """Whether nothing was added; what was just going when it was counted may be gone, and pools of threads that wait
    for the other side may have grown to their bounds."""
    return all(now <= then + grown for then, now, grown in zip(before, after, (0, 0, THREADS_OF_POOLS), strict=True))


async def test_where_mapping_is_off_the_backend_reads(start: Start) -> None:
    """A data plane that is not to map pools of its host reads by its backend, and says why."""
    source, destination = await start("source"), await start("destination", None, None, "--same-host", "backend")
    here, peer, session = await destination.session(), await source.as_peer(), await source.session()
    lease = await session.acquire("p", [1])
    await session.ask(expect_readers={"duration": {"seconds": 20}})
    await here.ask(connect_peer=peer)
    finished = await read(here, "t", peer, lease, [1])
    assert transfer_pb2.PATH_NIXL == finished.figures.path
    assert "same_host=backend is configured" in finished.figures.paths[0].choice
    assert 1 == mapped_pools(destination)


@pytest.mark.parametrize("off", ["source", "destination"])
@pytest.mark.long
async def test_where_one_side_is_off_nothing_is_mapped_nor_shown(start: Start, off: str) -> None:
    """The pair is read as if there were two hosts: no memory is mapped, and whoever is off shows none."""
    flags = ("--same-host", "off")
    source = await start("source", None, None, *(flags if off == "source" else ()))
    destination = await start("destination", None, None, *(flags if off == "destination" else ()))
    here, lease, peer = await destination.session(), await lease_of(source, [1]), await source.as_peer()
    await here.ask(connect_peer=peer)
    finished = await read(here, "t", peer, lease, [1])
    assert transfer_pb2.PATH_NIXL == finished.figures.path
    assert source.block_bytes([1]) == destination.block_bytes([1])
    why = {"source": "the source does not share its memory", "destination": "same_host=off is configured"}[off]
    assert why in finished.figures.paths[0].choice
    assert (1, 1) == (mapped_pools(source), mapped_pools(destination))
    for plane, name in ((source, "source"), (destination, "destination")):
        access = (await plane.as_peer()).access
        assert (name != off) == bool(access.host_id) == bool(access.share_socket)
        assert (name != off) == is_socket(f"{plane.socket}.share")


@pytest.mark.long
async def test_a_forced_path_that_is_impossible_refuses(start: Start) -> None:
    """With the local path forced and mapping off a read fails and names the path; it does not take another one."""
    flags = (*LOCAL_FLAGS, "--same-host", "backend")
    source, destination = await start("source"), await start("destination", None, None, *flags)
    here, lease, peer = await destination.session(), await lease_of(source, [1]), await source.as_peer()
    await here.ask(connect_peer=peer)
    finished = await read(here, "t", peer, lease, [1])
    assert error_pb2.REASON_TRANSPORT_FAILED == finished.failure.reason
    assert "path=local" in finished.failure.message.replace("'", "")
