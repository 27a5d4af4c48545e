"""The sources of a transfer: which a handle names, what another can cure, and what one that was given up brought."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvferry.core.errors import InvalidArgument, PeerError, StaleIncarnation
from kvferry.core.handles import opened
from kvferry.core.reasons import Reason
from kvferry.rpc.reasons import reason_to_wire
from kvferry.rpc.times import duration, seconds_of
from kvferry.transfer.v1 import transfer_pb2 as pb
from kvferry_control.handles import parse_payload
from kvferry_control.records import WorkerRecord
from kvferry_control.transfers.machine import Failure

CURABLE = frozenset(
    {
        Reason.LEASE_ENDED,
        Reason.FENCED,
        Reason.STALE_INCARNATION,
        Reason.CHECKSUM_MISMATCH,
        Reason.CHECKSUMS_ABSENT,
        Reason.RESOURCE_EXHAUSTED,
        Reason.WORKER_UNKNOWN,
        Reason.PEER_UNREACHABLE,
        Reason.PEER_LOST,
        Reason.LAYOUT_INVALID,
        Reason.LAYOUT_MISMATCH,
        Reason.NOT_FOUND,
        Reason.PERMISSION_DENIED,
        Reason.TRANSPORT_FAILED,
        Reason.PROTOCOL_MISMATCH,
        Reason.TRANSPORT_MISMATCH,
        Reason.PATH_REFUSED,
    }
)
"""Failures of a read that another source may not have. The others are the request's or this worker's own, and neither a
cancellation nor a deadline is a reason to go on. Whatever a source itself answers is its own."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A source that can be asked, as its handle says."""

    worker: str
    incarnation: int
    publication: str
    handle: bytes


@dataclass(frozen=True, slots=True)
class Attempt:
    """A source that was given up, and what it had brought by then."""

    source: Candidate
    failure: Failure
    received_bytes: int
    verified_tokens: int
    total_s: float

    def __str__(self) -> str:
        where = f"workers/{self.source.worker} publications/{self.source.publication}"
        return f"{where}: {self.failure.reason}: {self.failure.message}"

    def to_wire(self) -> pb.Attempt:
        """Its wire form."""
        return pb.Attempt(
            source_worker=f"workers/{self.source.worker}",
            source_incarnation=self.source.incarnation,
            publication=f"publications/{self.source.publication}",
            failure=failure_to_wire(self.failure),
            received_bytes=self.received_bytes,
            verified_token_count=self.verified_tokens,
            total_time=duration(self.total_s),
        )


def failure_to_wire(failure: Failure) -> pb.Failure:
    """The wire form of a failure."""
    wire = pb.Failure(reason=reason_to_wire(failure.reason), message=failure.message, rank=failure.rank)
    if failure.retry_after_s is not None:
        wire.retry_delay.CopyFrom(duration(failure.retry_after_s))
    return wire


def candidates_of(handle: bytes) -> list[Candidate]:
    """The sources that a handle names, in its order.

    Raises:
        HandleMalformed: it is no handle, or joined wrongly.
        InvalidArgument: the publications are of different numbers of tokens.
    """
    candidates, token_counts = [], []
    for single, sealed in opened(handle):
        payload = parse_payload(sealed)
        candidates.append(Candidate(payload.worker, payload.incarnation, payload.publication, single))
        token_counts.append(payload.token_count)
    for index, count in enumerate(token_counts):
        if count != token_counts[0]:
            why = f"handles[0] is of {token_counts[0]}"
            raise InvalidArgument.of_field(f"handles[{index}].token_count", count, why)
    return candidates


def live_source(source: Candidate, worker_record: Callable[[str], WorkerRecord | None]) -> WorkerRecord:
    """The worker of a source, as it is in the snapshot.

    Raises:
        PeerError: it is not there.
        StaleIncarnation: it has begun another life since.
    """
    worker = worker_record(source.worker)
    if worker is None:
        raise PeerError.of_field(
            "handle.worker", source.worker, "no live worker of that name", reason=Reason.WORKER_UNKNOWN
        )
    if source.incarnation < worker.incarnation:
        why = f"workers/{source.worker} has since begun incarnation {worker.incarnation}"
        raise StaleIncarnation.of_field("handle.incarnation", source.incarnation, why)
    return worker


def living_first(
    sources: Sequence[Candidate], worker_record: Callable[[str], WorkerRecord | None]
) -> Sequence[Candidate]:
    """The sources, those that are known to be gone at the end; they may be back when it is their turn.

    Raises:
        PeerError, StaleIncarnation: as :func:`live_source`, where there is only one.
    """
    if len(sources) == 1:
        live_source(sources[0], worker_record)
        return sources

    def is_gone(source: Candidate) -> bool:
        worker = worker_record(source.worker)
        return worker is None or source.incarnation < worker.incarnation

    return sorted(sources, key=is_gone)


def figures_since(before: pb.RankFigures | None, figures: pb.RankFigures, attempt: int) -> pb.RankFigures:
    """What a rank has done for a transfer, ``figures`` being what it did for the source numbered ``attempt``."""
    for path in figures.paths:
        path.attempt = attempt
    if before is None:
        return figures
    for name in ("queue_time", "read_time", "verify_time"):
        total = seconds_of(getattr(before, name)) + seconds_of(getattr(figures, name))
        getattr(figures, name).CopyFrom(duration(total))
    if figures.path == pb.PATH_UNSPECIFIED:
        figures.path, figures.backend = before.path, before.backend
    figures.received_bytes += before.received_bytes
    figures.descriptor_count += before.descriptor_count
    figures.verified_token_count = max(figures.verified_token_count, before.verified_token_count)
    figures.paths.MergeFrom(before.paths)
    return figures
