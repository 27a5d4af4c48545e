"""Watches: no change is lost or told twice over breaks, and what cannot be told is said to be so."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from kvferry.dev.etcd_server import EtcdCluster, EtcdServer
from kvferry_control.etcd.client import EtcdClient
from kvferry_control.etcd.model import DeleteEvent, Put
from kvferry_control.etcd.watch import WatchAlive, WatchBroken, WatchConnected, WatchResync
from tests.process.etcd.harness import Proxy, WatchLog, committed, eventually, fast_options


@asynccontextmanager
async def following(client: EtcdClient, start_revision: int = 1) -> AsyncIterator[WatchLog]:
    """A watch on ``/test/`` in the background."""
    async with asyncio.TaskGroup() as group:
        log = WatchLog(client, "/test/", start_revision)
        watching = group.create_task(log.run())
        yield log
        watching.cancel()


async def write(client: EtcdClient, values: Iterable[int]) -> int:
    """Write numbered values one after the other; answers the last revision."""
    revision = 0
    for number in values:
        revision = (await client.put("/test/a", b"%d" % number)).revision
    return revision


def numbers(values: Iterable[int]) -> list[bytes]:
    """What a watch reports after :func:`write`."""
    return [b"%d" % number for number in values]


async def test_changes_are_told_from_the_start_revision_on(client: EtcdClient) -> None:
    """A watch tells what happened from its start revision on, then what happens, deletions included."""
    await write(client, [1])
    start = await write(client, [2])
    async with following(client, start) as log:
        await eventually(lambda: log.values == [b"2"])
        await client.put("/elsewhere", b"no")
        await client.delete("/test/a")
        await eventually(lambda: any(isinstance(event, DeleteEvent) for event in log.events))
    assert DeleteEvent("/test/a", start + 2) == log.events[-1]
    assert 2 == len(log.events)


async def test_nothing_is_lost_or_repeated_over_kill_and_restart(server: EtcdServer, client: EtcdClient) -> None:
    """A killed and restarted server interrupts a watch, and the watch goes on where it was."""
    async with following(client) as log:
        await write(client, range(20))
        await eventually(lambda: len(log.values) == 20)
        await committed(client)
        server.kill()
        await eventually(lambda: log.count(WatchBroken) > 0)
        await asyncio.to_thread(server.start)
        async with EtcdClient(fast_options(server.endpoint)) as other:
            await write(other, range(20, 40))
        await eventually(lambda: log.values[-1:] == [b"39"])
    assert numbers(range(40)) == log.values
    assert 0 == log.count(WatchResync)
    assert [False, True] == [item.resumed for item in log.items if isinstance(item, WatchConnected)]


async def test_changes_during_a_cut_are_told_after_it(client: EtcdClient, proxied: EtcdClient, proxy: Proxy) -> None:
    """Whatever is written while a watcher is cut off reaches it afterwards, once and in order."""
    async with following(proxied) as log:
        await write(client, range(5))
        await eventually(lambda: len(log.values) == 5)
        proxy.stall()
        await write(client, range(5, 30))
        proxy.cut()
        proxy.flow()
        await eventually(lambda: len(log.values) >= 30)
    assert numbers(range(30)) == log.values


async def test_compaction_during_a_partition_asks_for_a_new_listing(
    client: EtcdClient, proxied: EtcdClient, proxy: Proxy
) -> None:
    """A watcher whose next revision was compacted while it was away is told so, and its watch ends."""
    async with following(proxied) as log:
        seen = await write(client, range(5))
        await eventually(lambda: len(log.values) == 5)
        proxy.stall()
        last = await write(client, range(5, 10))
        await client.compact(last)
        proxy.cut()
        proxy.flow()
        await eventually(lambda: log.count(WatchResync) == 1)
    assert WatchResync(seen, f"compacted up to revision {last}") == log.items[-1]
    assert numbers(range(5)) == log.values


async def test_a_silent_server_is_left(client: EtcdClient, proxied: EtcdClient, proxy: Proxy) -> None:
    """A server that keeps the connection but says nothing breaks the watch; a quiet one does not."""
    async with following(proxied) as log:
        await write(client, [1])
        await eventually(lambda: log.count(WatchAlive) >= 3)
        assert 0 == log.count(WatchBroken)
        proxy.stall()
        await eventually(lambda: log.count(WatchBroken) > 0)
        (broken,) = (item for item in log.items if isinstance(item, WatchBroken))
        assert broken.error.detail.startswith("nothing heard")
        proxy.cut()
        proxy.flow()
        await write(client, [2])
        await eventually(lambda: log.values == [b"1", b"2"])


async def test_a_frozen_member_is_left_for_another(cluster: EtcdCluster) -> None:
    """A watch moves from a member that froze to one that did not, and loses nothing."""
    frozen, *others = cluster.members
    options = fast_options(*cluster.endpoints)
    async with (
        EtcdClient(options) as client,
        EtcdClient(fast_options(*(member.endpoint for member in others))) as other,
        following(client) as log,
    ):
        await write(other, range(5))
        await eventually(lambda: len(log.values) == 5)
        frozen.pause()
        await write(other, range(5, 10))
        await eventually(lambda: len(log.values) >= 10)
        frozen.resume()
    # The frozen member may have led, so a write of ours may have been sent, and applied, twice.
    assert numbers(range(10)) == list(dict.fromkeys(log.values))
    assert log.count(WatchBroken) > 0


async def test_a_member_without_a_leader_tells_it(cluster: EtcdCluster) -> None:
    """A watch at a member that lost its leader breaks instead of staying silent."""
    lonely, *others = cluster.members
    async with EtcdClient(fast_options(lonely.endpoint)) as client, following(client) as log:
        await eventually(lambda: log.count(WatchConnected) == 1)
        for member in others:
            member.kill()
        await eventually(lambda: any("no leader" in str(i.error) for i in log.items if isinstance(i, WatchBroken)))


async def test_a_store_that_lost_its_data_asks_for_a_new_listing(server: EtcdServer, client: EtcdClient) -> None:
    """A server that comes back empty, under the same cluster id, ends a watch that is ahead of it."""
    async with following(client) as log:
        seen = await write(client, range(5))
        await eventually(lambda: len(log.values) == 5)
        server.wipe()
        await asyncio.to_thread(server.start)
        await eventually(lambda: log.count(WatchResync) == 1)
    assert WatchResync(seen, "the store went back to revision 1") == log.items[-1]


async def test_another_cluster_asks_for_a_new_listing(server: EtcdServer, client: EtcdClient) -> None:
    """A watch that continues a listing of one cluster ends at another one, however far that is."""
    listing = await client.get_prefix("/test/")
    with EtcdServer() as replacement:
        async with EtcdClient(fast_options(replacement.endpoint)) as other:
            await write(other, range(5))
            log = WatchLog(other, "/test/", listing.state.revision + 1, listing.state)
            await log.run()
    (item,) = log.items
    assert isinstance(item, WatchResync)
    assert item.reason.startswith("cluster id changed")


async def test_large_histories_come_in_parts(client: EtcdClient) -> None:
    """Changes that are too large for one message are all told once, in order, also within one revision."""
    half = b"v" * 600_000
    for number in range(8):
        await client.txn([], [Put("/test/a", half + b"%d" % number), Put("/test/b", half + b"%d" % number)])
    async with following(client) as log:
        await eventually(lambda: len(log.values) == 16)
    assert [b"%d" % (index // 2) for index in range(16)] == [value[-1:] for value in log.values]
