"""Failure reasons and their wire forms."""

import grpc

from kvferry.core.reasons import Reason
from kvferry.error.v1 import error_pb2 as pb

_PREFIX = "REASON_"

STATUS_CODES: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.HANDLE_MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.HANDLE_FORGED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.BLOCK_OUT_OF_RANGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.BLOCK_DUPLICATE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.BLOCK_COUNT_MISMATCH: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.BLOCK_BUSY: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REQUEST_ID_REUSED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.LAYOUT_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MESSAGE_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.LEASE_ENDED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.FENCED: grpc.StatusCode.ABORTED,
    Reason.STALE_INCARNATION: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.CHECKSUM_MISMATCH: grpc.StatusCode.DATA_LOSS,
    Reason.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.WORKER_UNKNOWN: grpc.StatusCode.NOT_FOUND,
    Reason.PEER_UNREACHABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.PEER_LOST: grpc.StatusCode.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.CANCELLED: grpc.StatusCode.CANCELLED,
    Reason.DATA_PLANE_LOST: grpc.StatusCode.UNAVAILABLE,
    Reason.NOT_READY: grpc.StatusCode.UNAVAILABLE,
    # Not UNAVAILABLE, which is repeated at the same worker.
    Reason.DRAINING: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.QUEUE_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.LAYOUT_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.WORKER_NAME_TAKEN: grpc.StatusCode.ALREADY_EXISTS,
    Reason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.CONFIG_INVALID: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.POOL_TOO_LARGE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.ADDRESS_IN_USE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TRANSPORT_FAILED: grpc.StatusCode.INTERNAL,
    Reason.PROTOCOL_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.CHECKSUMS_ABSENT: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TRANSPORT_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PATH_REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}
"""The gRPC status code that goes with each reason."""


def reason_to_wire(reason: Reason) -> pb.Reason.ValueType:
    """The wire value of a reason."""
    return pb.Reason.Value(_PREFIX + reason.value)


def reason_from_wire(wire: pb.Reason.ValueType) -> Reason:
    """The reason of a wire value; a value of a newer peer reads as INTERNAL."""
    try:
        return Reason(pb.Reason.Name(wire).removeprefix(_PREFIX))
    except ValueError:
        return Reason.INTERNAL
