"""Reads that are sent by what a source has told, while it is being asked."""

import asyncio
import time
from collections.abc import Callable

import pytest

from kvferry.core.errors import LeaseEnded
from kvferry.core.reasons import Reason
from kvferry_control.transfers.machine import Failure, State
from tests.unit.control.one_rank import Bench, state_of


async def test_the_read_is_sent_before_the_answer() -> None:
    """It is of what was told; the answer changes nothing, and the transfer succeeds with the read."""
    bench = Bench()
    record = bench.pull()
    (read,) = bench.reads
    assert ([5], [2], 9) == (
        list(read.sources[0].blocks[0].block_ids),
        list(read.destination_blocks[0].block_ids),
        read.sources[0].lease.word,
    )
    assert State.READING is state_of(record)
    bench.answer()
    assert 1 == len(bench.reads)
    bench.finish(record)
    assert State.SUCCEEDED is state_of(record)
    assert 1 == bench.metrics.early_reads._value.get()


async def test_a_read_that_is_over_first_is_a_success() -> None:
    """Its lease words have held: nobody waits for the answer any more."""
    bench = Bench()
    record = bench.pull()
    bench.finish(record)
    assert State.SUCCEEDED is state_of(record)
    assert 1 == bench.taken_back


async def test_why_it_failed_the_source_knows_better() -> None:
    """A read that failed first waits for the answer; a refusal is the reason."""
    bench = Bench()
    record = bench.pull()
    bench.finish(record, Reason.FENCED)
    assert State.READING is state_of(record)
    bench.answer(LeaseEnded("it has ended"))
    assert (State.FAILED, True) == (state_of(record), record.life.settled)
    assert record.life.failure is not None
    assert Reason.LEASE_ENDED is record.life.failure.reason


async def test_a_failure_is_told_where_the_source_does_not_refuse() -> None:
    """The answer comes, and the read's own reason stands."""
    bench = Bench()
    record = bench.pull()
    bench.finish(record, Reason.FENCED)
    bench.answer()
    assert record.life.failure is not None
    assert (State.FAILED, Reason.FENCED) == (state_of(record), record.life.failure.reason)


async def test_a_refusal_ends_the_read() -> None:
    """What the source refuses is cancelled, and the transfer ends once that is confirmed."""
    bench = Bench()
    record = bench.pull()
    bench.answer(LeaseEnded("it has ended"))
    assert State.SETTLING is state_of(record)
    assert record.id == bench.link.post.call_args.args[0].cancel_read.transfer
    bench.finish(record, Reason.CANCELLED)
    assert record.life.failure is not None
    assert (State.FAILED, Reason.LEASE_ENDED) == (state_of(record), record.life.failure.reason)


async def test_a_failure_that_waits_is_a_confirmation_all_the_same() -> None:
    """A transfer that is cancelled meanwhile knows at once that no byte can still arrive."""
    bench = Bench()
    record = bench.pull()
    bench.finish(record, Reason.FENCED)
    bench.transfers.cancel(record)
    await asyncio.sleep(0)
    assert (State.CANCELLED, True) == (state_of(record), record.life.settled)


async def test_nothing_is_held_once_the_end_is_decided() -> None:
    """After a cancellation the data plane's confirmation counts when it comes."""
    bench = Bench()
    record = bench.pull()
    bench.transfers.cancel(record)
    bench.finish(record, Reason.CANCELLED)
    assert (State.CANCELLED, True) == (state_of(record), record.life.settled)


def untold(bench: Bench) -> None:
    """The source has told nothing."""
    bench.told = False


def unknown_there(bench: Bench) -> None:
    """The data plane was not told about the source."""
    bench.source.connected = set()


def down(bench: Bench) -> None:
    """The data plane has no session for the moment."""
    bench.link.up = False


@pytest.mark.parametrize("change", [untold, unknown_there, down])
async def test_else_the_answer_is_waited_for(change: Callable[[Bench], None]) -> None:
    """Where not all is known, nothing is read before the source has answered."""
    bench = Bench()
    change(bench)
    record = bench.pull()
    assert not bench.reads
    assert State.NEGOTIATING is state_of(record)
    bench.link.up = True
    bench.answer()
    assert 1 == len(bench.reads)
    bench.finish(record, Reason.FENCED)
    assert State.FAILED is state_of(record)


async def test_what_is_compared_is_asked_for_first() -> None:
    """The sums of what is read come before the read."""
    bench = Bench()
    record = bench.pull(compare_every=1)
    assert not bench.reads
    assert State.NEGOTIATING is state_of(record)
    bench.transfers.end_all(Failure(Reason.CANCELLED, "the test is over"))
    assert record.life.state.terminal
    assert time.monotonic() < record.deadline
