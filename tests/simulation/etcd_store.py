"""What a simulated etcd keeps: keys with revisions, leases, and the history that watches go on from."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

from kvferry.etcd.v1 import etcd_wire_pb2 as pb

_COMPARED = {0: "version", 1: "create_revision", 2: "mod_revision", 4: "lease"}
_DELETED = 1


@dataclass(slots=True)
class StoredLease:
    """A lease; ``expires_at`` on the clock of the process that serves the store."""

    ttl_s: int
    expires_at: float
    keys: set[bytes] = field(default_factory=set)


class EtcdStore:
    """One member's data. ``on_change`` is told of every change."""

    def __init__(self, cluster_id: int) -> None:
        self.cluster_id = cluster_id
        self.revision = 1
        self.compacted = 0
        self.keys: dict[bytes, pb.KeyValue] = {}
        self.leases: dict[int, StoredLease] = {}
        self.history: list[pb.Event] = []
        self.on_change: Callable[[pb.Event], None] = lambda _event: None

    def copied(self) -> "EtcdStore":
        """As a snapshot has it."""
        on_change, self.on_change = self.on_change, lambda _event: None
        try:
            return copy.deepcopy(self)
        finally:
            self.on_change = on_change

    def header(self) -> pb.ResponseHeader:
        """Of every answer."""
        return pb.ResponseHeader(cluster_id=self.cluster_id, member_id=1, revision=self.revision, raft_term=2)

    def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        """Read one key, or those from ``key`` to ``range_end``."""
        if request.range_end:
            found = [self.keys[key] for key in sorted(self.keys) if request.key <= key < request.range_end]
        else:
            found = [self.keys[request.key]] if request.key in self.keys else []
        return pb.RangeResponse(header=self.header(), kvs=found, count=len(found))

    def put(self, request: pb.PutRequest) -> pb.PutResponse:
        """Write a key."""
        if request.lease and request.lease not in self.leases:
            raise KeyError("etcdserver: requested lease not found")
        self.revision += 1
        known = self.keys.get(request.key)
        kv = pb.KeyValue(
            key=request.key,
            value=request.value,
            lease=request.lease,
            create_revision=known.create_revision if known else self.revision,
            mod_revision=self.revision,
            version=known.version + 1 if known else 1,
        )
        if known is not None and known.lease in self.leases:
            self.leases[known.lease].keys.discard(request.key)
        self.keys[request.key] = kv
        if request.lease:
            self.leases[request.lease].keys.add(request.key)
        self._changed(pb.Event(kv=kv))
        return pb.PutResponse(header=self.header())

    def delete(self, request: pb.DeleteRangeRequest) -> pb.DeleteRangeResponse:
        """Delete a key."""
        known = self.keys.pop(request.key, None)
        if known is not None:
            self.revision += 1
            if known.lease in self.leases:
                self.leases[known.lease].keys.discard(request.key)
            self._changed(pb.Event(type=_DELETED, kv=pb.KeyValue(key=request.key, mod_revision=self.revision)))
        return pb.DeleteRangeResponse(header=self.header(), deleted=known is not None)

    def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Compare, then do one list or the other."""
        succeeded = all(self._holds(compare) for compare in request.compare)
        responses = [self._do(op) for op in (request.success if succeeded else request.failure)]
        return pb.TxnResponse(header=self.header(), succeeded=succeeded, responses=responses)

    def grant(self, lease_id: int, ttl_s: int, now: float) -> None:
        """Make a lease."""
        if lease_id in self.leases:
            raise KeyError("etcdserver: lease already exists")
        self.leases[lease_id] = StoredLease(ttl_s, now + ttl_s)

    def end_lease(self, lease_id: int) -> None:
        """End a lease and delete its keys."""
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            raise KeyError("etcdserver: requested lease not found")
        for key in sorted(lease.keys):
            self.delete(pb.DeleteRangeRequest(key=key))

    def expire(self, now: float) -> int:
        """End the leases whose time is over; returns how many."""
        over = [lease_id for lease_id, lease in self.leases.items() if lease.expires_at <= now]
        for lease_id in over:
            self.end_lease(lease_id)
        return len(over)

    def compact(self) -> None:
        """Forget the history."""
        self.compacted = self.revision
        self.history.clear()

    def _holds(self, compare: pb.Compare) -> bool:
        name = _COMPARED[compare.target]
        known = self.keys.get(compare.key)
        return bool((getattr(known, name) if known is not None else 0) == getattr(compare, name))

    def _do(self, op: pb.RequestOp) -> pb.ResponseOp:
        if op.HasField("request_put"):
            return pb.ResponseOp(response_put=self.put(op.request_put))
        if op.HasField("request_range"):
            return pb.ResponseOp(response_range=self.range(op.request_range))
        return pb.ResponseOp(response_delete_range=self.delete(op.request_delete_range))

    def _changed(self, event: pb.Event) -> None:
        self.history.append(event)
        self.on_change(event)
