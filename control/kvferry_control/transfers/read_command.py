"""What a data plane is told to read for a transfer."""

import time

from kvferry.core.path_floor import PathFloor
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry.rpc.times import duration
from kvferry_control.transfers.record import TransferRecord


def read_command(
    record: TransferRecord,
    rank: int,
    sources: list[dp.ReadSource],
    answer: neg.NegotiateResponse,
    span_bytes: int,
    floor: PathFloor,
) -> dp.SessionRequest:
    """The read of a transfer, written where it is sent from: each level of messages would copy the block lists anew."""
    command = dp.SessionRequest()
    read = command.read
    read.transfer = record.id
    read.sources.extend(sources)
    # All ranks of a worker have the same block ids: it is enough that the first names them.
    read.sources[0].blocks.extend(answer.blocks)
    read.destination_blocks.extend(record.blocks.values())
    read.source_worker = record.source_worker
    if record.queue_deadline is None or record.is_served:
        read.time_left.CopyFrom(duration(record.seconds_left))
    else:
        read.time_left.CopyFrom(duration(record.service_s))
        read.queue_time_left.CopyFrom(duration(record.queue_deadline - time.monotonic()))
    read.priority = record.priority
    read.token_count = answer.token_count
    read.first_token = record.first_token_of(rank)
    # What is compared is read whole from one source: its sums are of all that is read.
    read.span_bytes = span_bytes if record.in_spans and not record.compare_every else 0
    read.compare_every = record.compare_every
    read.require_path.extend(floor.require_path)
    return command
