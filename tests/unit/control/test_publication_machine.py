"""A publication's blocks are given back only when no rank's lease word can still be set."""

from hypothesis import given, strategies as st

from kvferry.core.errors import BlockError, DataPlaneLost
from kvferry_control.publications.machine import (
    Event,
    Life,
    RankCleared,
    RankExpired,
    RankGranted,
    RankLost,
    RankRefused,
    Release,
    State,
    advance,
)

RANKS = frozenset({0, 1})
BUSY = BlockError("busy")


def after(*events: Event) -> Life:
    """The life after ``events``."""
    life = Life(waiting=RANKS)
    for event in events:
        life = advance(life, event)
    return life


def test_it_is_live_when_every_rank_granted() -> None:
    """One rank is not enough."""
    assert State.LEASING is after(RankGranted(0)).state
    assert State.LIVE is after(RankGranted(0), RankGranted(1)).state


def test_a_refusal_fails_it_once_the_others_are_cleared() -> None:
    """The rank that granted is asked to clear before the engine is told."""
    life = after(RankGranted(0), RankRefused(1, BUSY))
    assert (State.ENDING, frozenset({0})) == (life.state, life.held)
    life = advance(life, RankCleared(0))
    assert (State.FAILED, BUSY) == (life.state, life.error)


def test_a_grant_that_comes_after_a_refusal_is_cleared_too() -> None:
    """Order does not matter: a late grant is held until it is cleared."""
    life = after(RankRefused(1, BUSY), RankGranted(0))
    assert (State.ENDING, frozenset({0})) == (life.state, life.held)
    assert State.FAILED is advance(life, RankCleared(0)).state


def test_expiry_on_one_rank_ends_all() -> None:
    """A reader needs every rank, so one expired lease ends the publication."""
    life = after(RankGranted(0), RankGranted(1), RankExpired(1))
    assert (State.ENDING, frozenset({0})) == (life.state, life.held)
    assert State.EXPIRED is advance(life, RankCleared(0)).state


def test_release_waits_for_every_rank() -> None:
    """It is not RELEASED while a rank's word may be set."""
    life = after(RankGranted(0), RankGranted(1), Release(), RankCleared(0))
    assert State.ENDING is life.state
    assert State.RELEASED is advance(life, RankCleared(1)).state


EVENTS = st.sampled_from([0, 1]).flatmap(
    lambda rank: st.sampled_from(
        [RankExpired(rank), RankCleared(rank), RankLost(rank, DataPlaneLost("gone")), Release()]
    )
)


@given(st.lists(EVENTS, max_size=10))
def test_no_block_is_given_back_while_a_rank_holds(events: list[Event]) -> None:
    """In every order of events after LIVE, a terminal state means that no rank holds a lease."""
    life = after(RankGranted(0), RankGranted(1))
    gone: set[int] = set()
    for event in events:
        life = advance(life, event)
        if isinstance(event, RankExpired | RankCleared | RankLost):
            gone.add(event.rank)
        assert life.state.terminal == (gone == RANKS)
