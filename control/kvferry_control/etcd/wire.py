"""etcd's messages: the only file that knows them.

A :class:`Call` carries serialized bytes and a decoder, so that the client needs neither messages nor stubs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvferry.etcd.v1 import etcd_wire_pb2 as pb
from kvferry_control.etcd.model import (
    CompareTarget,
    Delete,
    DeleteEvent,
    Equals,
    Event,
    Get,
    KeyValue,
    MemberStatus,
    Operation,
    Put,
    PutEvent,
    RangePage,
    StoreState,
    TxnResult,
    WatchMessage,
)

WATCH_PATH = "/etcdserverpb.Watch/Watch"
KEEP_ALIVE_PATH = "/etcdserverpb.Lease/LeaseKeepAlive"

_EVENT_PUT = 0
_COMPARE_EQUAL = 0
_COMPARE_FIELDS = {
    CompareTarget.VERSION: "version",
    CompareTarget.CREATE_REVISION: "create_revision",
    CompareTarget.MOD_REVISION: "mod_revision",
    CompareTarget.LEASE_ID: "lease",
}

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Call(Generic[ResultT]):
    """One unary call: where to, what, how to read the answer, and the key it is about (for errors)."""

    path: str
    request: bytes
    decode: Callable[[bytes], ResultT]
    key: str


def encode_key(key: str) -> bytes:
    """Keys are UTF-8; foreign bytes under a prefix survive the way through ``str``."""
    return key.encode("utf-8", "surrogateescape")


def decode_key(key: bytes) -> str:
    """Inverse of :func:`encode_key`."""
    return key.decode("utf-8", "surrogateescape")


def prefix_end(prefix: str) -> bytes:
    """First key behind all keys that start with ``prefix``, in etcd's notation (a zero byte means no end)."""
    stem = encode_key(prefix).rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def key_after(key: str) -> bytes:
    """Smallest key greater than ``key``: where the next page of a listing begins."""
    return encode_key(key) + b"\0"


def range_call(prefix: str, start: bytes, *, limit: int, revision: int) -> Call[RangePage]:
    """Read keys under ``prefix`` from ``start`` on, at ``revision`` (0 for the newest), linearizably."""
    request = pb.RangeRequest(key=start, range_end=prefix_end(prefix), limit=limit, revision=revision)
    return Call("/etcdserverpb.KV/Range", request.SerializeToString(), _range_page, prefix)


def get_call(key: str) -> Call[RangePage]:
    """Read one key, linearizably."""
    request = pb.RangeRequest(key=encode_key(key))
    return Call("/etcdserverpb.KV/Range", request.SerializeToString(), _range_page, key)


def put_call(put: Put) -> Call[StoreState]:
    """Write one key."""
    return Call("/etcdserverpb.KV/Put", _put_request(put).SerializeToString(), _put_state, put.key)


def delete_call(key: str) -> Call[bool]:
    """Delete one key; answers whether it was there."""
    request = pb.DeleteRangeRequest(key=encode_key(key))
    return Call("/etcdserverpb.KV/DeleteRange", request.SerializeToString(), _was_deleted, key)


def txn_call(compares: Iterable[Equals], then: Iterable[Operation], otherwise: Iterable[Operation]) -> Call[TxnResult]:
    """Run ``then`` if all compares hold, else ``otherwise``, atomically."""
    conditions = [_compare(compare) for compare in compares]
    success = [_request_op(operation) for operation in then]
    failure = [_request_op(operation) for operation in otherwise]
    request = pb.TxnRequest(compare=conditions, success=success, failure=failure)
    subject = decode_key(conditions[0].key) if conditions else ""
    return Call("/etcdserverpb.KV/Txn", request.SerializeToString(), _txn_result, subject)


def compact_call(revision: int) -> Call[None]:
    """Forget the history before ``revision``."""
    request = pb.CompactionRequest(revision=revision, physical=True)
    return Call("/etcdserverpb.KV/Compact", request.SerializeToString(), _nothing, f"compaction {revision}")


def grant_call(lease_id: int, ttl_s: int) -> Call[int]:
    """Make a lease under a number of the caller's choice; answers the seconds granted."""
    request = pb.LeaseGrantRequest(id=lease_id, ttl=ttl_s)
    return Call("/etcdserverpb.Lease/LeaseGrant", request.SerializeToString(), _granted_ttl, lease_name(lease_id))


def revoke_call(lease_id: int) -> Call[None]:
    """End a lease and delete its keys."""
    request = pb.LeaseRevokeRequest(id=lease_id)
    return Call("/etcdserverpb.Lease/LeaseRevoke", request.SerializeToString(), _nothing, lease_name(lease_id))


def time_to_live_call(lease_id: int) -> Call[int]:
    """Seconds that a lease has left, -1 if it is gone."""
    request = pb.LeaseTimeToLiveRequest(id=lease_id)
    return Call(
        "/etcdserverpb.Lease/LeaseTimeToLive",
        request.SerializeToString(),
        _seconds_left,
        lease_name(lease_id),
    )


def status_call() -> Call[MemberStatus]:
    """State of the member that is asked."""
    return Call("/etcdserverpb.Maintenance/Status", pb.StatusRequest().SerializeToString(), _member_status, "status")


def authenticate_call(user: str, password: str) -> Call[str]:
    """Exchange a password for a token."""
    request = pb.AuthenticateRequest(name=user, password=password)
    return Call("/etcdserverpb.Auth/Authenticate", request.SerializeToString(), _token, f"user {user}")


def lease_name(lease_id: int) -> str:
    """A lease as etcd's own tools print it."""
    return f"lease {lease_id:016x}"


def keep_alive_request(lease_id: int) -> bytes:
    """Message that keeps a lease alive."""
    return pb.LeaseKeepAliveRequest(id=lease_id).SerializeToString()


def keep_alive_ttl_s(answer: bytes) -> int:
    """Seconds that the lease lives from now; 0 or less if it is gone."""
    return pb.LeaseKeepAliveResponse.FromString(answer).ttl


def watch_create_request(prefix: str, start_revision: int) -> bytes:
    """Message that opens a watch on all keys under ``prefix``."""
    create = pb.WatchCreateRequest(
        key=encode_key(prefix),
        range_end=prefix_end(prefix),
        start_revision=start_revision,
        progress_notify=True,
        fragment=True,
    )
    return pb.WatchRequest(create_request=create).SerializeToString()


def watch_progress_request() -> bytes:
    """Message that asks a watch stream for a sign of life."""
    return pb.WatchRequest(progress_request=pb.WatchProgressRequest()).SerializeToString()


def watch_message(answer: bytes) -> WatchMessage:
    """Read one message of a watch stream."""
    message = pb.WatchResponse.FromString(answer)
    return WatchMessage(
        state=_state(message.header),
        events=tuple(_event(event) for event in message.events),
        own=message.watch_id >= 0,
        created=message.created,
        canceled=message.canceled,
        partial=message.fragment,
        compact_revision=message.compact_revision,
        cancel_reason=message.cancel_reason,
    )


def _state(header: pb.ResponseHeader) -> StoreState:
    return StoreState(header.cluster_id, header.member_id, header.revision, header.raft_term)


def _key_value(kv: pb.KeyValue) -> KeyValue:
    return KeyValue(decode_key(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _event(event: pb.Event) -> Event:
    if event.type == _EVENT_PUT:
        return PutEvent(_key_value(event.kv))
    return DeleteEvent(decode_key(event.kv.key), event.kv.mod_revision)


def _compare(compare: Equals) -> pb.Compare:
    message = pb.Compare(result=_COMPARE_EQUAL, target=int(compare.target), key=encode_key(compare.key))
    setattr(message, _COMPARE_FIELDS[compare.target], compare.number)
    return message


def _put_request(put: Put) -> pb.PutRequest:
    return pb.PutRequest(key=encode_key(put.key), value=put.value, lease=put.lease_id)


def _request_op(operation: Operation) -> pb.RequestOp:
    match operation:
        case Put():
            return pb.RequestOp(request_put=_put_request(operation))
        case Get(key):
            return pb.RequestOp(request_range=pb.RangeRequest(key=encode_key(key)))
        case Delete(key):
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=encode_key(key)))


def _range_page(answer: bytes) -> RangePage:
    message = pb.RangeResponse.FromString(answer)
    return RangePage(_state(message.header), tuple(_key_value(kv) for kv in message.kvs), message.more)


def _put_state(answer: bytes) -> StoreState:
    return _state(pb.PutResponse.FromString(answer).header)


def _was_deleted(answer: bytes) -> bool:
    return pb.DeleteRangeResponse.FromString(answer).deleted > 0


def _txn_result(answer: bytes) -> TxnResult:
    message = pb.TxnResponse.FromString(answer)
    ranges = [op.response_range for op in message.responses if op.HasField("response_range")]
    reads = tuple(_key_value(found.kvs[0]) if found.kvs else None for found in ranges)
    return TxnResult(message.succeeded, _state(message.header), reads)


def _nothing(_answer: bytes) -> None:
    return None


def _granted_ttl(answer: bytes) -> int:
    return pb.LeaseGrantResponse.FromString(answer).ttl


def _seconds_left(answer: bytes) -> int:
    return pb.LeaseTimeToLiveResponse.FromString(answer).ttl


def _token(answer: bytes) -> str:
    return pb.AuthenticateResponse.FromString(answer).token


def _member_status(answer: bytes) -> MemberStatus:
    message = pb.StatusResponse.FromString(answer)
    return MemberStatus(_state(message.header), message.version, message.leader, tuple(message.errors))
