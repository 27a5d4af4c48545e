"""Leases and reads in their wire form."""

from kvferry.core.errors import KvferryError
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.negotiation.v1.negotiation_pb2 import RankLease
from kvferry.rpc.block_lists import block_list
from kvferry.rpc.reasons import reason_to_wire
from kvferry.rpc.times import duration
from kvferry.transfer.v1 import transfer_pb2
from kvferry_dataplane.desk import EndedRead
from kvferry_dataplane.leases import Lease
from kvferry_dataplane.paths import Path
from kvferry_dataplane.reads.request import SourceShare

PATHS = {
    Path.LOCAL: transfer_pb2.PATH_LOCAL,
    Path.NIXL: transfer_pb2.PATH_NIXL,
    Path.PACKED: transfer_pb2.PATH_PACKED,
    Path.UCX: transfer_pb2.PATH_UCX,
}
"""Wire values of the paths."""


def rank_lease_of(lease: Lease, rank: int) -> RankLease:
    """Where a lease's word is."""
    return RankLease(rank=rank, slot=lease.slot, word=lease.word)


def lease_state_of(lease: Lease, rank: int, now: float) -> pb.LeaseState:
    """A lease as a restarted control is told of it."""
    return pb.LeaseState(
        publication=lease.publication,
        lease=rank_lease_of(lease, rank),
        blocks=[block_list(group, ids) for group, ids in lease.blocks.items()],
        time_left=duration(lease.expires_at - now),
        attributes=lease.attributes,
    )


def refused(error: KvferryError) -> pb.CommandRefused:
    """Why a command was refused."""
    return pb.CommandRefused(reason=reason_to_wire(error.reason), message=error.message, metadata=error.metadata)


def _path_figures(share: SourceShare) -> transfer_pb2.PathFigures:
    return transfer_pb2.PathFigures(
        source_rank=share.source_rank,
        path=PATHS[share.route.path],
        backend=share.route.backend,
        received_bytes=share.received_bytes,
        descriptor_count=share.descriptor_count,
        choice=share.route.choice,
        device_time=duration(share.device_seconds),
    )


def read_finished_of(ended: EndedRead, rank: int) -> pb.ReadFinished:
    """How a read ended."""
    outcome = ended.outcome
    failure = None
    if outcome.failure is not None:
        failure = transfer_pb2.Failure(
            reason=reason_to_wire(outcome.failure.reason), message=outcome.failure.message, rank=rank
        )
    main = outcome.main
    figures = transfer_pb2.RankFigures(
        rank=rank,
        path=transfer_pb2.PATH_UNSPECIFIED if main is None else PATHS[main.path],
        backend="" if main is None else main.backend,
        paths=[_path_figures(share) for share in outcome.shares],
        received_bytes=outcome.received_bytes,
        descriptor_count=outcome.descriptor_count,
        queue_time=duration(outcome.queue_seconds),
        read_time=duration(outcome.read_seconds),
        verify_time=duration(outcome.verify_seconds),
        verified_token_count=ended.verified_tokens,
        compared_bytes=outcome.compared_bytes,
        checksum_time=duration(outcome.checksum_seconds),
    )
    return pb.ReadFinished(transfer=outcome.transfer, failure=failure, figures=figures)
