"""The life of a publication: one table, and everything that affects its state.

::

    LEASING ──last RankGranted──► LIVE ──Release, RankExpired, RankLost──► ENDING ──last RankCleared──► RELEASED
       │                                                                      ▲                         or EXPIRED
       └──RankRefused, Release, RankLost──────────────────────────────────────┘                         or FAILED

The blocks are the engine's again only in a terminal state, when every rank has cleared its lease word (or is gone, and
its memory with it).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from kvferry.core.errors import KvferryError


class State(Enum):
    """Where a publication stands; the names are the wire contract's."""

    LEASING = "LEASING"
    LIVE = "LIVE"
    ENDING = "ENDING"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"
    FAILED = "FAILED"

    @property
    def terminal(self) -> bool:
        """Whether nothing changes any more."""
        return self in (State.RELEASED, State.EXPIRED, State.FAILED)


@dataclass(frozen=True, slots=True)
class RankGranted:
    """A rank holds the lease."""

    rank: int


@dataclass(frozen=True, slots=True)
class RankRefused:
    """A rank did not pin the blocks."""

    rank: int
    error: KvferryError


@dataclass(frozen=True, slots=True)
class RankExpired:
    """A rank's lease ran out; its word is cleared."""

    rank: int


@dataclass(frozen=True, slots=True)
class RankCleared:
    """A rank's lease word is cleared, on request."""

    rank: int


@dataclass(frozen=True, slots=True)
class RankLost:
    """A rank's data plane was restarted: its lease table and its pool are gone."""

    rank: int
    error: KvferryError


@dataclass(frozen=True, slots=True)
class Release:
    """The engine, or the last reader, is done with it."""


Event = RankGranted | RankRefused | RankExpired | RankCleared | RankLost | Release


@dataclass(frozen=True, slots=True)
class Life:
    """A publication's state. ``waiting`` are the ranks still to grant; ``held`` those whose word may be set."""

    waiting: frozenset[int]
    held: frozenset[int] = field(default_factory=frozenset)
    state: State = State.LEASING
    outcome: State = State.RELEASED
    error: KvferryError | None = None


class IllegalEvent(Exception):
    """The event cannot happen in this state; nothing was changed."""

    def __init__(self, life: Life, event: Event) -> None:
        super().__init__(f"{type(event).__name__} in state {life.state.name}")


def advance(life: Life, event: Event) -> Life:
    """The life after ``event``. Events that come late, after the terminal state, change nothing.

    Raises:
        IllegalEvent: the event cannot happen in this state.
    """
    if life.state.terminal:
        return life
    handler = _TABLE.get((life.state, type(event)))
    if handler is None:
        raise IllegalEvent(life, event)
    return handler(life, event)


def _granted(life: Life, event: Event) -> Life:
    assert isinstance(event, RankGranted)
    life = replace(life, waiting=life.waiting - {event.rank}, held=life.held | {event.rank})
    if life.waiting:
        return life
    return replace(life, state=State.LIVE) if life.state is State.LEASING else life


def _refused(life: Life, event: Event) -> Life:
    assert isinstance(event, RankRefused)
    life = replace(life, waiting=life.waiting - {event.rank})
    return _end(life, State.FAILED, event.error)


def _expired(life: Life, event: Event) -> Life:
    assert isinstance(event, RankExpired)
    return _end(replace(life, held=life.held - {event.rank}, waiting=life.waiting - {event.rank}), State.EXPIRED)


def _cleared(life: Life, event: Event) -> Life:
    assert isinstance(event, RankCleared)
    return _end(replace(life, held=life.held - {event.rank}, waiting=life.waiting - {event.rank}), life.outcome)


def _lost(life: Life, event: Event) -> Life:
    assert isinstance(event, RankLost)
    life = replace(life, held=life.held - {event.rank}, waiting=life.waiting - {event.rank})
    return _end(life, State.FAILED, event.error)


def _release(life: Life, _event: Event) -> Life:
    return _end(life, State.RELEASED)


def _unchanged(life: Life, _event: Event) -> Life:
    return life


def _end(life: Life, outcome: State, error: KvferryError | None = None) -> Life:
    """Begin or go on ending: the first cause decides the outcome, the last cleared rank completes it."""
    if life.state is not State.ENDING:
        life = replace(life, state=State.ENDING, outcome=outcome, error=error)
    if life.held or life.waiting:
        return life
    return replace(life, state=life.outcome)


_TABLE: dict[tuple[State, type], Callable[[Life, Event], Life]] = {
    (State.LEASING, RankGranted): _granted,
    (State.LEASING, RankRefused): _refused,
    (State.LEASING, RankExpired): _expired,
    (State.LEASING, RankLost): _lost,
    (State.LEASING, Release): _release,
    (State.LIVE, RankExpired): _expired,
    (State.LIVE, RankLost): _lost,
    (State.LIVE, RankCleared): _cleared,
    (State.LIVE, Release): _release,
    (State.ENDING, RankGranted): _granted,
    (State.ENDING, RankRefused): _refused,
    (State.ENDING, RankExpired): _expired,
    (State.ENDING, RankCleared): _cleared,
    (State.ENDING, RankLost): _lost,
    (State.ENDING, Release): _unchanged,
}
