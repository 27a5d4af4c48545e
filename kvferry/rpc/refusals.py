"""Refusals that travel inside a stream's messages, where no gRPC status can carry them."""

from kvferry.core.errors import KvferryError, error_of
from kvferry.error.v1 import error_pb2 as pb
from kvferry.rpc.errors import MESSAGE_CHARS_MAX
from kvferry.rpc.reasons import reason_from_wire, reason_to_wire


def refusal_to_wire(error: KvferryError) -> pb.Refusal:
    """The wire form of an error."""
    message = error.message[:MESSAGE_CHARS_MAX]
    return pb.Refusal(reason=reason_to_wire(error.reason), message=message, metadata=error.metadata)


def refusal_from_wire(refusal: pb.Refusal) -> KvferryError:
    """The exception that a refusal stands for."""
    return error_of(reason_from_wire(refusal.reason), refusal.message, dict(refusal.metadata))
