"""Reads whose source stops or dies: a typed end in time, and no byte after it.

Over sockets (`UCX_TLS=tcp`), so that a stopped source really stalls a read: with the default transports of one host the
destination's kernel copies the bytes, and a stopped source is no obstacle.
"""

import asyncio
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.error.v1 import error_pb2
from kvferry.negotiation.v1.negotiation_pb2 import RankLease
from tests.process.dataplane.conftest import TRANSPORTS, Start
from tests.process.dataplane.harness import DataPlane, Session, large_layout, read_command, until

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)

TCP = {"UCX_TLS": "tcp"}
HALF = list(range(28))
OTHER_HALF = list(range(28, 56))
LATE_SECONDS = 2.0


async def _serve(source: DataPlane) -> tuple[RankLease, pb.ConnectPeer]:
    there = await source.session()
    lease = await there.acquire("p", HALF)
    await there.ask(expect_readers={"duration": {"seconds": 100}})
    return lease, await source.as_peer()


async def stop(source: DataPlane) -> None:
    """Stop a process and wait until the kernel says so."""
    source.signal(signal.SIGSTOP)
    stat = Path(f"/proc/{source.process.pid}/stat")
    await until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")


async def _warm(here: Session, peer: pb.ConnectPeer, lease: RankLease) -> None:
    """One small read, so that the connection is there."""
    await here.send(connect_peer=peer)
    await here.send(read=read_command(f"warm-{peer.peer}", peer, lease, [0], [55]))
    finished = await here.finished(f"warm-{peer.peer}")
    assert not finished.HasField("failure"), finished


@pytest.mark.long
async def test_a_stopped_source_ends_in_a_typed_error_and_no_late_byte(start: Start) -> None:
    """When the source is stopped, the read ends within a second of its deadline, no byte arrives after that, and reads
    from another source go on meanwhile."""
    stuck, other = await start("stuck", large_layout(), TCP), await start("other", large_layout(), TCP)
    destination = await start("destination", large_layout(), TCP)
    here = await destination.session()
    lease, peer = await _serve(stuck)
    other_lease, other_peer = await _serve(other)
    await _warm(here, peer, lease)
    await _warm(here, other_peer, other_lease)
    await stop(stuck)
    started = time.monotonic()
    await here.send(read=read_command("stuck", peer, lease, HALF, HALF, time_left=1.0))
    read_from_other = 0
    while not any(e.read_finished.transfer == "stuck" for e in here.events):
        await here.send(read=read_command("other", other_peer, other_lease, [5, 6], [40, 41]))
        assert not (await here.finished("other")).HasField("failure")
        read_from_other += 1
    finished = await here.finished("stuck")
    took = time.monotonic() - started
    destination.pool()[:] = 0
    assert error_pb2.REASON_DEADLINE_EXCEEDED == finished.failure.reason
    assert took < 2.0
    assert read_from_other > 5
    stuck.signal(signal.SIGCONT)
    await asyncio.sleep(LATE_SECONDS)
    assert 0 == np.count_nonzero(destination.pool())
    await here.send(read=read_command("again", peer, lease, HALF, HALF))
    assert not (await here.finished("again")).HasField("failure")
    assert stuck.block_bytes(HALF) == destination.block_bytes(HALF)


async def test_a_cancelled_read_that_is_stuck_settles(start: Start) -> None:
    """Cancelling a read from a stopped source ends it long before its deadline, and no byte arrives after that."""
    stuck, destination = await start("stuck", large_layout(), TCP), await start("destination", large_layout(), TCP)
    here = await destination.session()
    lease, peer = await _serve(stuck)
    await _warm(here, peer, lease)
    await stop(stuck)
    await here.send(read=read_command("stuck", peer, lease, HALF, HALF, time_left=60.0))
    await here.ask(cancel_read={"transfer": "stuck"})
    finished = await here.finished("stuck")
    destination.pool()[:] = 0
    assert error_pb2.REASON_CANCELLED == finished.failure.reason
    stuck.signal(signal.SIGCONT)
    await asyncio.sleep(LATE_SECONDS)
    assert 0 == np.count_nonzero(destination.pool())


async def test_a_killed_source_is_lost(start: Start) -> None:
    """A read from a source that is killed meanwhile fails as PEER_LOST, long before its deadline."""
    killed, destination = await start("killed", large_layout(), TCP), await start("destination", large_layout(), TCP)
    here = await destination.session()
    lease, peer = await _serve(killed)
    await _warm(here, peer, lease)
    await stop(killed)
    await here.send(read=read_command("lost", peer, lease, HALF, HALF, time_left=60.0))
    await here.ask(expect_readers={"duration": {"seconds": 0}})
    killed.signal(signal.SIGKILL)
    finished = await here.finished("lost")
    assert error_pb2.REASON_PEER_LOST == finished.failure.reason
