"""Leases: kept as long as somebody keeps them, and known to be lost before anybody else may rely on it."""

import asyncio

from kvferry.dev.etcd_server import EtcdCluster, EtcdServer
from kvferry_control.etcd.client import EtcdClient
from kvferry_control.etcd.lease import LeaseKeeper, LeaseLoss
from kvferry_control.etcd.model import DeleteEvent
from tests.process.etcd.harness import PATIENCE_S, WatchLog, eventually, fast_options


async def test_a_kept_lease_outlives_its_time_and_an_unkept_one_does_not(client: EtcdClient) -> None:
    """Of two leases of one second, the one that is kept is still there when the other has expired."""
    kept, unkept = await client.grant_lease(1), await client.grant_lease(1)
    await client.put("/test/kept", b"1", lease_id=kept.lease_id)
    await client.put("/test/unkept", b"1", lease_id=unkept.lease_id)
    async with asyncio.TaskGroup() as group:
        log = WatchLog(client, "/test/")
        watching = group.create_task(log.run())
        keeping = group.create_task(LeaseKeeper(client, kept).run())
        await eventually(lambda: any(isinstance(event, DeleteEvent) for event in log.events))
        found = await client.get("/test/kept")
        keeping.cancel()
        await eventually(lambda: deleted(log) == ["/test/unkept", "/test/kept"])
        watching.cancel()
    assert found is not None


def deleted(log: WatchLog) -> list[str]:
    """Keys that were deleted, in order."""
    return [event.key for event in log.events if isinstance(event, DeleteEvent)]


async def test_a_revoked_lease_is_lost(client: EtcdClient) -> None:
    """A keeper learns from etcd that its lease is gone."""
    lease = await client.grant_lease(1)
    await client.revoke_lease(lease.lease_id)
    async with asyncio.timeout(PATIENCE_S):
        assert LeaseLoss.GONE is await LeaseKeeper(client, lease).run()


async def test_an_unconfirmed_lease_is_lost_when_its_time_is_over(server: EtcdServer, client: EtcdClient) -> None:
    """Without etcd a keeper gives its lease up, and not later than the lease may expire."""
    lease = await client.grant_lease(1)
    keeper = LeaseKeeper(client, lease)
    server.pause()
    async with asyncio.timeout(PATIENCE_S):
        assert LeaseLoss.UNCONFIRMED is await keeper.run()
    server.resume()


async def test_a_lease_is_kept_over_a_short_outage(server: EtcdServer, client: EtcdClient) -> None:
    """A server that is killed and back within the lease's life costs no lease."""
    lease = await client.grant_lease(5)
    await client.put("/test/a", b"1", lease_id=lease.lease_id)
    keeper = LeaseKeeper(client, lease)
    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(keeper.run())
        await asyncio.to_thread(server.restart)
        restarted_at = asyncio.get_running_loop().time()
        await eventually(lambda: keeper.confirmed_at > restarted_at)
        keeping.cancel()
    assert await client.get("/test/a") is not None


async def test_a_lease_is_kept_at_the_members_that_are_left(cluster: EtcdCluster) -> None:
    """A keeper goes on at another member when its own one dies."""
    async with EtcdClient(fast_options(*cluster.endpoints)) as client, asyncio.TaskGroup() as group:
        lease = await client.grant_lease(5)
        keeper = LeaseKeeper(client, lease)
        keeping = group.create_task(keeper.run())
        cluster.members[0].kill()
        killed_at = asyncio.get_running_loop().time()
        await eventually(lambda: keeper.confirmed_at > killed_at)
        assert not keeping.done()
        keeping.cancel()
