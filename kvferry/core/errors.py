"""Every error that kvferry raises.

The tree is split by who must act::

    KvferryError
    ├── CallerError         the call is wrong; the same call will never succeed
    │   └── InvalidArgument, HandleMalformed, HandleForged, BlockError, RequestIdReused, NotFound, MessageTooLarge
    ├── KvGoneError         the KV is gone; prefill the prompt again
    │   └── LeaseEnded, Fenced, StaleIncarnation
    ├── RetryableError      the same call may succeed later, or on another worker
    │   └── ResourceExhausted, PeerError, DeadlineExceeded, Cancelled, DataPlaneLost, NotReady, Draining;
    │       QueueTimeout is a DeadlineExceeded
    ├── OperatorError       configuration or infrastructure must change
    │   └── LayoutMismatch, WorkerNameTaken, PermissionDenied, ConfigInvalid, PoolTooLarge, AddressInUse,
    │       TransportFailed, ChecksumsAbsent, TransportMismatch, PathRefused
    └── InternalError       a defect of kvferry

Catch a branch to act on it; read ``reason`` to tell leaves apart that share a class.
"""

from collections.abc import Mapping
from typing import ClassVar, Self

from kvferry.core.reasons import Reason

RETRY_AFTER_KEY = "retry_after_ms"
RETRY_AFTER_DIGITS_MAX = 7
VALUE_CHARS_MAX = 200
"""A value quoted in an error is cut to this length, so that no error is larger than a message may be."""


class KvferryError(Exception):
    """Something was refused or failed.

    ``reason`` is stable and meant for branching, ``message`` is for people, ``metadata`` holds the values by name
    (``field`` and ``value`` where one field is at fault).
    """

    default_reason: ClassVar[Reason] = Reason.INTERNAL

    def __init__(
        self, message: str, *, reason: Reason | None = None, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = self.default_reason if reason is None else reason
        self.metadata: dict[str, str] = dict(metadata or {})

    @property
    def retry_after_s(self) -> float | None:
        """After how long the same call may succeed, as far as whoever refused it could tell; None if it did not."""
        text = self.metadata.get(RETRY_AFTER_KEY, "")
        sane = len(text) <= RETRY_AFTER_DIGITS_MAX and text.isascii() and text.isdigit()
        return int(text) / 1e3 if sane else None

    def let_go(self) -> None:
        """Forget traceback and causes: they refer to frames, and those to what was in use, such as an agent that could
        then not be destroyed."""
        self.__traceback__ = self.__cause__ = self.__context__ = None

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.reason, self.metadata))

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    @classmethod
    def of_field(cls, field: str, value: object, why: str, *, reason: Reason | None = None) -> Self:
        """An error about one field; the message names the field, its value and what is wrong with it."""
        shown = cut(value)
        return cls(f"{field}={shown}: {why}", reason=reason, metadata={"field": field, "value": shown})


def cut(value: object) -> str:
    """``value`` as text of at most ``VALUE_CHARS_MAX`` characters."""
    shown = value if isinstance(value, str) else repr(value)
    return shown if len(shown) <= VALUE_CHARS_MAX else f"{shown[: VALUE_CHARS_MAX - 1]}…"


def _rebuild(cls: type[KvferryError], message: str, reason: Reason, metadata: Mapping[str, str]) -> KvferryError:
    return cls(message, reason=reason, metadata=metadata)


class CallerError(KvferryError):
    """The call is wrong; the same call will never succeed."""

    default_reason = Reason.INVALID_ARGUMENT


class InvalidArgument(CallerError):
    """A field of the request is wrong."""


class HandleMalformed(CallerError):
    """The bytes are truncated or no handle."""

    default_reason = Reason.HANDLE_MALFORMED


class HandleForged(CallerError):
    """The handle was not signed by the worker it names."""

    default_reason = Reason.HANDLE_FORGED


class BlockError(CallerError):
    """A block list is wrong: out of range, listed twice, wrong number of blocks, or a block is busy."""

    default_reason = Reason.BLOCK_OUT_OF_RANGE


class RequestIdReused(CallerError):
    """The request id was used before with another body."""

    default_reason = Reason.REQUEST_ID_REUSED


class NotFound(CallerError):
    """No such resource."""

    default_reason = Reason.NOT_FOUND


class LayoutInvalid(CallerError):
    """A layout contradicts itself."""

    default_reason = Reason.LAYOUT_INVALID


class MessageTooLarge(CallerError):
    """A message or list is larger than its bound."""

    default_reason = Reason.MESSAGE_TOO_LARGE


class KvGoneError(KvferryError):
    """The KV is gone; prefill the prompt again."""

    default_reason = Reason.LEASE_ENDED


class LeaseEnded(KvGoneError):
    """The publication had ended before the transfer began."""


class Fenced(KvGoneError):
    """The lease ended while the blocks were read; what arrived must not be used."""

    default_reason = Reason.FENCED


class StaleIncarnation(KvGoneError):
    """The handle names an earlier life of its worker."""

    default_reason = Reason.STALE_INCARNATION


class ChecksumMismatch(KvGoneError):
    """What arrived is not what was published: it changed at the source or on its way, and must not be used."""

    default_reason = Reason.CHECKSUM_MISMATCH


class RetryableError(KvferryError):
    """The same call may succeed later, or on another worker."""

    default_reason = Reason.RESOURCE_EXHAUSTED


class ResourceExhausted(RetryableError):
    """A bound was reached. ``metadata`` names it (``field``) with its ``value``, where it can be configured."""

    @classmethod
    def of_bound(cls, bound: str, limit: int, why: str, retry_after_s: float | None = None) -> Self:
        """An error about one bound; ``retry_after_s`` estimates when there is room again."""
        error = cls.of_field(bound, limit, why)
        if retry_after_s is not None:
            error.metadata[RETRY_AFTER_KEY] = str(round(retry_after_s * 1e3))
        return error


class PeerError(RetryableError):
    """The source worker is unknown, unreachable or was lost."""

    default_reason = Reason.PEER_UNREACHABLE


class DeadlineExceeded(RetryableError):
    """The deadline passed."""

    default_reason = Reason.DEADLINE_EXCEEDED


class QueueTimeout(DeadlineExceeded):
    """The transfer was not served within its queue timeout; nothing was asked of the source's memory."""

    default_reason = Reason.QUEUE_TIMEOUT


class Cancelled(RetryableError):
    """The transfer was cancelled on request."""

    default_reason = Reason.CANCELLED


class DataPlaneLost(RetryableError):
    """A data plane of this worker is gone or does not answer."""

    default_reason = Reason.DATA_PLANE_LOST


class NotReady(RetryableError):
    """The worker takes no work yet, or cannot be reached."""

    default_reason = Reason.NOT_READY


class Draining(RetryableError):
    """The worker is being drained: it takes no new work, another one may."""

    default_reason = Reason.DRAINING


class OperatorError(KvferryError):
    """Configuration or infrastructure must change."""

    default_reason = Reason.CONFIG_INVALID


class LayoutMismatch(OperatorError):
    """The two workers cannot be paired."""

    default_reason = Reason.LAYOUT_MISMATCH


class WorkerNameTaken(OperatorError):
    """Another live worker holds the name."""

    default_reason = Reason.WORKER_NAME_TAKEN


class PermissionDenied(OperatorError):
    """The caller or the process is not allowed to do this."""

    default_reason = Reason.PERMISSION_DENIED


class ConfigInvalid(OperatorError):
    """A configuration value is wrong."""


class PoolTooLarge(OperatorError):
    """The pool does not fit into memory."""

    default_reason = Reason.POOL_TOO_LARGE


class AddressInUse(OperatorError):
    """A TCP port or socket path is in use."""

    default_reason = Reason.ADDRESS_IN_USE


class TransportFailed(OperatorError):
    """The transport refused or failed."""

    default_reason = Reason.TRANSPORT_FAILED


class ChecksumsAbsent(OperatorError):
    """Checksums are to be compared that the source does not make."""

    default_reason = Reason.CHECKSUMS_ABSENT


class TransportMismatch(OperatorError):
    """The two workers' transports do not go together."""

    default_reason = Reason.TRANSPORT_MISMATCH


class PathRefused(OperatorError):
    """The way between the two workers is none that the destination allows, or is too slow for it."""

    default_reason = Reason.PATH_REFUSED


class InternalError(KvferryError):
    """A defect of kvferry."""


_CLASSES: dict[Reason, type[KvferryError]] = {
    Reason.INVALID_ARGUMENT: InvalidArgument,
    Reason.HANDLE_MALFORMED: HandleMalformed,
    Reason.HANDLE_FORGED: HandleForged,
    Reason.BLOCK_OUT_OF_RANGE: BlockError,
    Reason.BLOCK_DUPLICATE: BlockError,
    Reason.BLOCK_COUNT_MISMATCH: BlockError,
    Reason.BLOCK_BUSY: BlockError,
    Reason.REQUEST_ID_REUSED: RequestIdReused,
    Reason.NOT_FOUND: NotFound,
    Reason.LAYOUT_INVALID: LayoutInvalid,
    Reason.MESSAGE_TOO_LARGE: MessageTooLarge,
    Reason.LEASE_ENDED: LeaseEnded,
    Reason.FENCED: Fenced,
    Reason.STALE_INCARNATION: StaleIncarnation,
    Reason.CHECKSUM_MISMATCH: ChecksumMismatch,
    Reason.RESOURCE_EXHAUSTED: ResourceExhausted,
    Reason.WORKER_UNKNOWN: PeerError,
    Reason.PEER_UNREACHABLE: PeerError,
    Reason.PEER_LOST: PeerError,
    Reason.DEADLINE_EXCEEDED: DeadlineExceeded,
    Reason.CANCELLED: Cancelled,
    Reason.DATA_PLANE_LOST: DataPlaneLost,
    Reason.NOT_READY: NotReady,
    Reason.DRAINING: Draining,
    Reason.QUEUE_TIMEOUT: QueueTimeout,
    Reason.LAYOUT_MISMATCH: LayoutMismatch,
    Reason.WORKER_NAME_TAKEN: WorkerNameTaken,
    Reason.PERMISSION_DENIED: PermissionDenied,
    Reason.CONFIG_INVALID: ConfigInvalid,
    Reason.POOL_TOO_LARGE: PoolTooLarge,
    Reason.ADDRESS_IN_USE: AddressInUse,
    Reason.TRANSPORT_FAILED: TransportFailed,
    Reason.PROTOCOL_MISMATCH: OperatorError,
    Reason.CHECKSUMS_ABSENT: ChecksumsAbsent,
    Reason.TRANSPORT_MISMATCH: TransportMismatch,
    Reason.PATH_REFUSED: PathRefused,
    Reason.INTERNAL: InternalError,
}


def error_of(reason: Reason, message: str, metadata: Mapping[str, str] | None = None) -> KvferryError:
    """The exception for a reason that came over the wire."""
    return _CLASSES[reason](message, reason=reason, metadata=metadata)
