"""Sums in their wire form, and what a read is to be compared with."""

import numpy as np

from kvferry.core.checksums.comparisons import Comparison, comparisons_of
from kvferry.core.checksums.regions import TokenRanges
from kvferry.core.checksums.shares import EVERY_MAX
from kvferry.core.checksums.sums import GroupSums
from kvferry.core.errors import InvalidArgument
from kvferry.core.planning.tokens import TOKENS_MAX
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry_dataplane.peers import PeerBook
from kvferry_dataplane.spans import ReadPlan

ROWS_MAX = 1 << 20
"""Rows of sums, and ranges, of one layer group."""


def rank_checksums_of(rank: int, groups: dict[str, GroupSums]) -> neg.RankChecksums:
    """What a source rank says."""
    return neg.RankChecksums(
        rank=rank,
        groups=[
            neg.GroupChecksums(
                group=name,
                firsts=sums.ranges.firsts.tolist(),
                counts=sums.ranges.counts.tolist(),
                rows=sums.ranges.rows.tolist(),
                row_count=sums.ranges.row_count,
                sums=sums.sums.astype("<u8", copy=False).tobytes(),
            )
            for name, sums in groups.items()
        ],
    )


def group_sums_of(checksums: neg.GroupChecksums) -> GroupSums:
    """Sums of one layer group, their size checked.

    Raises:
        InvalidArgument: names the field.
    """
    lists = (checksums.firsts, checksums.counts, checksums.rows)
    if checksums.row_count > ROWS_MAX or max(map(len, lists)) > ROWS_MAX:
        raise InvalidArgument.of_field("checksums.row_count", checksums.row_count, f"at most {ROWS_MAX} rows")
    if max([*checksums.firsts, *checksums.counts], default=0) > TOKENS_MAX:
        raise InvalidArgument.of_field("checksums.firsts", checksums.group, f"at most {TOKENS_MAX} tokens")
    if len(checksums.sums) % max(8 * checksums.row_count, 8):
        why = f"must be {checksums.row_count} rows of 8 bytes a cell"
        raise InvalidArgument.of_field("checksums.sums", f"{len(checksums.sums)} bytes", why)
    sums = np.frombuffer(checksums.sums, dtype="<u8").astype(np.uint64)
    firsts, counts, rows = (np.array(listed, dtype=np.int64) for listed in lists)
    width = sums.size // checksums.row_count if checksums.row_count else 0
    return GroupSums(TokenRanges(firsts, counts, rows, checksums.row_count), sums.reshape(checksums.row_count, width))


def comparisons_of_read(read: pb.Read, plan: ReadPlan, peers: PeerBook) -> list[Comparison]:
    """What a read is to be compared with.

    Raises:
        InvalidArgument: a rank's sums are not given, or do not fit the read.
        ChecksumsAbsent: all is to be compared, and the sums are not of all.
    """
    if read.compare_every > EVERY_MAX:
        raise InvalidArgument.of_field("compare_every", read.compare_every, f"must be 0 to {EVERY_MAX}")
    given = {
        peers.get(source.peer).side.rank: {sums.group: sums for sums in source.checksums.groups}
        for source in read.sources
    }
    found: list[Comparison] = []
    for rank in plan.request().sizes:
        for name, blocks in plan.wanted.items():
            held_count = int(plan.held[name].size)
            if not plan.pair.shares(rank, name) or not held_count:
                continue
            if name not in given.get(rank, {}):
                raise InvalidArgument.of_field("sources.checksums", name, f"source rank {rank} has given none")
            sums = group_sums_of(given[rank][name])
            every = read.compare_every
            found += comparisons_of(plan.pair, rank, name, sums, blocks, held_count, plan.tokens, every=every)
    return found
