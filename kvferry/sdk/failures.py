"""What a pull raises: the typed error, with what is known of the transfer and of its destination blocks."""

from collections.abc import Mapping
from functools import cache
from typing import cast

from kvferry.core.errors import RETRY_AFTER_KEY, KvferryError, error_of
from kvferry.core.reasons import Reason
from kvferry.sdk.results import TransferResult, TransferState


class PullFailed(KvferryError):
    """A pull that did not succeed.

    What is raised is always also the class of its reason: ``except Fenced``, ``except KvGoneError`` and
    ``except PullFailed`` all catch a fenced pull.
    """

    transfer: TransferResult | None = None
    """The transfer as last heard of; None when control refused to make one."""
    destination_settled: bool = True
    """Whether no byte can still arrive in the destination blocks. False: keep them out of use."""

    def __reduce__(self) -> tuple[object, ...]:
        settled = self.destination_settled
        return _rebuild, (self.reason, self.message, self.metadata, self.transfer, settled)


def pull_failed(
    error: KvferryError, transfer: TransferResult | None = None, *, settled: bool | None = None
) -> PullFailed:
    """``error`` as a failed pull; ``settled`` defaults to what ``transfer`` says, and to True without one."""
    if settled is None:
        settled = transfer is None or transfer.destination_settled
    return _rebuild(error.reason, error.message, error.metadata, transfer, settled)


def failure_of(transfer: TransferResult) -> PullFailed:
    """The error that a terminal transfer stands for which did not succeed."""
    metadata = {"transfer": transfer.name}
    if transfer.failed_rank is not None:
        metadata["rank"] = str(transfer.failed_rank)
    if transfer.retry_after_s is not None:
        metadata[RETRY_AFTER_KEY] = str(round(transfer.retry_after_s * 1e3))
    unsaid = Reason.CANCELLED if transfer.state is TransferState.CANCELLED else Reason.INTERNAL
    reason = transfer.reason or unsaid
    return pull_failed(error_of(reason, transfer.message or f"{transfer.name} {transfer.state}", metadata), transfer)


def destination_settled(error: BaseException) -> bool:
    """Whether the destination blocks of a pull that raised ``error`` may be used again.

    Holds for everything a pull raises: refusals come before any byte moves, and a CancelledError carries the failed
    pull as its cause.
    """
    failed = failed_pull(error)
    return failed is None or failed.destination_settled


def failed_pull(error: BaseException) -> PullFailed | None:
    """The failed pull that ``error`` is, or comes of; None: no byte has moved, or all had arrived."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, PullFailed):
        seen = seen.__cause__
    return seen


@cache
def _pull_class(reason: Reason) -> type[PullFailed]:
    """The class of the reason that is also a PullFailed, under the same name."""
    base = type(error_of(reason, ""))
    body = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return cast("type[PullFailed]", type(base.__name__, (PullFailed, base), body))


def _rebuild(
    reason: Reason,
    message: str,
    metadata: Mapping[str, str],
    transfer: TransferResult | None,
    settled: bool,
) -> PullFailed:
    error = _pull_class(reason)(message, reason=reason, metadata=metadata)
    error.transfer = transfer
    error.destination_settled = settled
    return error
