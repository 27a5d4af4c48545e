"""The view of all workers: current while etcd is there, served on while it is not, right again afterwards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kvferry.dev.etcd_server import EtcdServer
from kvferry_control.discovery.snapshot import Snapshot
from kvferry_control.discovery.watcher import TooManySubscriptions, WatcherStatus, WorkerWatcher
from kvferry_control.etcd.client import EtcdClient
from tests.process.etcd.harness import PATIENCE_S, Proxy, committed, eventually, fast_options

PREFIX = "/test/workers/"


def decode(_key: str, value: bytes, create_revision: int) -> tuple[str, int]:
    """A record for tests: the value as text, and the incarnation."""
    return value.decode(), create_revision


Watcher = WorkerWatcher[tuple[str, int]]


def texts(snapshot: Snapshot[tuple[str, int]]) -> dict[str, str]:
    """What the workers say, by name."""
    return {name: entry.record[0] for name, entry in snapshot.workers.items()}


async def shows(watcher: Watcher, **expected: str) -> None:
    """Wait until the snapshot holds exactly these workers."""
    async with asyncio.timeout(PATIENCE_S):
        await watcher.wait_for(lambda snapshot: texts(snapshot) == expected)


@asynccontextmanager
async def watching(client: EtcdClient) -> AsyncIterator[Watcher]:
    """A watcher that runs in the background."""
    async with asyncio.TaskGroup() as group:
        watcher = WorkerWatcher(client, decode)
        running = group.create_task(watcher.run())
        yield watcher
        running.cancel()


async def test_the_snapshot_follows_the_keys(client: EtcdClient) -> None:
    """Workers that were there, came, changed and went are in the snapshot as etcd holds them."""
    await client.put(PREFIX + "a", b"1")
    async with watching(client) as watcher:
        await shows(watcher, a="1")
        await client.put(PREFIX + "b", b"2")
        await shows(watcher, a="1", b="2")
        await client.put(PREFIX + "b", b"3")
        await client.delete(PREFIX + "a")
        await shows(watcher, b="3")


async def test_an_expired_lease_removes_the_worker(client: EtcdClient) -> None:
    """A worker whose lease nobody keeps goes away by itself."""
    lease = await client.grant_lease(1)
    await client.put(PREFIX + "a", b"1", lease_id=lease.lease_id)
    async with watching(client) as watcher:
        await shows(watcher, a="1")
        await shows(watcher)


async def test_an_unreadable_value_hides_one_worker_only(client: EtcdClient) -> None:
    """A value that cannot be decoded is reported under its key, and heals when it is written anew."""
    async with watching(client) as watcher:
        await client.put(PREFIX + "good", b"1")
        await client.put(PREFIX + "bad", b"\xff")
        async with asyncio.timeout(PATIENCE_S):
            snapshot = await watcher.wait_for(lambda snapshot: "bad" in snapshot.undecodable)
        assert {"good": "1"} == texts(snapshot)
        assert PREFIX + "bad" == snapshot.undecodable["bad"].stored.key
        await client.put(PREFIX + "bad", b"2")
        await shows(watcher, good="1", bad="2")


async def test_the_last_snapshot_is_served_while_etcd_is_away(server: EtcdServer, client: EtcdClient) -> None:
    """Without etcd the workers stay known, the status says so, and changes made on its return arrive."""
    await client.put(PREFIX + "a", b"1")
    async with watching(client) as watcher:
        await shows(watcher, a="1")
        await eventually(lambda: watcher.status.connected)
        await committed(client)
        server.kill()
        await eventually(lambda: not watcher.status.connected)
        first = watcher.status
        assert first.error is not None
        assert {"a": "1"} == texts(watcher.snapshot)
        await eventually(lambda: age(watcher.status) > age(first))
        await asyncio.to_thread(server.start)
        await client.put(PREFIX + "b", b"2")
        await shows(watcher, a="1", b="2")
        await eventually(lambda: watcher.status.connected)


def age(status: WatcherStatus) -> float:
    """Age of the snapshot, which must have been confirmed before."""
    assert status.age_s is not None
    return status.age_s


async def test_workers_are_listed_again_after_a_compaction(
    client: EtcdClient, proxied: EtcdClient, proxy: Proxy
) -> None:
    """A watcher that was cut off over a compaction shows what came and what went meanwhile."""
    await client.put(PREFIX + "stays", b"1")
    await client.put(PREFIX + "goes", b"1")
    async with watching(proxied) as watcher:
        await shows(watcher, stays="1", goes="1")
        proxy.stall()
        await client.delete(PREFIX + "goes")
        last = await client.put(PREFIX + "comes", b"1")
        await client.compact(last.revision)
        proxy.cut()
        proxy.flow()
        await shows(watcher, stays="1", comes="1")
        await client.put(PREFIX + "stays", b"2")
        await shows(watcher, stays="2", comes="1")


async def test_a_store_that_lost_its_data_is_listed_again(
    server: EtcdServer, client: EtcdClient, proxied: EtcdClient, proxy: Proxy
) -> None:
    """Workers that an emptied etcd does not know disappear, even if it has overtaken the old revision."""
    await client.put(PREFIX + "old", b"1")
    async with watching(proxied) as watcher:
        await shows(watcher, old="1")
        await eventually(lambda: watcher.status.connected)
        # Filled behind the watcher's back: when it reconnects, its next revision exists in the new store.
        proxy.stall()
        server.wipe()
        await asyncio.to_thread(server.start)
        for number in range(10):
            await client.put(PREFIX + "new", b"%d" % number)
        proxy.cut()
        proxy.flow()
        await shows(watcher, new="9")


async def test_a_store_replaced_before_the_first_watch_is_listed_again(server: EtcdServer, client: EtcdClient) -> None:
    """A store that lost its data between the first listing and the first watch is listed again too."""
    await client.put(PREFIX + "old", b"1")
    async with watching(client) as watcher:
        await shows(watcher, old="1")
        server.wipe()
        await asyncio.to_thread(server.start)
        async with EtcdClient(fast_options(server.endpoint)) as other:
            for number in range(10):
                await other.put(PREFIX + "new", b"%d" % number)
        await shows(watcher, new="9")


async def test_a_slow_subscriber_gets_the_sum_of_changes(client: EtcdClient) -> None:
    """A subscriber that misses steps is told what differs from what it saw, in one piece."""
    await client.put(PREFIX + "a", b"1")
    await client.put(PREFIX + "b", b"1")
    async with watching(client) as watcher, asyncio.timeout(PATIENCE_S):
        with watcher.subscribe() as subscription:
            _, first = await subscription.next()
            await client.put(PREFIX + "a", b"2")
            await client.put(PREFIX + "a", b"3")
            await client.delete(PREFIX + "b")
            await client.put(PREFIX + "c", b"1")
            await client.put(PREFIX + "passing", b"1")
            await client.delete(PREFIX + "passing")
            last = await client.put(PREFIX + "d", b"1")
            await watcher.wait_for(lambda snapshot: snapshot.revision >= last.revision)
            snapshot, changes = await subscription.next()
    assert ["1", "1"] == [entry.record[0] for entry in first.added]
    assert {"a": "3", "c": "1", "d": "1"} == texts(snapshot)
    assert [PREFIX + "c", PREFIX + "d"] == [entry.stored.key for entry in changes.added]
    assert [("1", "3")] == [(before.record[0], after.record[0]) for before, after in changes.changed]
    assert [PREFIX + "b"] == [entry.stored.key for entry in changes.removed]


async def test_subscriptions_are_bounded(client: EtcdClient) -> None:
    """One subscriber more than allowed is refused; one that left makes room."""
    watcher = WorkerWatcher(client, decode, subscriptions_max=1)
    with watcher.subscribe(), pytest.raises(TooManySubscriptions), watcher.subscribe():
        pass
    with watcher.subscribe():
        pass


async def test_the_watcher_starts_without_etcd(server: EtcdServer) -> None:
    """A watcher that is started before etcd lists the workers as soon as etcd is there."""
    server.kill()
    async with EtcdClient(fast_options(server.endpoint)) as client, watching(client) as watcher:
        await eventually(lambda: watcher.status.error is not None)
        assert WatcherStatus(connected=False, age_s=None, error=watcher.status.error) == watcher.status
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(PATIENCE_S):
            assert {} == texts(await watcher.wait_listed())
