"""From wire messages to the values of :mod:`kvferry.sdk.results`. An enum value of a newer server reads as unknown."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from kvferry.publication.v1 import publication_pb2
from kvferry.rpc.layouts import layout_from_wire
from kvferry.rpc.reasons import reason_from_wire
from kvferry.rpc.times import seconds_of
from kvferry.sdk.results import (
    Attempt,
    AttestedRoute,
    Mismatch,
    Pair,
    Path,
    PathFigures,
    Publication,
    PublicationState,
    Rank,
    RankFigures,
    Role,
    TransferResult,
    TransferState,
    Worker,
    WorkerState,
)
from kvferry.transfer.v1 import transfer_pb2
from kvferry.worker.v1 import worker_pb2

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The wire numbers count up from 0 in the order of these enums' members.
_ROLES = dict(enumerate(Role))
_WORKER_STATES = dict(enumerate(WorkerState))
_PUBLICATION_STATES = dict(enumerate(PublicationState))
_TRANSFER_STATES = dict(enumerate(TransferState))
_PATHS = dict(enumerate(Path))
_NO_PATH = Path.NONE.value

TERMINAL_STATES = frozenset(
    {
        transfer_pb2.TRANSFER_STATE_SUCCEEDED,
        transfer_pb2.TRANSFER_STATE_FAILED,
        transfer_pb2.TRANSFER_STATE_CANCELLED,
    }
)
"""Wire values of the final states of a transfer."""


def worker_of(wire: worker_pb2.Worker) -> Worker:
    """A worker.

    Raises:
        LayoutInvalid: its layout has an unknown element type.
    """
    return Worker(
        name=wire.name,
        incarnation=wire.incarnation,
        role=_ROLES.get(wire.role, Role.UNKNOWN),
        state=_WORKER_STATES.get(wire.state, WorkerState.UNKNOWN),
        endpoint=wire.endpoint,
        layout=layout_from_wire(wire.layout) if wire.HasField("layout") else None,
        ranks=tuple(
            Rank(
                rank=r.rank,
                device=r.device,
                pool_bytes=r.pool_bytes,
                method=r.method,
                method_version=r.method_version,
            )
            for r in wire.ranks
        ),
    )


def pair_of(wire: worker_pb2.Pair) -> Pair:
    """A verdict on two workers."""
    return Pair(
        source=wire.source,
        source_incarnation=wire.source_incarnation,
        destination=wire.destination,
        destination_incarnation=wire.destination_incarnation,
        compatible=wire.compatible,
        mismatches=tuple(
            Mismatch(reason=reason_from_wire(m.reason), field=m.field, source=m.source, destination=m.destination)
            for m in wire.mismatches
        ),
        draining=tuple(wire.draining),
        routes=tuple(map(attested_route_of, wire.routes)),
        attestation_refusal=wire.attestation_refusal,
        warnings=tuple(wire.warnings),
    )


def attested_route_of(wire: worker_pb2.AttestedRoute) -> AttestedRoute:
    return AttestedRoute(
        path=_PATHS.get(wire.path, Path.NONE),
        backend=wire.backend,
        transport=wire.transport,
        device=wire.device,
        gbytes_per_s=wire.gbytes_per_s,
        small_gbytes_per_s=wire.small_gbytes_per_s,
        latency_s=seconds_of(wire.latency),
        degraded=wire.degraded,
        best_gbytes_per_s=wire.best_gbytes_per_s,
        rank_pair_count=wire.rank_pair_count,
        note=wire.note,
    )


def publication_of(wire: publication_pb2.Publication, handle: bytes = b"") -> Publication:
    """A publication; the handle does not travel with it."""
    return Publication(
        name=wire.name,
        state=_PUBLICATION_STATES.get(wire.state, PublicationState.UNKNOWN),
        token_count=wire.token_count,
        block_count=wire.block_count,
        expected_reader_count=wire.expected_reader_count,
        finished_reader_count=wire.finished_reader_count,
        active_reader_count=wire.active_reader_count,
        create_time=_time_of(wire.create_time) if wire.HasField("create_time") else None,
        time_left_s=seconds_of(wire.time_left),
        handle=handle,
    )


def transfer_of(wire: transfer_pb2.Transfer) -> TransferResult:
    """A transfer as it stands."""
    failure = wire.failure if wire.HasField("failure") else None
    ranks = tuple(map(_figures_of, wire.ranks))
    return TransferResult(
        name=wire.name,
        request_id=wire.request_id,
        state=_TRANSFER_STATES.get(wire.state, TransferState.UNKNOWN),
        destination_settled=wire.destination_settled,
        reason=reason_from_wire(failure.reason) if failure is not None else None,
        message=failure.message if failure is not None else "",
        retry_after_s=_retry_after_s(failure) if failure is not None else None,
        failed_rank=failure.rank if failure is not None and failure.HasField("rank") else None,
        path=_joined({rank.path for rank in ranks} - {Path.NONE}) or _NO_PATH,
        backend=_joined({rank.backend for rank in ranks} - {""}),
        received_bytes=wire.received_bytes,
        descriptor_count=wire.descriptor_count,
        negotiate_s=seconds_of(wire.negotiate_time),
        queue_s=seconds_of(wire.queue_time),
        read_s=seconds_of(wire.read_time),
        verify_s=seconds_of(wire.verify_time),
        total_s=seconds_of(wire.total_time),
        token_count=wire.token_count,
        source_worker=wire.source_worker,
        source_incarnation=wire.source_incarnation,
        publication=wire.publication,
        destination_worker=wire.destination_worker,
        destination_incarnation=wire.destination_incarnation,
        priority=wire.priority,
        create_time=_time_of(wire.create_time) if wire.HasField("create_time") else None,
        end_time=_time_of(wire.end_time) if wire.HasField("end_time") else None,
        revision=wire.revision,
        ranks=ranks,
        compared_bytes=wire.compared_bytes,
        checksum_s=seconds_of(wire.checksum_time),
        verified_tokens=wire.verified_token_count,
        attempts=tuple(map(_attempt_of, wire.attempts)),
    )


def _attempt_of(wire: transfer_pb2.Attempt) -> Attempt:
    return Attempt(
        source_worker=wire.source_worker,
        source_incarnation=wire.source_incarnation,
        publication=wire.publication,
        reason=reason_from_wire(wire.failure.reason),
        message=wire.failure.message,
        received_bytes=wire.received_bytes,
        verified_tokens=wire.verified_token_count,
        total_s=seconds_of(wire.total_time),
    )


def _retry_after_s(failure: transfer_pb2.Failure) -> float | None:
    return seconds_of(failure.retry_delay) if failure.HasField("retry_delay") else None


def _figures_of(wire: transfer_pb2.RankFigures) -> RankFigures:
    return RankFigures(
        rank=wire.rank,
        path=_PATHS.get(wire.path, Path.NONE),
        backend=wire.backend,
        received_bytes=wire.received_bytes,
        descriptor_count=wire.descriptor_count,
        queue_s=seconds_of(wire.queue_time),
        read_s=seconds_of(wire.read_time),
        verify_s=seconds_of(wire.verify_time),
        compared_bytes=wire.compared_bytes,
        checksum_s=seconds_of(wire.checksum_time),
        paths=tuple(map(_path_figures_of, wire.paths)),
        verified_tokens=wire.verified_token_count,
    )


def _path_figures_of(wire: transfer_pb2.PathFigures) -> PathFigures:
    return PathFigures(
        source_rank=wire.source_rank,
        path=_PATHS.get(wire.path, Path.NONE),
        backend=wire.backend,
        received_bytes=wire.received_bytes,
        descriptor_count=wire.descriptor_count,
        choice=wire.choice,
        device_s=seconds_of(wire.device_time),
        attempt=wire.attempt,
    )


def _joined(names: Iterable[str]) -> str:
    return "+".join(sorted(names))


def _time_of(stamp: Timestamp) -> datetime:
    return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1_000)
