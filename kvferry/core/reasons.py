"""Why something was refused or failed, and who must act on it.

The names are the wire contract's: ``kvferry.error.v1.Reason`` without its prefix.
"""

from enum import Enum, StrEnum


class Actor(Enum):
    """Who can do something about a failure."""

    CALLER = "caller"
    """The request is wrong: the same request will never succeed."""
    RETRY = "retry"
    """The same request may succeed later, or on another worker."""
    PREFILL = "prefill"
    """The KV is gone: prefill the prompt again."""
    OPERATOR = "operator"
    """Configuration or infrastructure must change."""
    KVFERRY = "kvferry"
    """A defect of kvferry: report it."""


class Reason(StrEnum):
    """A failure that callers can branch on. ``actor`` says who must act."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    HANDLE_MALFORMED = "HANDLE_MALFORMED"
    HANDLE_FORGED = "HANDLE_FORGED"
    BLOCK_OUT_OF_RANGE = "BLOCK_OUT_OF_RANGE"
    BLOCK_DUPLICATE = "BLOCK_DUPLICATE"
    BLOCK_COUNT_MISMATCH = "BLOCK_COUNT_MISMATCH"
    BLOCK_BUSY = "BLOCK_BUSY"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    NOT_FOUND = "NOT_FOUND"
    LAYOUT_INVALID = "LAYOUT_INVALID"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    LEASE_ENDED = "LEASE_ENDED"
    FENCED = "FENCED"
    STALE_INCARNATION = "STALE_INCARNATION"
    CHECKSUM_MISMATCH = "CHECKSUM_MISMATCH"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    WORKER_UNKNOWN = "WORKER_UNKNOWN"
    PEER_UNREACHABLE = "PEER_UNREACHABLE"
    PEER_LOST = "PEER_LOST"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    DATA_PLANE_LOST = "DATA_PLANE_LOST"
    NOT_READY = "NOT_READY"
    DRAINING = "DRAINING"
    QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
    LAYOUT_MISMATCH = "LAYOUT_MISMATCH"
    WORKER_NAME_TAKEN = "WORKER_NAME_TAKEN"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    CONFIG_INVALID = "CONFIG_INVALID"
    POOL_TOO_LARGE = "POOL_TOO_LARGE"
    ADDRESS_IN_USE = "ADDRESS_IN_USE"
    TRANSPORT_FAILED = "TRANSPORT_FAILED"
    PROTOCOL_MISMATCH = "PROTOCOL_MISMATCH"
    CHECKSUMS_ABSENT = "CHECKSUMS_ABSENT"
    TRANSPORT_MISMATCH = "TRANSPORT_MISMATCH"
    PATH_REFUSED = "PATH_REFUSED"
    INTERNAL = "INTERNAL"

    @property
    def actor(self) -> Actor:
        """Who must act."""
        return _ACTORS[self]


_ACTORS: dict[Reason, Actor] = {
    reason: actor
    for actor, reasons in {
        Actor.CALLER: (
            Reason.INVALID_ARGUMENT,
            Reason.HANDLE_MALFORMED,
            Reason.HANDLE_FORGED,
            Reason.BLOCK_OUT_OF_RANGE,
            Reason.BLOCK_DUPLICATE,
            Reason.BLOCK_COUNT_MISMATCH,
            Reason.BLOCK_BUSY,
            Reason.REQUEST_ID_REUSED,
            Reason.NOT_FOUND,
            Reason.LAYOUT_INVALID,
            Reason.MESSAGE_TOO_LARGE,
        ),
        Actor.PREFILL: (
            Reason.LEASE_ENDED,
            Reason.FENCED,
            Reason.STALE_INCARNATION,
            Reason.CHECKSUM_MISMATCH,
        ),
        Actor.RETRY: (
            Reason.RESOURCE_EXHAUSTED,
            Reason.WORKER_UNKNOWN,
            Reason.PEER_UNREACHABLE,
            Reason.PEER_LOST,
            Reason.DEADLINE_EXCEEDED,
            Reason.CANCELLED,
            Reason.DATA_PLANE_LOST,
            Reason.NOT_READY,
            Reason.DRAINING,
            Reason.QUEUE_TIMEOUT,
        ),
        Actor.OPERATOR: (
            Reason.LAYOUT_MISMATCH,
            Reason.WORKER_NAME_TAKEN,
            Reason.PERMISSION_DENIED,
            Reason.CONFIG_INVALID,
            Reason.POOL_TOO_LARGE,
            Reason.ADDRESS_IN_USE,
            Reason.TRANSPORT_FAILED,
            Reason.PROTOCOL_MISMATCH,
            Reason.CHECKSUMS_ABSENT,
            Reason.TRANSPORT_MISMATCH,
            Reason.PATH_REFUSED,
        ),
        Actor.KVFERRY: (Reason.INTERNAL,),
    }.items()
    for reason in reasons
}
