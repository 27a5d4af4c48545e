"""Calls to a control: how a failed call is told apart, and which are repeated."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import grpc
from grpc import aio

from kvferry.core.errors import KvferryError, NotReady
from kvferry.core.reasons import Reason
from kvferry.rpc.errors import DETAILS_KEY, from_rpc

RETRY_PAUSE_S = 0.02
_UNANSWERED = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
)

_Request_contra = TypeVar("_Request_contra", contravariant=True)
_Response_co = TypeVar("_Response_co", covariant=True)


_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Method(Protocol[_Request_contra, _Response_co]):
    """A unary method of a stub."""

    def __call__(
        self, request: _Request_contra, *, timeout: float | None = None, wait_for_ready: bool | None = None
    ) -> Awaitable[_Response_co]:
        """Call it; ``timeout`` in seconds."""
        ...


def has_details(error: aio.AioRpcError) -> bool:
    """Whether a kvferry server made the error; without, gRPC itself did."""
    return any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ())


def is_transport_failure(error: aio.AioRpcError) -> bool:
    """Whether the connection failed, so that another attempt or another control may do better."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and not has_details(error)


def control_error(error: aio.AioRpcError, where: str) -> KvferryError:
    """The exception for a failed call to the control at ``where``; NotReady when it cannot be reached."""
    if is_transport_failure(error):
        return NotReady(f"control at {where} cannot be reached: {error.details()}", metadata={"endpoint": where})
    if error.code() is grpc.StatusCode.CANCELLED and not has_details(error):
        return NotReady(f"the connection to control at {where} was closed", metadata={"endpoint": where})
    return from_rpc(error)


def is_outcome_unknown(error: KvferryError) -> bool:
    """Whether control may have done what the failed call asked for: an attempt went unanswered."""
    return error.metadata.get("outcome") == "unknown"


def mark_outcome_unknown(error: KvferryError) -> KvferryError:
    """``error``, as one that leaves open whether control acted."""
    error.metadata["outcome"] = "unknown"
    return error


class Caller:
    """Calls to one control; idempotent ones are repeated while it cannot be reached, until their deadline.

    ``reopen`` is awaited once when the control says that it is not ready: it may have restarted and wait for the
    engine to declare itself.
    """

    def __init__(self, where: str, reopen: Callable[[float], Awaitable[None]] | None = None) -> None:
        self._where = where
        self._reopen = reopen

    async def __call__(self, method: Method[_Request, _Response], request: _Request, timeout_s: float) -> _Response:
        """Call ``method``, for at most ``timeout_s``.

        Raises:
            KvferryError: what the control answered; NotReady when it could not be reached until then.
                :func:`is_outcome_unknown` tells whether it may have acted all the same.
        """
        try:
            return await method(request, timeout=timeout_s)
        except aio.AioRpcError as error:
            return await self._again(method, request, timeout_s, error)

    async def _again(
        self, method: Method[_Request, _Response], request: _Request, timeout_s: float, error: aio.AioRpcError
    ) -> _Response:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        reopen = self._reopen
        unanswered = False
        while True:
            failure = control_error(error, self._where)
            if is_transport_failure(error):
                unanswered = True
            elif failure.reason is Reason.NOT_READY and reopen is not None and deadline > loop.time():
                await reopen(deadline - loop.time())
                reopen = None
            else:
                raise self._final(error, failure, unanswered) from error
            if deadline - loop.time() <= RETRY_PAUSE_S:
                raise self._final(error, failure, unanswered) from error
            # A control that accepts connections and drops them again must not be asked in a tight loop.
            await asyncio.sleep(RETRY_PAUSE_S)
            try:
                return await method(request, timeout=deadline - loop.time(), wait_for_ready=True)
            except aio.AioRpcError as next_error:
                error = next_error

    def _final(self, error: aio.AioRpcError, failure: KvferryError, unanswered: bool) -> KvferryError:
        if unanswered and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not has_details(error):
            failure = NotReady(f"control at {self._where} could not be reached in time")
        if unanswered or (error.code() in _UNANSWERED and not has_details(error)):
            return mark_outcome_unknown(failure)
        return failure
