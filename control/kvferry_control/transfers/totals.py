"""What all ranks of a transfer have done together."""

from collections.abc import Iterable
from dataclasses import dataclass

from kvferry.rpc.times import seconds_of
from kvferry.transfer.v1 import transfer_pb2 as pb


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the ranks, and seconds of the slowest rank in each stage."""

    received_bytes: int
    descriptor_count: int
    compared_bytes: int
    queue_s: float
    read_s: float
    verify_s: float
    checksum_s: float


def totals_of(ranks: Iterable[pb.RankFigures]) -> Totals:
    """The totals of some ranks' figures."""
    received = descriptors = compared = 0
    queue_s = read_s = verify_s = checksum_s = 0.0
    for figures in ranks:
        received += figures.received_bytes
        descriptors += figures.descriptor_count
        compared += figures.compared_bytes
        queue_s = max(queue_s, seconds_of(figures.queue_time))
        read_s = max(read_s, seconds_of(figures.read_time))
        verify_s = max(verify_s, seconds_of(figures.verify_time))
        checksum_s = max(checksum_s, seconds_of(figures.checksum_time))
    return Totals(received, descriptors, compared, queue_s, read_s, verify_s, checksum_s)
