"""What the etcd tests share: bounded waits, a TCP proxy that can stall, certificates, and etcd's HTTP interface."""

import asyncio
import base64
import contextlib
import http.client
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trustme

from kvferry.dev.etcd_server import EtcdServer, EtcdServerTls
from kvferry_control.etcd.client import EtcdClient
from kvferry_control.etcd.config import EtcdOptions
from kvferry_control.etcd.model import Event, PutEvent, StoreState
from kvferry_control.etcd.watch import WatchEvents, WatchItem, WatchResync, watch_prefix

PATIENCE_S = 20.0
"""Bound of every wait: far beyond what is needed, so that it only ends tests that have failed."""

_POLL_S = 0.01


def fast_options(*endpoints: str, **changes: Any) -> EtcdOptions:
    """Options with short times, so that failures are noticed soon."""
    defaults: dict[str, Any] = {
        "prefix": "/test",
        "lease_ttl_s": 1,
        "attempt_timeout_s": 0.5,
        "watch_progress_interval_s": 0.2,
    }
    return EtcdOptions(endpoints=endpoints, **(defaults | changes))


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition is about another process
            await asyncio.sleep(_POLL_S)


async def committed(client: EtcdClient) -> None:
    """Return when a kill of the server, a single one, can take nothing back that it has answered before.

    Between two commits etcd 3.5.0 to 3.5.2 may mark a write as applied whose data is not yet in its database. Killed
    then, it comes back without that write, and the next one gets the revision that clients know of a lost one. Hash
    commits; HashKV does not, and Defragment leaves the mark out, so that writes are applied twice.
    """
    # A confirmed read is answered once the writes before it are in the log; what is committed must not be ahead of it.
    await client.get("/")
    await client.endpoints.current.unary("/etcdserverpb.Maintenance/Hash")(b"", timeout=PATIENCE_S)


class WatchLog:
    """Everything a watch has reported, kept by a task of the caller's."""

    def __init__(
        self, client: EtcdClient, prefix: str, start_revision: int = 1, listed: StoreState | None = None
    ) -> None:
        self.items: list[WatchItem] = []
        self._client = client
        self._prefix = prefix
        self._start_revision = start_revision
        self._listed = listed

    async def run(self) -> None:
        """Follow the watch until it ends."""
        async with contextlib.aclosing(
            watch_prefix(self._client, self._prefix, self._start_revision, self._listed)
        ) as items:
            async for item in items:
                self.items.append(item)

    async def run_on(self) -> None:
        """Follow for good: to a watch a member that lags looks like a store that went back, so open a new one there.

        What the store has really lost is missing in what is reported then.
        """
        while True:
            await self.run()
            ended = self.items[-1]
            assert isinstance(ended, WatchResync)
            self._start_revision = ended.revision + 1

    @property
    def events(self) -> list[Event]:
        """All changes, in the order in which they were reported."""
        return [event for item in self.items if isinstance(item, WatchEvents) for event in item.events]

    @property
    def values(self) -> list[bytes]:
        """The values of all writes, in the order in which they were reported."""
        return [event.kv.value for event in self.events if isinstance(event, PutEvent)]

    def count(self, kind: type[WatchItem]) -> int:
        """Number of items of one kind."""
        return sum(isinstance(item, kind) for item in self.items)


class Proxy:
    """A TCP proxy in front of one server. Stalled, it keeps connections open and passes nothing on."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "", parts.port or 0)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.endpoint = ""

    def stall(self) -> None:
        """Pass nothing on from now."""
        self._flowing.clear()

    def flow(self) -> None:
        """Pass on again."""
        self._flowing.set()

    def cut(self) -> None:
        """Close all connections; new ones are accepted."""
        for writer in self._writers:
            writer.close()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Proxy"]:
        """Serve on a free port of loopback."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.flow()
            self.cut()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            self._writers.discard(writer)
            writer.close()
            return
        self._writers.add(back)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pipe(reader, back))
                group.create_task(self._pipe(there, writer))
        finally:
            self._writers -= {writer, back}

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()


@dataclass(frozen=True)
class Certificates:
    """Files of one authority: for a server on loopback, and for a client."""

    ca_file: Path
    server: EtcdServerTls
    client_cert_file: Path
    client_key_file: Path


def make_certificates(directory: Path) -> Certificates:
    """A new authority and what it signed."""
    directory.mkdir()
    authority = trustme.CA()
    ca_file = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    for name, leaf in (
        ("server", authority.issue_cert("127.0.0.1")),
        ("client", authority.issue_cert("client.test", common_name="client")),
    ):
        leaf.cert_chain_pems[0].write_to_path(str(directory / f"{name}.pem"))
        leaf.private_key_pem.write_to_path(str(directory / f"{name}.key"))
    server = EtcdServerTls(ca_file, directory / "server.pem", directory / "server.key", client_cert_auth=True)
    return Certificates(ca_file, server, directory / "client.pem", directory / "client.key")


def enable_auth(server: EtcdServer, *, user: str, password: str, prefix: str) -> None:
    """Switch passwords on, with a user who may do anything under ``prefix`` and nothing else."""
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    permission = {"permType": "READWRITE", "key": _base64(prefix), "range_end": _base64(end)}
    for path, body in (
        ("user/add", {"name": "root", "password": "root-password"}),
        ("role/add", {"name": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("user/add", {"name": user, "password": password}),
        ("role/add", {"name": "worker"}),
        ("role/grant", {"name": "worker", "perm": permission}),
        ("user/grant", {"user": user, "role": "worker"}),
        ("enable", {}),
    ):
        _post(server, f"/v3/auth/{path}", body)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _post(server: EtcdServer, path: str, body: dict[str, Any]) -> None:
    parts = urlsplit(server.endpoint)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{path}: {answer.status} {text!r}")
    finally:
        connection.close()
