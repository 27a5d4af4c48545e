"""The one door between kvferry's exceptions and gRPC status.

Outward, every error carries one ``google.rpc.ErrorInfo`` with domain ``kvferry``; errors about a field also carry a
``BadRequest``, errors that may be retried a ``RetryInfo``. Inward, :func:`from_rpc` gives back the same exception.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from kvferry.core.errors import InternalError, KvferryError, error_of
from kvferry.core.reasons import Actor, Reason
from kvferry.rpc.reasons import STATUS_CODES

DOMAIN = "kvferry"
DETAILS_KEY = "grpc-status-details-bin"
RETRY_DELAY_MS = 100
"""For errors whose maker could not tell how long they will last."""
MESSAGE_CHARS_MAX = 1_000

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Self = TypeVar("_Self")
# The generated stubs give their own context type, a subtype of this one that exists only for type checkers.
_Context = Any

_log = structlog.get_logger("kvferry.rpc")

_WITHOUT_DETAILS = {
    grpc.StatusCode.UNAVAILABLE: Reason.PEER_UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: Reason.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.MESSAGE_TOO_LARGE,
    grpc.StatusCode.PERMISSION_DENIED: Reason.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED: Reason.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED: Reason.PROTOCOL_MISMATCH,
}
"""What a status means that gRPC itself made; RESOURCE_EXHAUSTED is then a message over the receiver's bound."""


def to_status(error: KvferryError) -> status_pb2.Status:
    """The rich status of an error."""
    message = error.message[:MESSAGE_CHARS_MAX]
    details: list[any_pb2.Any] = [
        _packed(error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=error.metadata))
    ]
    if "field" in error.metadata and error.reason.actor is Actor.CALLER:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.metadata["field"], description=message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.reason in (Reason.RESOURCE_EXHAUSTED, Reason.NOT_READY, Reason.PEER_UNREACHABLE):
        retry = error_details_pb2.RetryInfo()
        delay_s = error.retry_after_s
        retry.retry_delay.FromMilliseconds(RETRY_DELAY_MS if delay_s is None else round(delay_s * 1e3))
        details.append(_packed(retry))
    code = int(STATUS_CODES[error.reason].value[0])
    return status_pb2.Status(code=code, message=message, details=details)


def from_rpc(error: grpc.RpcError) -> KvferryError:
    """The exception that a failed call stands for."""
    if not isinstance(error, aio.AioRpcError | grpc.Call):
        return InternalError(f"unknown gRPC failure {error!r}")
    info = _error_info(error)
    message = error.details() or ""
    if info is not None:
        reason = Reason(info.reason) if info.reason in Reason.__members__ else Reason.INTERNAL
        return error_of(reason, message, dict(info.metadata))
    return error_of(_WITHOUT_DETAILS.get(error.code(), Reason.INTERNAL), f"{error.code().name}: {message}")


async def abort(context: aio.ServicerContext[Any, Any], error: KvferryError) -> NoReturn:
    """End a call with an error."""
    status = to_status(error)
    await context.abort(
        STATUS_CODES[error.reason], status.message, trailing_metadata=((DETAILS_KEY, status.SerializeToString()),)
    )


def unary_method(
    method: Callable[[_Self, _Request, _Context], Awaitable[_Response]],
) -> Callable[[_Self, _Request, _Context], Awaitable[_Response]]:
    """Decorate a unary servicer method: what it raises reaches the caller as a rich status."""

    @wraps(method)
    async def guarded(self: _Self, request: _Request, context: _Context) -> _Response:
        try:
            return await method(self, request, context)
        except KvferryError as error:
            await abort(context, error)
        except aio.AbortError:
            raise
        except Exception as error:
            _log.exception("defect in a call", method=method.__qualname__)
            await abort(context, InternalError(f"{type(error).__name__} in {method.__qualname__}"))

    return guarded


def stream_method(
    method: Callable[[_Self, _Request, _Context], AsyncIterator[_Response]],
) -> Callable[[_Self, _Request, _Context], AsyncIterator[_Response]]:
    """Decorate a streaming servicer method, as :func:`unary_method` does a unary one."""

    @wraps(method)
    async def guarded(self: _Self, request: _Request, context: _Context) -> AsyncIterator[_Response]:
        try:
            async for response in method(self, request, context):
                yield response
        except KvferryError as error:
            await abort(context, error)
        except aio.AbortError:
            raise
        except Exception as error:
            _log.exception("defect in a call", method=method.__qualname__)
            await abort(context, InternalError(f"{type(error).__name__} in {method.__qualname__}"))

    return guarded


def _packed(detail: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _error_info(error: aio.AioRpcError | grpc.Call) -> error_details_pb2.ErrorInfo | None:
    for key, value in error.trailing_metadata() or ():
        if key != DETAILS_KEY:
            continue
        try:
            status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
        except DecodeError:
            return None
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
    return None
