"""Connections to sources that have died."""

import signal
from pathlib import Path

from tests.process.dataplane.conftest import Start
from tests.process.dataplane.harness import DataPlane, read_command, until
from tests.process.dataplane.test_stuck_sources import TCP

LIVES = 3


def sockets(destination: DataPlane) -> int:
    """Sockets that a data plane holds."""
    descriptors = Path("/proc", str(destination.process.pid), "fd").iterdir()
    return sum(str(descriptor.readlink()).startswith("socket:") for descriptor in descriptors)


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
