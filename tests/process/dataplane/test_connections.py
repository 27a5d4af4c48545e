"""Connections that nobody needs any more."""

import signal

import pytest

from kvferry.error.v1 import error_pb2
from kvferry_dataplane.reads.generations import FORGOTTEN_MAX
from kvferry_dataplane.reads.lingering import SILENT_SECONDS
from tests.process.dataplane.conftest import TRANSPORTS, Start
from tests.process.dataplane.harness import ANSWER_SECONDS, DataPlane, large_layout, read_command, until
from tests.process.dataplane.test_stuck_sources import TCP, stop
from tests.process.descriptors import open_descriptors

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)

LIVES = 3
CONNECTIONS_EACH = 2
BLOCKS = list(range(28))


def sockets(destination: DataPlane) -> int:
    """Sockets that a data plane holds."""
    return sum(target.startswith("socket:") for target in open_descriptors(destination.process.pid))


@pytest.mark.long
async def test_connections_of_dead_sources_are_closed(start: Start) -> None:
    """After sources were read from, killed and forgotten, the reader holds no more sockets than before the first."""
    destination = await start("destination", environment=TCP)
    here = await destination.session()
    before = sockets(destination)
    for life in range(LIVES):
        source = await start(f"source-{life}", environment=TCP)
        there = await source.session()
        lease = await there.acquire("p", [1])
        await there.ask(expect_readers={"duration": {"seconds": 20}})
        peer = await source.as_peer()
        await here.ask(connect_peer=peer)
        await here.send(read=read_command(f"t{life}", peer, lease, [1], [1]))
        assert not (await here.finished(f"t{life}")).HasField("failure")
        source.signal(signal.SIGKILL)
        source.process.wait()
        await here.ask(disconnect_peer={"peer": peer.peer})
    await until(lambda: sockets(destination) <= before)


@pytest.mark.long
async def test_connections_of_given_up_agents_are_closed(start: Start) -> None:
    """After reads from a stopped source were given up, and it went on, both hold no more sockets than before."""
    source, destination = await start("source", large_layout(), TCP), await start("destination", large_layout(), TCP)
    there, here = await source.session(), await destination.session()
    lease = await there.acquire("p", BLOCKS)
    await there.ask(expect_readers={"duration": {"seconds": 100}})
    peer = await source.as_peer()
    await here.ask(connect_peer=peer)
    await here.send(read=read_command("warm", peer, lease, [0], [0]))
    assert not (await here.finished("warm")).HasField("failure")
    before = sockets(source), sockets(destination)
    for turn in range(LIVES):
        await stop(source)
        await here.send(read=read_command(f"t{turn}", peer, lease, BLOCKS, BLOCKS))
        await here.ask(cancel_read={"transfer": f"t{turn}"})
        assert error_pb2.REASON_CANCELLED == (await here.finished(f"t{turn}")).failure.reason
        source.signal(signal.SIGCONT)
        await here.send(read=read_command(f"again-{turn}", peer, lease, BLOCKS, BLOCKS))
        assert not (await here.finished(f"again-{turn}")).HasField("failure")
    await until(
        lambda: sockets(source) <= before[0] and sockets(destination) <= before[1], SILENT_SECONDS + ANSWER_SECONDS
    )


@pytest.mark.long
async def test_connections_of_forgotten_sources_are_closed(start: Start) -> None:
    """A source that lives and is forgotten and learned again and again costs neither side more than some sockets."""
    source, destination = await start("source", environment=TCP), await start("destination", environment=TCP)
    there, here = await source.session(), await destination.session()
    lease = await there.acquire("p", [1])
    await there.ask(expect_readers={"duration": {"seconds": 100}})
    peer = await source.as_peer()
    before = sockets(source), sockets(destination)
    for life in range(4 * FORGOTTEN_MAX):
        await here.ask(connect_peer=peer)
        await here.send(read=read_command(f"t{life}", peer, lease, [1], [1]))
        assert not (await here.finished(f"t{life}")).HasField("failure")
        await here.ask(disconnect_peer={"peer": peer.peer})
    bound = CONNECTIONS_EACH * FORGOTTEN_MAX
    await until(lambda: sockets(source) <= before[0] + bound and sockets(destination) <= before[1] + bound)
