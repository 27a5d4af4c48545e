"""Reads between two real data planes."""

from kvferry.error.v1 import error_pb2
from kvferry.transfer.v1 import transfer_pb2
from tests.process.dataplane.conftest import LOCAL_FLAGS, NIXL_FLAGS, UCX_FLAGS, Start
from tests.process.dataplane.harness import read_command

EXPECTED = {
    LOCAL_FLAGS: (transfer_pb2.PATH_LOCAL, "memory"),
    NIXL_FLAGS: (transfer_pb2.PATH_NIXL, "UCX"),
    UCX_FLAGS: (transfer_pb2.PATH_UCX, "UCX"),
}


async def test_a_read_brings_the_bytes(start: Start, path_flags: tuple[str, str]) -> None:
    """A read brings exactly the source's blocks, in order, and says over which path."""
    source, destination = await start("source"), await start("destination", None, None, *path_flags)
    there, here = await source.session(), await destination.session()
    lease = await there.acquire("p1", [3, 1, 9])
    peer = await source.as_peer()
    await there.ask(expect_readers={"duration": {"seconds": 20}})
    await here.send(connect_peer=peer)
    await here.send(read=read_command("t1", peer, lease, [3, 1, 9], [60, 2, 3]))
    finished = await here.finished("t1")
    assert not finished.HasField("failure"), finished
    assert source.block_bytes([3, 1, 9]) == destination.block_bytes([60, 2, 3])
    path, backend = EXPECTED[path_flags]
    assert (path, backend) == (finished.figures.path, finished.figures.backend)
    assert 3 * 16384 == finished.figures.received_bytes
    assert 12 == finished.figures.descriptor_count
    (carried,) = finished.figures.paths
    assert (0, path, backend) == (carried.source_rank, carried.path, carried.backend)
    assert (3 * 16384, 12) == (carried.received_bytes, carried.descriptor_count)
    assert carried.choice


async def test_a_lease_that_ended_before_fences(start: Start, path_flags: tuple[str, str]) -> None:
    """A read under a lease that ended before it began fails as FENCED."""
    source, destination = await start("source"), await start("destination", None, None, *path_flags)
    there, here = await source.session(), await destination.session()
    lease = await there.acquire("p1", [0])
    await there.ask(release_lease={"publication": "p1"})
    peer = await source.as_peer()
    await there.ask(expect_readers={"duration": {"seconds": 20}})
    await here.send(connect_peer=peer)
    await here.send(read=read_command("t1", peer, lease, [0], [0]))
    finished = await here.finished("t1")
    assert error_pb2.REASON_FENCED == finished.failure.reason
