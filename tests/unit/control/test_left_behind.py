"""Reads that a data plane has and no transfer answers for: nobody's blocks are settled before they have ended."""

from unittest.mock import Mock

from kvferry.core.errors import LeaseEnded
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry_control.config import LimitsSection
from kvferry_control.transfers.machine import SettleTimedOut, State
from tests.unit.control.one_rank import Bench, state_of

EARLIER = "of-an-earlier-control"


def over(transfer: str) -> dp.ReadFinished:
    """A data plane says that a read has ended."""
    return dp.ReadFinished(transfer=transfer)


def beside(*reads: str) -> Bench:
    """A destination that has found reads at its data plane, and is told nothing unasked."""
    bench = Bench(told=False)
    bench.transfers.link_up(bench.link, reads)
    return bench


async def test_what_ends_beside_them_is_unsettled_until_they_have_ended() -> None:
    """A pull that was cancelled before it had a read may be of the blocks that an earlier life of it reads into."""
    bench = beside(EARLIER, "another")
    record = bench.pull()
    bench.transfers.cancel(record)
    assert (State.CANCELLED, False) == (state_of(record), record.to_wire().destination_settled)
    bench.transfers.read_finished(0, over(EARLIER))
    assert not record.to_wire().destination_settled
    bench.transfers.read_finished(0, over("another"))
    assert record.to_wire().destination_settled
    assert record.revision == bench.transfers.table.revision


async def test_they_are_cancelled_and_reads_wait_for_them() -> None:
    """Otherwise a pull that comes again would find its own blocks taken."""
    bench = beside(EARLIER)
    assert EARLIER == bench.link.post.call_args.args[0].cancel_read.transfer
    record = bench.pull()
    bench.answer()
    assert ([], State.NEGOTIATING) == (bench.reads, state_of(record))
    bench.transfers.read_finished(0, over(EARLIER))
    assert [record.id] == [read.transfer for read in bench.reads]
    bench.finish(record)
    assert (State.SUCCEEDED, True) == (state_of(record), record.life.settled)


async def test_a_read_that_was_held_is_not_sent_in_vain() -> None:
    """Its transfer may have ended in the meantime, or gone on to another source."""
    bench = beside(EARLIER)
    record = bench.pull()
    bench.answer()
    bench.transfers.cancel(record)
    bench.transfers.read_finished(0, over(EARLIER))
    assert [] == bench.reads


async def test_a_data_plane_that_is_gone_meanwhile_fails_the_held_read() -> None:
    """As it fails any other."""
    bench = beside(EARLIER)
    record = bench.pull()
    bench.answer()
    bench.link.up = False
    bench.transfers.read_finished(0, over(EARLIER))
    assert record.life.failure is not None
    assert (State.FAILED, Reason.DATA_PLANE_LOST) == (state_of(record), record.life.failure.reason)


async def test_a_defect_in_one_held_read_leaves_the_others() -> None:
    """Each is sent for itself."""
    bench = beside(EARLIER)
    first, second = bench.pull("first"), bench.pull("second")
    bench.answer()
    bench.answer()

    def post(request: dp.SessionRequest) -> None:
        if request.read.transfer == first.id:
            raise ZeroDivisionError

    bench.link.post = Mock(side_effect=post)
    bench.transfers.read_finished(0, over(EARLIER))
    assert first.life.failure is not None
    assert (Reason.INTERNAL, State.READING) == (first.life.failure.reason, state_of(second))


async def test_nothing_is_read_early_beside_them() -> None:
    """What the source has told does not change whose blocks those are."""
    bench = Bench()
    bench.transfers.link_up(bench.link, [EARLIER])
    record = bench.pull()
    assert ([], False) == (bench.reads, record.is_early)


async def test_another_session_tells_anew_which_are_left() -> None:
    """A data plane that has begun another life has none."""
    bench = beside(EARLIER)
    record = bench.pull()
    bench.answer(LeaseEnded("gone"))
    assert (State.FAILED, False) == (state_of(record), record.life.settled)
    bench.transfers.link_up(bench.link, [])
    assert record.life.settled


async def test_the_deadline_says_what_was_waited_for() -> None:
    """Neither the source nor the data plane of this pull was slow."""
    bench = beside(EARLIER)
    record = bench.pull()
    bench.answer()
    bench.transfers._deadline_passed(record)
    assert record.life.failure is not None
    assert "reads of an earlier control had not ended on ranks [0]" in record.life.failure.message


async def test_a_transfer_that_is_forgotten_unsettled_leaves_its_read_behind() -> None:
    """The table is bounded; that a byte may still arrive is not forgotten with it."""
    bench = Bench(told=False, limits=LimitsSection(kept_transfers=1))
    first = bench.pull()
    bench.answer()
    bench.transfers.cancel(first)
    bench.transfers.apply(first, SettleTimedOut())
    assert not first.life.settled
    second = bench.pull("second")
    bench.transfers.cancel(second)
    assert second.life.settled
    assert bench.transfers.table.find(first.id) is None
    third = bench.pull("third")
    bench.transfers.cancel(third)
    assert not third.life.settled
    bench.transfers.read_finished(0, over(first.id))
    assert third.life.settled
