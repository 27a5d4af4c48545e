"""The transfer machine reaches a terminal state whatever comes, and never calls a partial transfer a success."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from kvferry.core.reasons import Reason
from kvferry_control.transfers.machine import (
    Ended,
    Event,
    Failure,
    IllegalEvent,
    Life,
    Negotiated,
    RankFailed,
    RankLost,
    RankSucceeded,
    SettleTimedOut,
    State,
    advance,
    confirmed,
    undisturbed,
)

RANKS = frozenset({0, 1, 2})
FENCED = Failure(Reason.FENCED, "fenced", 1)
CANCEL = Failure(Reason.CANCELLED, "cancelled")
DEADLINE = Failure(Reason.DEADLINE_EXCEEDED, "late")
LOST = Failure(Reason.DATA_PLANE_LOST, "lost", 1)


def after(*events: Event) -> Life:
    """The life after ``events``."""
    life = Life()
    for event in events:
        life = advance(life, event)
    return life


def test_all_ranks_make_a_success() -> None:
    """A transfer succeeds with its last rank, not before."""
    some = after(Negotiated(RANKS), RankSucceeded(0), RankSucceeded(2))
    assert State.READING is some.state
    assert State.SUCCEEDED is advance(some, RankSucceeded(1)).state


def test_one_failed_rank_fails_the_transfer_after_the_others_confirmed() -> None:
    """The blocks are not given back while another rank still writes."""
    life = after(Negotiated(RANKS), RankSucceeded(0), RankFailed(1, FENCED))
    assert State.SETTLING is life.state
    life = advance(life, RankSucceeded(2))
    assert (State.FAILED, FENCED, True) == (life.state, life.failure, life.settled)


def test_the_first_failure_decides() -> None:
    """A cancellation that comes after a failure does not hide it."""
    life = after(Negotiated(RANKS), RankFailed(1, FENCED), Ended(CANCEL), RankFailed(0, CANCEL), RankFailed(2, CANCEL))
    assert (State.FAILED, FENCED) == (life.state, life.failure)


def test_a_cancellation_while_negotiating_is_at_once() -> None:
    """No rank has a read yet, so nothing has to be waited for."""
    assert State.CANCELLED is after(Ended(CANCEL)).state


def test_a_rank_that_never_confirms_leaves_the_blocks_unsettled() -> None:
    """The bound ends the transfer, and says that the blocks are not safe."""
    life = after(Negotiated(RANKS), Ended(DEADLINE), RankFailed(0, DEADLINE), SettleTimedOut())
    assert (State.FAILED, DEADLINE, False) == (life.state, life.failure, life.settled)


def test_a_lost_data_plane_leaves_the_blocks_unsettled() -> None:
    """Nobody can confirm for a data plane that is gone."""
    life = after(Negotiated(RANKS), RankSucceeded(0), RankSucceeded(2), RankLost(1, LOST))
    assert (State.FAILED, LOST, False) == (life.state, life.failure, life.settled)


def test_late_confirmations_settle_what_ended_without_them() -> None:
    """Once every rank that had not confirmed has done so, the blocks are safe; nothing else changes."""
    ended = after(Negotiated(RANKS), RankLost(1, LOST), RankFailed(0, LOST), SettleTimedOut())
    assert (frozenset({1, 2}), False) == (ended.unsettled, ended.settled)
    first = confirmed(ended, 1)
    assert not first.settled
    assert first is confirmed(first, 0)
    assert replace(ended, unsettled=frozenset()) == confirmed(first, 2)


def test_reads_that_nobody_answers_for_leave_every_end_unsettled() -> None:
    """Also one that no rank had a read of; once they have ended the blocks are safe."""
    life = advance(Life(disturbed=frozenset({0, 1})), Ended(CANCEL))
    assert (State.CANCELLED, False) == (life.state, life.settled)
    first = undisturbed(life, 0)
    assert not first.settled
    assert first is undisturbed(first, 0)
    assert replace(life, disturbed=frozenset()) == undisturbed(first, 1)
    assert undisturbed(first, 1).settled


def test_events_before_negotiation_that_cannot_be_are_refused() -> None:
    """A rank cannot finish what it was never given."""
    with pytest.raises(IllegalEvent):
        after(RankSucceeded(0))


RANK_EVENTS = st.sampled_from(sorted(RANKS)).flatmap(
    lambda rank: st.sampled_from(
        [RankSucceeded(rank), RankFailed(rank, FENCED), RankLost(rank, LOST)],
    )
)
ANY_EVENT = st.one_of(RANK_EVENTS, st.sampled_from([Ended(CANCEL), Ended(DEADLINE)]))


@given(st.lists(ANY_EVENT, max_size=12))
def test_invariants_hold_in_every_order(events: list[Event]) -> None:
    """Success means that every rank succeeded; after an end and the bound, every transfer is terminal."""
    life = after(Negotiated(RANKS))
    succeeded: set[int] = set()
    for event in events:
        if life.state.terminal:
            break
        if isinstance(event, RankSucceeded) and event.rank in life.pending:
            succeeded.add(event.rank)
        life = advance(life, event)
    if life.state is State.SUCCEEDED:
        assert succeeded == RANKS
        assert life.settled
    if not life.state.terminal:
        life = advance(advance(life, Ended(DEADLINE)), SettleTimedOut())
    assert life.state.terminal
    assert not life.pending
    assert (life.failure is None) == (life.state is State.SUCCEEDED)
    assert life == advance(life, Ended(CANCEL))


def test_the_steps_of_a_transfer_that_succeeds_leave_the_rest_as_it_was() -> None:
    """What earlier sources have left behind stays."""
    before = Life(sources_left=2, given_up=(FENCED,), done=frozenset({0}), unsettled=frozenset({9}))
    reading = advance(before, Negotiated(RANKS))
    assert replace(before, state=State.READING, pending=frozenset({1, 2}), ranks=RANKS) == reading
    one_left = advance(reading, RankSucceeded(1))
    assert replace(reading, pending=frozenset({2}), done=frozenset({0, 1})) == one_left
    assert one_left == advance(one_left, RankSucceeded(1))
    ended = advance(one_left, RankSucceeded(2))
    assert replace(one_left, state=State.SUCCEEDED, pending=frozenset(), done=RANKS) == ended
