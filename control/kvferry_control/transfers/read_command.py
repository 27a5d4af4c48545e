"""What a data plane is told to read for a transfer."""

import time
from collections.abc import Mapping, Sequence

from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry.rpc.times import put_duration
from kvferry_control.peers.source import Source
from kvferry_control.transfers.record import TransferRecord


def read_command(
    record: TransferRecord,
    rank: int,
    source: Source,
    answer: neg.NegotiateResponse,
    sums: Mapping[int, neg.RankChecksums],
    span_bytes: int,
    require_path: Sequence[str],
) -> dp.SessionRequest:
    """The read of a transfer, written where it is sent from: each level of messages would copy the block lists anew."""
    command = dp.SessionRequest()
    read = command.read
    read.transfer = record.id
    for lease in answer.leases:
        read.sources.add(peer=source.peer(lease.rank), lease=lease, checksums=sums.get(lease.rank))
    # All ranks of a worker have the same block ids: it is enough that the first names them.
    read.sources[0].blocks.extend(answer.blocks)
    read.destination_blocks.extend(record.blocks.values())
    read.source_worker = record.source_worker
    if record.queue_deadline is None or record.is_served:
        put_duration(read.time_left, record.seconds_left)
    else:
        put_duration(read.time_left, record.service_s)
        put_duration(read.queue_time_left, record.queue_deadline - time.monotonic())
    read.priority = record.priority
    read.token_count = answer.token_count
    read.first_token = record.first_token_of(rank)
    # What is compared is read whole from one source: its sums are of all that is read.
    read.span_bytes = span_bytes if record.in_spans and not record.compare_every else 0
    read.compare_every = record.compare_every
    read.require_path.extend(require_path)
    return command
