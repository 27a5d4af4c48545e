"""A simulated etcd: the calls of the real client, answered from an :class:`EtcdStore`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from kvferry.etcd.v1 import etcd_wire_pb2 as pb
from kvferry.rpc.streams import Outgoing
from tests.simulation.etcd_store import EtcdStore
from tests.simulation.network import Network
from tests.simulation.rpc_server import SimServer

ADDRESS = "etcd:2379"
TICK_SECONDS = 0.25
WATCH_EVENTS_MAX = 4_096


@dataclass(frozen=True)
class _Method:
    """What a server needs of a method, as generated code would give it."""

    unary_unary: Any = None
    stream_stream: Any = None
    request_deserializer: Callable[[bytes], Any] = bytes
    response_serializer: Callable[[Any], bytes] = bytes

    @property
    def request_streaming(self) -> bool:
        """Whether it is a stream both ways."""
        return self.stream_stream is not None

    @property
    def response_streaming(self) -> bool:
        """As above."""
        return self.stream_stream is not None


class EtcdServer:
    """One life of the etcd process."""

    def __init__(self, network: Network, store: EtcdStore) -> None:
        self._store = store
        self._server = SimServer(network)
        self._watches: dict[int, tuple[pb.WatchCreateRequest, Outgoing[pb.WatchResponse]]] = {}
        self._watch_count = 0
        store.on_change = self._changed
        unary: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "KV/Range": (pb.RangeRequest, store.range),
            "KV/Put": (pb.PutRequest, store.put),
            "KV/DeleteRange": (pb.DeleteRangeRequest, store.delete),
            "KV/Txn": (pb.TxnRequest, store.txn),
            "Lease/LeaseGrant": (pb.LeaseGrantRequest, self._grant),
            "Lease/LeaseRevoke": (pb.LeaseRevokeRequest, self._revoke),
            "Lease/LeaseTimeToLive": (pb.LeaseTimeToLiveRequest, self._time_to_live),
        }
        methods = {name: _unary(kind, answer) for name, (kind, answer) in unary.items()}
        methods["Lease/LeaseKeepAlive"] = _stream(pb.LeaseKeepAliveRequest, self._keep_alive)
        methods["Watch/Watch"] = _stream(pb.WatchRequest, self._watch)
        for name, method in methods.items():
            service, _, short = name.partition("/")
            self._server.add_registered_method_handlers(f"etcdserverpb.{service}", {short: method})
        self._server.add_insecure_port(ADDRESS)

    async def run(self) -> None:
        """Serve until killed."""
        now = asyncio.get_running_loop().time()
        for lease in self._store.leases.values():
            # A member that becomes leader gives every lease its whole life again.
            lease.expires_at = now + lease.ttl_s
        await self._server.start()
        while True:
            self._store.expire(asyncio.get_running_loop().time())
            await asyncio.sleep(TICK_SECONDS)

    def _grant(self, request: pb.LeaseGrantRequest) -> pb.LeaseGrantResponse:
        self._store.grant(request.id, request.ttl, asyncio.get_running_loop().time())
        return pb.LeaseGrantResponse(header=self._store.header(), id=request.id, ttl=request.ttl)

    def _revoke(self, request: pb.LeaseRevokeRequest) -> pb.LeaseRevokeResponse:
        self._store.end_lease(request.id)
        return pb.LeaseRevokeResponse(header=self._store.header())

    def _time_to_live(self, request: pb.LeaseTimeToLiveRequest) -> pb.LeaseTimeToLiveResponse:
        lease = self._store.leases.get(request.id)
        left = -1 if lease is None else int(lease.expires_at - asyncio.get_running_loop().time())
        return pb.LeaseTimeToLiveResponse(header=self._store.header(), id=request.id, ttl=left)

    async def _keep_alive(self, requests: AsyncIterator[pb.LeaseKeepAliveRequest], context: Any) -> None:
        async for request in requests:
            lease = self._store.leases.get(request.id)
            ttl_s = 0
            if lease is not None:
                ttl_s = lease.ttl_s
                lease.expires_at = asyncio.get_running_loop().time() + ttl_s
            await context.write(pb.LeaseKeepAliveResponse(header=self._store.header(), id=request.id, ttl=ttl_s))

    async def _watch(self, requests: AsyncIterator[pb.WatchRequest], context: Any) -> None:
        outgoing: Outgoing[pb.WatchResponse] = Outgoing(WATCH_EVENTS_MAX)
        self._watch_count += 1
        number = self._watch_count
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read_watch(requests, outgoing, number))
                while batch := await outgoing.take():
                    for message in batch:
                        await context.write(message)
                reading.cancel()
        finally:
            self._watches.pop(number, None)

    async def _read_watch(
        self, requests: AsyncIterator[pb.WatchRequest], outgoing: Outgoing[pb.WatchResponse], number: int
    ) -> None:
        async for request in requests:
            header = self._store.header()
            if request.HasField("progress_request"):
                outgoing.put(pb.WatchResponse(header=header, watch_id=-1))
                continue
            create = request.create_request
            outgoing.put(pb.WatchResponse(header=header, created=True))
            if create.start_revision <= self._store.compacted:
                compacted = self._store.compacted
                outgoing.put(pb.WatchResponse(header=header, canceled=True, compact_revision=compacted))
                continue
            missed = [e for e in self._store.history if e.kv.mod_revision >= create.start_revision]
            events = [e for e in missed if _matches(create, e)]
            if events:
                outgoing.put(pb.WatchResponse(header=header, events=events))
            self._watches[number] = create, outgoing
        outgoing.close()

    def _changed(self, event: pb.Event) -> None:
        for create, outgoing in list(self._watches.values()):
            if _matches(create, event):
                outgoing.put_or_end(pb.WatchResponse(header=self._store.header(), events=[event]))


def _matches(create: pb.WatchCreateRequest, event: pb.Event) -> bool:
    return create.key <= event.kv.key < create.range_end


def _unary(kind: Any, answer: Callable[[Any], Any]) -> _Method:
    async def call(request: Any, context: Any) -> Any:
        try:
            return answer(request)
        except KeyError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error.args[0]))

    return _Method(
        unary_unary=call,
        request_deserializer=kind.FromString,
        response_serializer=lambda answer: answer.SerializeToString(),
    )


def _stream(kind: Any, serve: Any) -> _Method:
    return _Method(
        stream_stream=serve,
        request_deserializer=kind.FromString,
        response_serializer=lambda answer: answer.SerializeToString(),
    )
