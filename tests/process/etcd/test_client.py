"""Calls: what they answer, and how they survive servers that die, freeze, refuse or lie."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvferry.dev.etcd_server import EtcdCluster, EtcdServer
from kvferry_control.etcd.client import EtcdClient
from kvferry_control.etcd.config import EtcdOptions
from kvferry_control.etcd.errors import (
    EtcdAuthFailed,
    EtcdConfigError,
    EtcdLeaseNotFound,
    EtcdListingTooLong,
    EtcdPermissionDenied,
    EtcdTlsFailed,
    EtcdUnavailable,
)
from kvferry_control.etcd.model import CompareTarget, Delete, Equals, Get, Put
from tests.process.etcd.harness import (
    PATIENCE_S,
    WatchLog,
    committed,
    enable_auth,
    eventually,
    fast_options,
    make_certificates,
)

RIGHT, WRONG = "right", "wrong"


async def test_a_key_lives_through_put_get_and_delete(client: EtcdClient) -> None:
    """A key is there after its put with its revisions and gone after its deletion."""
    state = await client.put("/test/a", b"one")
    found = await client.get("/test/a")
    assert found is not None
    assert (b"one", state.revision, state.revision, 1, 0) == (
        found.value,
        found.create_revision,
        found.mod_revision,
        found.version,
        found.lease_id,
    )
    assert await client.delete("/test/a")
    assert await client.get("/test/a") is None
    assert not await client.delete("/test/a")


async def test_a_transaction_takes_the_branch_of_its_conditions(client: EtcdClient) -> None:
    """All operations of one branch run at one revision, and none of the other."""
    absent = Equals("/test/a", CompareTarget.CREATE_REVISION, 0)
    first = await client.txn([absent], [Put("/test/a", b"x"), Put("/test/b", b"y")], [Get("/test/a")])
    second = await client.txn([absent], [Delete("/test/a")], [Get("/test/a"), Get("/test/none")])
    assert (True, ()) == (first.succeeded, first.reads)
    assert not second.succeeded
    read, nothing = second.reads
    assert read is not None
    assert (b"x", first.state.revision) == (read.value, read.create_revision)
    assert nothing is None


async def test_a_listing_is_complete_over_many_pages(server: EtcdServer) -> None:
    """A prefix with more keys than a page holds is listed whole, in order, and nothing beside it."""
    async with EtcdClient(fast_options(server.endpoint, listing_page_keys=3)) as client:
        for index in range(10):
            await client.put(f"/test/k/{index}", b"v")
        await client.put("/test/k0", b"outside")
        listing = await client.get_prefix("/test/k/")
    assert [f"/test/k/{index}" for index in range(10)] == [kv.key for kv in listing.items]


async def test_a_listing_of_large_values_shrinks_its_pages(client: EtcdClient) -> None:
    """Values that do not fit into one message together are listed all the same."""
    value = b"v" * (1 << 20)
    for index in range(18):
        await client.put(f"/test/large/{index:02}", value)
    listing = await client.get_prefix("/test/large/")
    assert [(f"/test/large/{index:02}", len(value)) for index in range(18)] == [
        (kv.key, len(kv.value)) for kv in listing.items
    ]


async def test_a_listing_is_bounded(server: EtcdServer) -> None:
    """More keys than allowed are a typed error, not a longer list."""
    async with EtcdClient(fast_options(server.endpoint, listing_keys_max=4, listing_page_keys=2)) as client:
        for index in range(5):
            await client.put(f"/test/{index}", b"v")
        with pytest.raises(EtcdListingTooLong, match=r"'/test/'.*listing_keys_max=4"):
            await client.get_prefix("/test/")


async def test_writes_go_on_after_kill_and_restart(server: EtcdServer, client: EtcdClient) -> None:
    """A write that meets a killed server succeeds once the server is back, and earlier ones are kept."""
    await client.put("/test/before", b"1")
    await committed(client)
    server.kill()
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(client.put("/test/during", b"2"))
        await asyncio.to_thread(server.start)
    assert writing.result().revision > 0
    assert ["/test/before", "/test/during"] == [kv.key for kv in (await client.get_prefix("/test/")).items]


async def test_a_frozen_server_is_a_typed_error_in_time(server: EtcdServer) -> None:
    """A server that does not answer raises an error that names endpoint and key; thawed, it serves again."""
    async with EtcdClient(fast_options(server.endpoint, operation_timeout_s=1.0)) as client:
        await client.put("/test/a", b"1")
        server.pause()
        with pytest.raises(EtcdUnavailable, match=r"127\.0\.0\.1:\d+ for '/test/a'"):
            await client.put("/test/a", b"2")
        server.resume()
        assert (await client.put("/test/a", b"3")).revision > 0


async def test_acknowledged_writes_survive_each_member_killed_in_turn(cluster: EtcdCluster) -> None:
    """While members of a cluster die one after the other, no acknowledged write is lost, in any reader's order."""
    written: list[bytes] = []

    async with (
        EtcdClient(fast_options(*cluster.endpoints)) as writer,
        EtcdClient(fast_options(*cluster.endpoints)) as reader,
        asyncio.TaskGroup() as group,
    ):
        log = WatchLog(reader, "/test/")
        watching = group.create_task(log.run_on())
        stop = asyncio.Event()

        async def write() -> None:
            while not stop.is_set():
                value = b"%06d" % len(written)
                await writer.put("/test/counter", value)
                written.append(value)

        writing = group.create_task(write())
        for member in cluster.members:
            before = len(written)
            await eventually(lambda before=before: len(written) >= before + 20)  # type: ignore[misc]
            member.kill()
            before = len(written)
            await eventually(lambda before=before: len(written) >= before + 20)  # type: ignore[misc]
            await asyncio.to_thread(member.start)
        stop.set()
        await writing
        await eventually(lambda: log.values[-1:] == written[-1:])
        watching.cancel()

    # A write whose answer was lost is sent again, so a value may be seen again.
    assert written == list(dict.fromkeys(log.values))


async def test_tls_needs_the_right_authority_and_certificate(tmp_path: Path) -> None:
    """With client certificates required, only a client of the same authority gets through."""
    ours, foreign = make_certificates(tmp_path / "ours"), make_certificates(tmp_path / "foreign")
    with EtcdServer(tls=ours.server) as server:
        good = {
            "ca_file": ours.ca_file,
            "cert_file": ours.client_cert_file,
            "key_file": ours.client_key_file,
            "operation_timeout_s": 1.0,
        }
        async with EtcdClient(fast_options(server.endpoint, **good)) as client:
            await client.put("/test/a", b"secret")
            found = await client.get("/test/a")
        assert found is not None
        assert b"secret" == found.value
        async with EtcdClient(fast_options(server.endpoint, **good | {"ca_file": foreign.ca_file})) as client:
            with pytest.raises(EtcdTlsFailed):
                await client.get("/test/a")
        without = {"ca_file": ours.ca_file, "operation_timeout_s": 1.0}
        async with EtcdClient(fast_options(server.endpoint, **without)) as client:
            with pytest.raises(EtcdUnavailable):
                await client.get("/test/a")


async def test_a_password_gives_access_to_its_own_keys_only(server: EtcdServer) -> None:
    """A right password opens the user's prefix, a wrong or missing one opens nothing."""
    await asyncio.to_thread(enable_auth, server, user="worker", password=RIGHT, prefix="/test/")
    async with EtcdClient(fast_options(server.endpoint, user="worker", password=RIGHT)) as client:
        await client.put("/test/a", b"1")
        with pytest.raises(EtcdPermissionDenied, match="'/other/a'"):
            await client.put("/other/a", b"1")
    async with EtcdClient(fast_options(server.endpoint, user="worker", password=WRONG)) as client:
        with pytest.raises(EtcdAuthFailed):
            await client.put("/test/a", b"2")
    async with EtcdClient(fast_options(server.endpoint)) as client:
        with pytest.raises(EtcdAuthFailed):
            await client.put("/test/a", b"2")


async def test_a_forgotten_token_is_fetched_again(server: EtcdServer) -> None:
    """A restarted server knows no tokens; calls and watches go on with a new one."""
    await asyncio.to_thread(enable_auth, server, user="worker", password=RIGHT, prefix="/test/")
    options = fast_options(server.endpoint, user="worker", password=RIGHT)
    async with (
        EtcdClient(options) as client,
        EtcdClient(options) as other,
        asyncio.TaskGroup() as group,
    ):
        log = WatchLog(client, "/test/")
        watching = group.create_task(log.run())
        await other.put("/test/a", b"before")
        await eventually(lambda: log.values == [b"before"])
        await asyncio.to_thread(server.restart)
        await other.put("/test/a", b"after")
        await eventually(lambda: log.values == [b"before", b"after"])
        await client.put("/test/a", b"last")
        await eventually(lambda: log.values == [b"before", b"after", b"last"])
        watching.cancel()


async def test_a_member_without_quorum_refuses(cluster: EtcdCluster) -> None:
    """A member that has lost the others answers no read or write: an error, never an old value."""
    lonely, *others = cluster.members
    async with EtcdClient(fast_options(lonely.endpoint, operation_timeout_s=1.0)) as client:
        await client.put("/test/a", b"1")
        for member in others:
            member.kill()
        with pytest.raises(EtcdUnavailable):
            await client.put("/test/a", b"2")
        with pytest.raises(EtcdUnavailable):
            await client.get("/test/a")


async def test_a_lease_ends_with_its_keys(client: EtcdClient) -> None:
    """A revoked lease takes its keys along and cannot be kept any more; revoking it twice is fine."""
    lease = await client.grant_lease(30)
    await client.put("/test/a", b"1", lease_id=lease.lease_id)
    assert lease.ttl_s == await client.keep_lease(lease.lease_id)
    await client.revoke_lease(lease.lease_id)
    await client.revoke_lease(lease.lease_id)
    assert await client.get("/test/a") is None
    with pytest.raises(EtcdLeaseNotFound, match=f"lease {lease.lease_id:016x}"):
        await client.keep_lease(lease.lease_id)


async def test_status_tells_version_and_leader(client: EtcdClient) -> None:
    """A member tells what it runs and who leads it."""
    status = await client.status()
    assert status.version.startswith("3.")
    assert status.leader_id == status.state.member_id


async def test_unreachable_then_reachable(server: EtcdServer) -> None:
    """The second endpoint is used while the first is away, without a detour for every call."""
    gone = EtcdServer()
    await asyncio.to_thread(gone.start)
    address = gone.endpoint
    gone.stop()
    async with EtcdClient(fast_options(address, server.endpoint)) as client, asyncio.timeout(PATIENCE_S):
        await client.put("/test/a", b"1")
        assert client.endpoints.current.address == server.endpoint.removeprefix("http://")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"endpoints": ()}, "endpoints"),
        ({"endpoints": ("ftp://host:1",)}, "endpoints"),
        ({"endpoints": ("host",)}, "endpoints"),
        ({"endpoints": ("host:99999",)}, "endpoints"),
        ({"endpoints": ("host:1/path",)}, "endpoints"),
        ({"endpoints": ("http://a:1", "https://b:1")}, "endpoints"),
        ({"endpoints": ("http://a:1",), "ca_file": Path("ca.pem")}, "endpoints"),
        ({"prefix": "kvferry"}, "prefix"),
        ({"prefix": "/kvferry/"}, "prefix"),
        ({"cert_file": Path("cert.pem")}, "key_file"),
        ({"user": "worker"}, "user"),
        ({"lease_ttl_s": 0}, "lease_ttl_s"),
        ({"attempt_timeout_s": 0.0}, "attempt_timeout_s"),
        ({"listing_page_keys": 0}, "listing_page_keys"),
    ],
)
def test_a_wrong_option_is_named(changes: dict[str, Any], field: str) -> None:
    """An unusable option is refused at once, with its name and value."""
    options: dict[str, Any] = {"endpoints": ("host:2379",)} | changes
    with pytest.raises(EtcdConfigError) as refused:
        EtcdOptions(**options)
    assert field == refused.value.field


async def test_an_unreadable_certificate_is_named(tmp_path: Path) -> None:
    """A certificate file that is not there is an error about that option."""
    options = fast_options("127.0.0.1:1", ca_file=tmp_path / "none.pem")
    async with EtcdClient(options) as client:
        with pytest.raises(EtcdConfigError, match="ca_file"):
            await client.get("/test/a")
