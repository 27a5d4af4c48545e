"""A lease that ends while its blocks are read."""

import asyncio
import signal
import time

from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.error.v1 import error_pb2
from tests.process.dataplane.conftest import Start
from tests.process.dataplane.harness import DataPlane, large_layout, read_command
from tests.process.dataplane.test_stuck_sources import TCP, stop

BLOCKS = list(range(50))


def _wait_for_first_bytes(destination: DataPlane) -> None:
    """Look as closely as can be: the whole read takes some hundredths of a second."""
    give_up = time.monotonic() + 10
    pool = destination.pool()
    while not pool[:: 1 << 20].any():
        assert time.monotonic() < give_up


async def test_a_lease_that_ends_during_the_read_fences(start: Start) -> None:
    """When the lease ends and the blocks are reused after bytes have begun to arrive, the read fails as FENCED."""
    source, destination = await start("source", large_layout(), TCP), await start("destination", large_layout(), TCP)
    there, here = await source.session(), await destination.session()
    peer = await source.as_peer()
    await there.ask(expect_readers={"duration": {"seconds": 100}})
    await here.send(connect_peer=peer)
    attempt, caught = 0, False
    for attempt in range(20):
        lease = await there.acquire(f"p{attempt}", BLOCKS)
        destination.pool()[:] = 0
        await here.send(read=read_command(f"t{attempt}", peer, lease, BLOCKS, BLOCKS))
        await asyncio.to_thread(_wait_for_first_bytes, destination)
        await stop(destination)
        caught = not all(destination.pool()[block << 19] for block in BLOCKS)
        if caught:
            break
        destination.signal(signal.SIGCONT)
        await here.finished(f"t{attempt}")
    assert caught, "the read was never caught half-way"
    released = await there.ask(release_lease={"publication": f"p{attempt}"})
    assert pb.LEASE_END_RELEASED == released.lease_ended.end
    source.pool()[:] = 7
    destination.signal(signal.SIGCONT)
    finished = await here.finished(f"t{attempt}")
    assert error_pb2.REASON_FENCED == finished.failure.reason


async def test_an_expired_lease_fences_without_a_control(start: Start) -> None:
    """A lease ends by itself when its time is over, with nobody connected, and a read under it fails as FENCED."""
    source, destination = await start("source"), await start("destination")
    there, here = await source.session(), await destination.session()
    lease = await there.acquire("p", [1], ttl=0.2)
    await there.ask(expect_readers={"duration": {"seconds": 20}})
    await there.close()
    peer = await source.as_peer()
    later = await source.session()
    ended = await later.event(lambda event: event.WhichOneof("event") == "lease_ended")
    assert (pb.LEASE_END_EXPIRED, "p") == (ended.lease_ended.end, ended.lease_ended.publication)
    await here.send(connect_peer=peer)
    await here.send(read=read_command("t", peer, lease, [1], [1]))
    finished = await here.finished("t")
    assert error_pb2.REASON_FENCED == finished.failure.reason
