"""The one door through which failures of grpc become errors of this package."""

import grpc

from kvferry_control.etcd.errors import (
    EtcdAnswerTooLarge,
    EtcdAuthFailed,
    EtcdCompacted,
    EtcdError,
    EtcdFutureRevision,
    EtcdLeaseExists,
    EtcdLeaseNotFound,
    EtcdPermissionDenied,
    EtcdRejected,
    EtcdTlsFailed,
    EtcdUnavailable,
)

_BY_MESSAGE: tuple[tuple[str, type[EtcdError]], ...] = (
    ("has been compacted", EtcdCompacted),
    ("is a future revision", EtcdFutureRevision),
    ("message larger than max", EtcdAnswerTooLarge),
    ("requested lease not found", EtcdLeaseNotFound),
    ("lease already exists", EtcdLeaseExists),
    ("permission denied", EtcdPermissionDenied),
    ("invalid auth token", EtcdAuthFailed),
    ("revision of auth store is old", EtcdAuthFailed),
    ("authentication failed", EtcdAuthFailed),
    ("user name is empty", EtcdAuthFailed),
    ("authentication is not enabled", EtcdAuthFailed),
)
"""etcd's codes are coarse (three different conditions share OUT_OF_RANGE), so its words decide first."""

_BY_CODE: dict[grpc.StatusCode, type[EtcdError]] = {
    grpc.StatusCode.UNAVAILABLE: EtcdUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: EtcdUnavailable,
    grpc.StatusCode.CANCELLED: EtcdUnavailable,
    grpc.StatusCode.UNAUTHENTICATED: EtcdAuthFailed,
    grpc.StatusCode.PERMISSION_DENIED: EtcdPermissionDenied,
}

_STALE_TOKEN_MESSAGES = ("invalid auth token", "revision of auth store is old", "user name is empty")

_TLS_MESSAGES = ("handshake", "ssl_error", "certificate")


def error_class(code: grpc.StatusCode, message: str) -> type[EtcdError]:
    """Pick the error for a status that etcd or the transport answered with."""
    for words, error in _BY_MESSAGE:
        if words in message:
            return error
    error = _BY_CODE.get(code, EtcdRejected)
    if error is EtcdUnavailable and any(words in message.lower() for words in _TLS_MESSAGES):
        return EtcdTlsFailed
    return error


def translate(failure: grpc.aio.AioRpcError, *, endpoint: str, key: str) -> EtcdError:
    """Turn a failed call into this package's error; raise the result ``from failure``."""
    message = failure.details() or "no details"
    error = error_class(failure.code(), message)
    return error(f"{failure.code().name}: {message}", endpoint=endpoint, key=key)


def is_stale_token(error: EtcdError) -> bool:
    """True if a fresh token may cure the error: etcd forgets tokens at a restart and after their time to
    live.
    """
    return isinstance(error, EtcdAuthFailed) and any(words in error.detail for words in _STALE_TOKEN_MESSAGES)
