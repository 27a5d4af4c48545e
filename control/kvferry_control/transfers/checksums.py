"""What a transfer asks its source about checksums."""

import zlib

from kvferry.core.layouts import WorkerLayout
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry_control.transfers.record import TransferRecord


def checksum_scope(layout: WorkerLayout, record: TransferRecord) -> neg.ChecksumScope:
    """The tokens that are read of each layer group; ``layout`` is this worker's, the record's tokens are known."""
    starts = []
    for group in layout.groups:
        first = record.first_token
        if group.window_tokens:
            first = min(max(first, record.token_count - group.window_tokens), record.token_count)
        if first and not group.per_sequence:
            starts.append(neg.GroupStart(group=group.name, first_token=first))
    return neg.ChecksumScope(starts=starts, every=record.compare_every, seed=zlib.crc32(record.id.encode()))
