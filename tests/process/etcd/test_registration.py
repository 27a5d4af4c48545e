"""Registration: one worker per name, kept registered with one incarnation whatever happens to etcd."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvferry.core.errors import WorkerNameTaken
from kvferry.dev.etcd_server import EtcdCluster, EtcdServer
from kvferry_control.discovery.claim import Encode, ValueReader
from kvferry_control.discovery.registration import (
    Registration,
    RegistrationClosed,
    RegistrationState,
    RegistrationStatus,
)
from kvferry_control.etcd.client import EtcdClient
from kvferry_control.etcd.errors import EtcdConfigError
from kvferry_control.etcd.model import KeyValue
from tests.process.etcd.harness import PATIENCE_S, eventually, fast_options

KEY = "/test/workers/p0"
OURS, THEIRS = b"instance-ours", b"instance-theirs"


def encode_as(instance: bytes, note: str = "") -> Encode:
    """A value as a worker writes it, small enough for a test."""

    def encode(explicit_incarnation: int) -> bytes:
        value = {"instance": instance.hex(), "explicit": explicit_incarnation, "note": note}
        return json.dumps(value).encode()

    return encode


def instance_of(value: bytes) -> bytes:
    """The instance id in a value."""
    try:
        return bytes.fromhex(json.loads(value)["instance"])
    except ValueError:
        return b""


def incarnation_of(_key: str, value: bytes, create_revision: int) -> int:
    """The incarnation as readers of the cluster see it."""
    explicit: int = json.loads(value)["explicit"]
    return explicit or create_revision


READER = ValueReader(instance_of, incarnation_of)


class Registered:
    """A registration with all the states it went through."""

    def __init__(self, client: EtcdClient, instance: bytes = OURS, **options: Any) -> None:
        self.statuses: list[RegistrationStatus] = []
        self.registration = Registration(
            client,
            worker_name="p0",
            instance_id=instance,
            encode=encode_as(instance),
            reader=READER,
            on_status=self.statuses.append,
            **options,
        )

    @property
    def states(self) -> list[RegistrationState]:
        """States in order, without repetitions in a row."""
        states = [status.state for status in self.statuses]
        return [state for index, state in enumerate(states) if states[index - 1 : index] != [state]]

    async def incarnation(self) -> int:
        """Wait for the registration."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.registration.wait_registered()


@asynccontextmanager
async def registered(client: EtcdClient, instance: bytes = OURS, **options: Any) -> AsyncIterator[Registered]:
    """A registration that runs in the background and is closed at the end."""
    async with asyncio.TaskGroup() as group:
        worker = Registered(client, instance, **options)
        group.create_task(worker.registration.run())
        yield worker
        await worker.registration.close()


async def stored(client: EtcdClient) -> KeyValue:
    """The worker's key, which must be there."""
    found = await client.get(KEY)
    assert found is not None
    return found


def incarnation_seen(kv: KeyValue) -> int:
    """What a reader of the cluster takes for the incarnation."""
    return incarnation_of(kv.key, kv.value, kv.create_revision)


async def reached(worker: Registered, *states: RegistrationState) -> None:
    """Wait until the registration went through exactly these states."""
    await eventually(lambda: worker.states == list(states))


async def test_the_incarnation_is_the_revision_of_creation(client: EtcdClient) -> None:
    """A new worker's key is bound to a lease, and its create revision is the incarnation."""
    await client.put("/elsewhere", b"1")
    async with registered(client) as worker:
        incarnation = await worker.incarnation()
        kv = await stored(client)
        assert (incarnation, 1, encode_as(OURS)(0)) == (kv.create_revision, kv.version, kv.value)
        assert kv.lease_id != 0


async def test_closing_gives_the_name_up_at_once(client: EtcdClient) -> None:
    """A closed registration leaves no key behind, and says so to those who wait for it."""
    async with registered(client) as worker:
        await worker.incarnation()
    assert await client.get(KEY) is None
    assert [RegistrationState.REGISTERED, RegistrationState.CLOSED] == worker.states
    with pytest.raises(RegistrationClosed):
        await worker.registration.wait_registered()


async def test_a_name_held_by_another_instance_is_refused(client: EtcdClient) -> None:
    """The second worker of one name is refused with a typed error that shows the holder; the first goes on."""
    async with registered(client, THEIRS) as first:
        await first.incarnation()
        second = Registered(client)
        with pytest.raises(WorkerNameTaken, match="'p0'") as refused:
            await second.registration.run()
        with pytest.raises(WorkerNameTaken):
            await second.registration.wait_registered()
        assert ["p0", THEIRS.hex()] == [refused.value.metadata[name] for name in ("value", "holder_instance")]
        assert [RegistrationState.REFUSED] == second.states
        assert THEIRS == instance_of((await stored(client)).value)
        assert [RegistrationState.REGISTERED] == first.states


async def test_a_value_that_is_no_record_holds_the_name(client: EtcdClient) -> None:
    """A key with foreign contents is refused, never overwritten."""
    await client.put(KEY, b"\xff not ours")
    with pytest.raises(WorkerNameTaken, match="no record"):
        await Registered(client).registration.run()
    assert b"\xff not ours" == (await stored(client)).value


async def test_patience_outlasts_a_holder_that_crashed(client: EtcdClient) -> None:
    """A new life of a crashed worker waits for the old lease to expire, and has a higher incarnation."""
    lease = await client.grant_lease(1)
    before = await client.put(KEY, encode_as(THEIRS)(0), lease_id=lease.lease_id)
    async with registered(client, patience_s=PATIENCE_S) as worker:
        assert await worker.incarnation() > before.revision
        assert [RegistrationState.REGISTERING, RegistrationState.REGISTERED] == worker.states


async def test_the_same_instance_takes_its_key_over(client: EtcdClient) -> None:
    """A restarted control goes on with key and incarnation of its worker, under its own lease."""
    lease = await client.grant_lease(60)
    created = await client.put(KEY, encode_as(OURS)(0), lease_id=lease.lease_id)
    for given in (None, created.revision):
        async with registered(client, incarnation=given) as worker:
            assert created.revision == await worker.incarnation()
            kv = await stored(client)
            assert created.revision == kv.create_revision == incarnation_seen(kv)
            assert kv.lease_id != lease.lease_id
            await client.put(KEY, encode_as(OURS)(0), lease_id=lease.lease_id)


async def test_the_same_instance_keeps_an_explicit_incarnation(client: EtcdClient) -> None:
    """A key that carries its incarnation explicitly goes on to do so after it is taken over."""
    await client.put(KEY, encode_as(OURS)(7777))
    async with registered(client) as worker:
        assert 7777 == await worker.incarnation()
        assert 7777 == incarnation_seen(await stored(client))


async def test_an_adopted_incarnation_survives_an_expired_key(client: EtcdClient) -> None:
    """A control that comes back after its key expired registers with the incarnation it was given."""
    async with registered(client, incarnation=4242) as worker:
        assert 4242 == await worker.incarnation()
        kv = await stored(client)
        assert 4242 == incarnation_seen(kv) != kv.create_revision


async def test_an_expired_lease_is_replaced_under_the_same_incarnation(server: EtcdServer, client: EtcdClient) -> None:
    """After an outage longer than its lease a worker registers again, and keeps its incarnation."""
    async with registered(client) as worker:
        incarnation = await worker.incarnation()
        old = await stored(client)
        server.pause()
        await eventually(lambda: RegistrationState.LOST in worker.states)
        server.resume()
        await eventually(lambda: worker.states[-1] is RegistrationState.REGISTERED)
        new = await stored(client)
        assert incarnation == await worker.incarnation() == incarnation_seen(new)
        assert old.lease_id != new.lease_id


async def test_a_revoked_lease_is_replaced(client: EtcdClient) -> None:
    """A worker whose lease an operator revoked registers again, and keeps its incarnation."""
    async with registered(client) as worker:
        incarnation = await worker.incarnation()
        await client.revoke_lease((await stored(client)).lease_id)
        await reached(worker, RegistrationState.REGISTERED, RegistrationState.LOST, RegistrationState.REGISTERED)
        kv = await stored(client)
        assert incarnation == incarnation_seen(kv) < kv.create_revision


async def test_a_deleted_key_is_written_again(client: EtcdClient) -> None:
    """A worker whose key was deleted under a living lease notices it and registers again."""
    async with registered(client) as worker:
        incarnation = await worker.incarnation()
        await client.delete(KEY)
        await reached(worker, RegistrationState.REGISTERED, RegistrationState.LOST, RegistrationState.REGISTERED)
        assert incarnation == incarnation_seen(await stored(client))


async def test_a_store_that_lost_its_data_gets_the_worker_back(server: EtcdServer, client: EtcdClient) -> None:
    """After etcd came back empty, the worker is there again with the incarnation that its peers know."""
    await client.put("/elsewhere", b"1")
    async with registered(client) as worker:
        incarnation = await worker.incarnation()
        server.wipe()
        await asyncio.to_thread(server.start)
        await eventually(lambda: RegistrationState.LOST in worker.states)
        assert incarnation == await worker.incarnation()
        kv = await stored(client)
        assert incarnation == incarnation_seen(kv) > kv.create_revision


async def test_a_name_taken_during_the_absence_is_refused(server: EtcdServer, client: EtcdClient) -> None:
    """A worker whose lease expired and whose name went to another instance gives up, clearly."""
    worker = Registered(client)
    async with EtcdClient(fast_options(server.endpoint)) as other, asyncio.TaskGroup() as group:

        async def run() -> WorkerNameTaken:
            with pytest.raises(WorkerNameTaken) as refused:
                await worker.registration.run()
            return refused.value

        running = group.create_task(run())
        await worker.incarnation()
        kv = await stored(other)
        await other.revoke_lease(kv.lease_id)
        await other.put(KEY, encode_as(THEIRS)(0))
        assert THEIRS.hex() == (await running).metadata["holder_instance"]
    assert [RegistrationState.REGISTERED, RegistrationState.LOST, RegistrationState.REFUSED] == worker.states


async def test_unreachable_then_reachable(server: EtcdServer) -> None:
    """A worker that starts without etcd says so, keeps trying and registers as soon as etcd is there."""
    server.kill()
    async with (
        EtcdClient(fast_options(server.endpoint)) as client,
        registered(client) as worker,
    ):
        await reached(worker, RegistrationState.REGISTERING)
        error = worker.statuses[-1].error
        assert error is not None
        assert server.endpoint.removeprefix("http://") in error
        await asyncio.to_thread(server.start)
        assert await worker.incarnation() > 0


async def test_a_new_value_keeps_key_lease_and_incarnation(client: EtcdClient) -> None:
    """An update changes the value and nothing else."""
    async with registered(client) as worker:
        incarnation = await worker.incarnation()
        old = await stored(client)
        worker.registration.update(encode_as(OURS, "ready"))
        async with asyncio.timeout(PATIENCE_S):
            await worker.registration.flush()
        new = await stored(client)
        assert encode_as(OURS, "ready")(0) == new.value
        assert (incarnation, old.lease_id) == (new.create_revision, new.lease_id)


async def test_a_value_updated_without_etcd_is_written_later(server: EtcdServer, client: EtcdClient) -> None:
    """An update during an outage is not lost, whether the lease survives or not."""
    async with registered(client) as worker:
        await worker.incarnation()
        server.kill()
        worker.registration.update(encode_as(OURS, "early"))
        worker.registration.update(encode_as(OURS, "late"))
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(PATIENCE_S):
            await worker.registration.flush()
        assert "late" == json.loads((await stored(client)).value)["note"]


async def test_an_update_never_overwrites_another_holder(client: EtcdClient) -> None:
    """A worker that lost its key without knowing does not write over the new holder's value."""
    worker = Registered(client)
    async with asyncio.TaskGroup() as group:

        async def run() -> None:
            with pytest.raises(WorkerNameTaken):
                await worker.registration.run()

        running = group.create_task(run())
        await worker.incarnation()
        await client.put(KEY, encode_as(THEIRS)(0))
        worker.registration.update(encode_as(OURS, "late"))
        await running
    assert encode_as(THEIRS)(0) == (await stored(client)).value


async def test_a_registration_survives_each_member_killed_in_turn(cluster: EtcdCluster) -> None:
    """While one member after the other is down, the worker stays registered under one lease."""
    options = fast_options(*cluster.endpoints, lease_ttl_s=8)
    async with EtcdClient(options) as client, registered(client) as worker:
        incarnation = await worker.incarnation()
        before = await stored(client)
        for member in cluster.members:
            member.kill()
            worker.registration.update(encode_as(OURS, member.name))
            async with asyncio.timeout(PATIENCE_S):
                await worker.registration.flush()
            await asyncio.to_thread(member.start)
        after = await stored(client)
        assert (incarnation, before.lease_id) == (after.create_revision, after.lease_id)
        assert [RegistrationState.REGISTERED] == worker.states


@pytest.mark.parametrize("name", ["", "a/b"])
async def test_a_name_that_is_no_part_of_a_key_is_refused(client: EtcdClient, name: str) -> None:
    """A worker's name must be usable as the last part of a key."""
    with pytest.raises(EtcdConfigError, match="worker_name"):
        Registration(client, worker_name=name, instance_id=OURS, encode=encode_as(OURS), reader=READER)


async def test_a_value_that_cannot_be_made_is_the_callers_error(client: EtcdClient) -> None:
    """An encoder that raises does so where it is handed in, and the registered value stays."""

    def broken(_explicit_incarnation: int) -> bytes:
        raise OverflowError("too large")

    async with registered(client) as worker:
        await worker.incarnation()
        with pytest.raises(OverflowError):
            worker.registration.update(broken)
        assert encode_as(OURS)(0) == (await stored(client)).value
