"""Faults of etcd and of the network."""

import asyncio

from tests.chaos.faults import Fault, Scene


class KillEtcd(Fault):
    """etcd is killed, past every lease, and comes back with its data or without."""

    kind = "kill etcd"

    def __init__(self, *, wipe: bool) -> None:
        self._wipe = wipe
        self.name = "etcd killed, restarted " + ("without its data" if wipe else "with its data")

    async def inject(self, scene: Scene) -> None:
        """Kill."""
        etcd = scene.site.cluster.etcd
        await asyncio.to_thread(etcd.wipe if self._wipe else etcd.kill)

    async def heal(self, scene: Scene) -> None:
        """Start it again."""
        await asyncio.to_thread(scene.site.cluster.etcd.start)


class FreezeEtcd(Fault):
    """etcd stops answering with every connection open."""

    name = "SIGSTOP etcd"
    kind = "stop etcd"

    async def inject(self, scene: Scene) -> None:
        """Freeze."""
        scene.site.cluster.etcd.pause()

    async def heal(self, scene: Scene) -> None:
        """Let it go on."""
        scene.site.cluster.etcd.resume()


class PartitionEtcd(Fault):
    """No packet to etcd gets through, and none from it; one way, what it says still arrives, such as that leases ended.

    Everybody else hears each other.
    """

    kind = "partition etcd"

    def __init__(self, *, both_ways: bool) -> None:
        self._both_ways = both_ways
        self.name = "etcd partitioned" + ("" if both_ways else ", one way")

    async def inject(self, scene: Scene) -> None:
        """Drop its packets."""
        port = int(scene.site.cluster.etcd.endpoint.rpartition(":")[2])
        await asyncio.to_thread(scene.site.network.partition, port, both_ways=self._both_ways)

    async def heal(self, scene: Scene) -> None:
        """Let them through."""
        await asyncio.to_thread(scene.site.network.heal)


class CutWire(Fault):
    """The wire between the two sides is down: for some workers that is etcd as well."""

    name = "wire cut"
    kind = "cut wire"

    async def inject(self, scene: Scene) -> None:
        """Cut."""
        await asyncio.to_thread(scene.site.network.cut)

    async def heal(self, scene: Scene) -> None:
        """Join."""
        await asyncio.to_thread(scene.site.network.heal)


class DeafenSide(Fault):
    """One side hears nothing of the other any more, which still hears it; neither sees that the wire is broken."""

    name = "wire cut, one way"
    kind = "cut wire"

    async def inject(self, scene: Scene) -> None:
        """Drop one way."""
        await asyncio.to_thread(scene.site.network.deafen)

    async def heal(self, scene: Scene) -> None:
        """Let packets through."""
        await asyncio.to_thread(scene.site.network.heal)


class LosePackets(Fault):
    """Some of the packets over the wire are lost."""

    kind = "lose packets"

    def __init__(self, percent: int) -> None:
        self._percent = percent
        self.name = f"{percent}% of packets lost"

    async def inject(self, scene: Scene) -> None:
        """Drop."""
        await asyncio.to_thread(scene.site.network.lose, self._percent)

    async def heal(self, scene: Scene) -> None:
        """Let them through."""
        await asyncio.to_thread(scene.site.network.heal)
