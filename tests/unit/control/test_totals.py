"""What the ranks of a transfer have done together."""

import time

from kvferry.rpc.times import duration
from kvferry.transfer.v1 import transfer_pb2 as pb
from kvferry_control.transfers.record import TransferRecord
from kvferry_control.transfers.totals import Totals, totals_of
from tests.unit.control.test_transfer_table import record


def figures(rank: int, received: int, read_s: float) -> pb.RankFigures:
    """Of one rank."""
    return pb.RankFigures(
        rank=rank, received_bytes=received, descriptor_count=2, compared_bytes=1, read_time=duration(read_s)
    )


def test_amounts_are_added_and_times_are_the_slowest_ranks() -> None:
    """Nothing at all is zero everywhere."""
    assert Totals(0, 0, 0, 0.0, 0.0, 0.0, 0.0) == totals_of([])
    assert Totals(30, 4, 2, 0.0, 0.5, 0.0, 0.0) == totals_of([figures(0, 10, 0.5), figures(1, 20, 0.25)])


def test_a_transfer_tells_what_its_ranks_said_last() -> None:
    """Figures that come after the totals were asked for are in the next."""
    made: TransferRecord = record("t")
    made.created_at, made.negotiate_s = 1.5, 0.25
    assert (0, False) == (made.to_wire().received_bytes, made.is_served)
    made.take_figures(1, figures(1, 20, 0.25))
    assert (20, True) == (made.to_wire().received_bytes, made.is_served)
    made.take_figures(0, figures(0, 10, 0.5))
    wire = made.to_wire()
    assert (30, 4, 2, [0, 1]) == (
        wire.received_bytes,
        wire.descriptor_count,
        wire.compared_bytes,
        [rank.rank for rank in wire.ranks],
    )
    assert (duration(0.5), duration(0.25), duration(0)) == (wire.read_time, wire.negotiate_time, wire.queue_time)
    assert (True, False) == (wire.HasField("queue_time"), wire.HasField("end_time"))
    assert time.time() > wire.create_time.ToNanoseconds() / 1e9 == 1.5
