"""A transfer with several sources goes on with the next, and only once no byte of the last can still arrive."""

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
    SourceFailed,
    State,
    advance,
)

RANKS = frozenset({0, 1, 2})
GONE = Failure(Reason.PEER_LOST, "gone", 1)
SLOW = Failure(Reason.DEADLINE_EXCEEDED, "had its share")
CANCEL = Failure(Reason.CANCELLED, "cancelled")
OWN = Failure(Reason.INTERNAL, "own", 0)
LOST = Failure(Reason.DATA_PLANE_LOST, "lost", 1)


def after(*events: Event, sources_left: int = 1) -> Life:
    """The life of a transfer with so many sources to go on with, after ``events``."""
    life = Life(sources_left=sources_left)
    for event in events:
        life = advance(life, event)
    return life


def test_a_source_that_refuses_is_followed_by_the_next() -> None:
    """While a source is left, a refusal is no failure of the transfer; without one it is."""
    life = after(SourceFailed(GONE))
    assert (State.NEGOTIATING, (GONE,), None) == (life.state, life.given_up, life.failure)
    assert (State.FAILED, SLOW) == (advance(life, SourceFailed(SLOW)).state, advance(life, SourceFailed(SLOW)).failure)


REFUSED = Failure(Reason.HANDLE_FORGED, "forged")
ENDED = Failure(Reason.LEASE_ENDED, "ended")
BUSY = Failure(Reason.RESOURCE_EXHAUSTED, "full", 1, retry_after_s=2.0)
MISFIT = Failure(Reason.LAYOUT_MISMATCH, "other heads")


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ((BUSY, ENDED), Reason.RESOURCE_EXHAUSTED),
        ((ENDED, REFUSED, MISFIT), Reason.LEASE_ENDED),
        ((ENDED, GONE, REFUSED), Reason.PEER_LOST),
        ((REFUSED, MISFIT), Reason.HANDLE_FORGED),
        ((BUSY, GONE), Reason.PEER_LOST),
        ((MISFIT, ENDED, BUSY), Reason.RESOURCE_EXHAUSTED),
    ],
)
def test_when_all_sources_fail_the_caller_can_act(failures: tuple[Failure, ...], reason: Reason) -> None:
    """What can be tried again decides, then what can be prefilled again, then the call's own fault, of equals the last;
    the message is of the last source, with its reason where that does not decide."""
    refused = after(*map(SourceFailed, failures), sources_left=len(failures) - 1)
    reads = [
        event for failure in failures for event in (Negotiated(frozenset({1})), RankFailed(1, failure, curable=True))
    ]
    for life in (refused, after(*reads, sources_left=len(failures) - 1)):
        assert (State.FAILED, True) == (life.state, life.settled)
        assert life.failure is not None
        last = failures[-1]
        decides = next(failure for failure in reversed(failures) if failure.reason is reason)
        assert (reason, decides.retry_after_s) == (life.failure.reason, life.failure.retry_after_s)
        assert (last.message if decides is last else f"{last.reason}: {last.message}") == life.failure.message


@pytest.mark.parametrize("event", [Ended(CANCEL), Ended(REFUSED), RankFailed(1, REFUSED)])
def test_what_no_source_has_brought_about_stands(event: Event) -> None:
    """A cancellation, a fault of the request and one of the destination decide, whatever sources were given up."""
    life = advance(after(SourceFailed(BUSY), Negotiated(frozenset({1}))), event)
    assert event.failure is life.failure  # type: ignore[union-attr]


def test_the_next_source_waits_for_every_rank() -> None:
    """No source is asked while a read from the one before can still write."""
    life = after(Negotiated(RANKS), RankSucceeded(0), RankFailed(1, GONE, curable=True))
    assert (State.SWITCHING, frozenset({2})) == (life.state, life.pending)
    with pytest.raises(IllegalEvent):
        advance(life, Negotiated(RANKS))
    life = advance(life, RankFailed(2, CANCEL))
    assert (State.NEGOTIATING, None) == (life.state, life.failure)


def test_a_rank_that_succeeded_reads_no_more() -> None:
    """Only what is missing is asked of the next source."""
    life = after(Negotiated(RANKS), RankSucceeded(0), RankFailed(1, GONE, curable=True), RankSucceeded(2))
    life = advance(life, Negotiated(RANKS))
    assert frozenset({1}) == life.pending
    assert State.SUCCEEDED is advance(life, RankSucceeded(1)).state


def test_a_source_that_was_given_up_too_early_is_a_success() -> None:
    """If every rank succeeds while its source is being left, nobody else is asked."""
    life = after(Negotiated(RANKS), RankSucceeded(0), RankSucceeded(1), SourceFailed(SLOW), RankSucceeded(2))
    assert (State.SUCCEEDED, None, True) == (life.state, life.failure, life.settled)


def test_what_another_source_cannot_cure_ends_the_transfer() -> None:
    """A failure of the destination's own, or a lost rank, is no reason to go on."""
    assert State.SETTLING is after(Negotiated(RANKS), RankFailed(0, OWN)).state
    life = after(Negotiated(RANKS), SourceFailed(SLOW), RankFailed(0, CANCEL), RankLost(1, LOST), RankFailed(2, CANCEL))
    assert (State.FAILED, LOST, False) == (life.state, life.failure, life.settled)


def test_a_cancellation_while_switching_ends_the_transfer() -> None:
    """It waits for the ranks of the source that is being left, and no further source is asked."""
    life = after(Negotiated(RANKS), SourceFailed(SLOW), Ended(CANCEL))
    assert State.SETTLING is life.state
    for rank in RANKS:
        life = advance(life, RankFailed(rank, GONE, curable=True))
    assert (State.CANCELLED, True) == (life.state, life.settled)


def test_a_failure_after_the_decision_changes_no_source() -> None:
    """A curable failure that comes while a transfer settles for another reason does not revive it."""
    life = after(Negotiated(RANKS), Ended(CANCEL), RankFailed(0, GONE, curable=True))
    assert (State.SETTLING, (), 1) == (life.state, life.given_up, life.sources_left)


EVENTS = st.one_of(
    st.sampled_from(sorted(RANKS)).flatmap(
        lambda rank: st.sampled_from(
            [
                RankSucceeded(rank),
                RankFailed(rank, GONE, curable=True),
                RankFailed(rank, OWN),
                RankLost(rank, LOST),
            ]
        )
    ),
    st.sampled_from([SourceFailed(SLOW), SourceFailed(GONE), Ended(CANCEL), Negotiated(RANKS)]),
)


@given(st.lists(EVENTS, max_size=40), st.integers(0, 4))
def test_invariants_hold_in_every_order(events: list[Event], sources: int) -> None:
    """A rank reads from one source at a time and never again once it has succeeded; success means that each did; no
    more sources are asked than there are; and there is always an end."""
    life = Life(sources_left=sources)
    succeeded: set[int] = set()
    asked = 0
    for event in events:
        if isinstance(event, RankSucceeded | RankFailed | RankLost) and event.rank not in life.pending:
            continue
        if isinstance(event, Negotiated) and life.state is not State.NEGOTIATING:
            continue
        before, life = life, advance(life, event)
        if isinstance(event, RankSucceeded):
            succeeded.add(event.rank)
        if before.state is State.NEGOTIATING and life.state is State.READING:
            asked += 1
            assert not before.pending
            assert not life.pending & succeeded
    assert asked <= sources + 1
    assert len(life.given_up) + life.sources_left == sources
    if life.state is State.SUCCEEDED:
        assert RANKS == succeeded
        assert life.settled
    if not life.state.terminal:
        life = advance(life, Ended(SLOW))
        life = life if life.state.terminal else advance(life, SettleTimedOut())
    assert life.state.terminal
    assert not life.pending
    assert (life.failure is None) == (life.state is State.SUCCEEDED)
