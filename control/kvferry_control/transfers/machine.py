"""The life of a transfer: one table, and everything that affects its state.

::

    NEGOTIATING ──Negotiated──► READING ──last RankSucceeded──► SUCCEEDED
        │     ▲                    │  │
        │     └─── SWITCHING ◄─────┘  │      a source failed and another is left: until every rank has confirmed
        │ Ended        │ Ended        │ Ended, RankFailed, RankLost
        ▼              ▼              ▼
    FAILED / CANCELLED ◄──────  SETTLING   until every rank has confirmed, or SettleTimedOut

``Ended`` is a deadline, a cancellation or a refusal. The first failure decides the outcome. A transfer is *settled*
once no byte can still arrive in its blocks. A rank leaves it unsettled that was lost, that did not confirm in time, or
that may still carry out reads which no transfer here answers for: nobody knows where those write.

A transfer may have several sources. ``SourceFailed``, or a ``RankFailed`` that another source can cure, goes on to the
next while one is left. Once none is, of all their failures that decides on which the caller can act best
(``ACTED_ON_BEST``), of equals the last. The next source is asked only when every rank has
confirmed the end of its read, so that no late byte can fall on newer ones. A rank that has succeeded reads no more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Self

from kvferry.core.errors import KvferryError
from kvferry.core.reasons import Actor, Reason

ACTED_ON_BEST = (Actor.RETRY, Actor.PREFILL, Actor.CALLER, Actor.OPERATOR, Actor.KVFERRY)
"""By who must act, which failure of several sources decides: what may succeed later is worth more than what has to be
prefilled again, and that more than what is wrong with the call. The last two the caller can only report."""


class State(Enum):
    """Where a transfer stands; the names are the wire contract's."""

    NEGOTIATING = "NEGOTIATING"
    READING = "READING"
    SETTLING = "SETTLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SWITCHING = "SWITCHING"

    terminal: bool
    """Whether nothing changes any more."""

    def __init__(self, name: str) -> None:
        self.terminal = name in ("SUCCEEDED", "FAILED", "CANCELLED")

    # There is one of each: to hash their names, as Enum does, is only slower.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a transfer did not succeed."""

    reason: Reason
    message: str
    rank: int | None = None
    retry_after_s: float | None = None
    """When the same request may find room, if a bound was reached and somebody could tell."""

    @classmethod
    def of(cls, error: KvferryError, rank: int | None = None) -> Self:
        """The failure that an error is."""
        return cls(error.reason, error.message, rank, error.retry_after_s)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The source answered; these destination ranks get reads."""

    ranks: frozenset[int]


@dataclass(frozen=True, slots=True)
class RankSucceeded:
    """A rank has all bytes, and the lease still held."""

    rank: int


@dataclass(frozen=True, slots=True)
class RankFailed:
    """A rank's read is over, and no byte of it can still arrive."""

    rank: int
    failure: Failure
    curable: bool = False
    """Another source may do better."""


@dataclass(frozen=True, slots=True)
class RankLost:
    """A rank's data plane is gone: nobody confirms what becomes of its read."""

    rank: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Ended:
    """Somebody wants it over: a deadline, a cancellation, a refusal by the source."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class SourceFailed:
    """The source cannot be used, or has had its share of the time; another may do better."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class SettleTimedOut:
    """The bound on waiting for confirmations has passed."""


Event = Negotiated | RankSucceeded | RankFailed | RankLost | Ended | SourceFailed | SettleTimedOut


@dataclass(frozen=True, slots=True)
class Life:
    """A transfer's state. ``pending`` are the ranks that have not confirmed the end of their reads."""

    state: State = State.NEGOTIATING
    pending: frozenset[int] = field(default_factory=frozenset)
    failure: Failure | None = None
    sources_left: int = 0
    """Sources to go on with."""
    given_up: tuple[Failure, ...] = ()
    """Why each of the sources so far was given up, the one that is being left included."""
    done: frozenset[int] = field(default_factory=frozenset)
    """Ranks that have all bytes, whichever source they came from."""
    ranks: frozenset[int] = field(default_factory=frozenset)
    """All that shall have them; none before the first source answered."""
    unsettled: frozenset[int] = field(default_factory=frozenset)
    """Ranks that have not confirmed that no byte can still arrive, though nobody waits for them."""
    disturbed: frozenset[int] = field(default_factory=frozenset)
    """Ranks on which reads that no transfer here answers for may still write, in these blocks or others."""

    @property
    def settled(self) -> bool:
        """Whether no byte can still arrive, once the transfer is terminal."""
        return not self.unsettled and not self.disturbed

    @property
    def ends_cancelled(self) -> bool:
        """Whether what decided the outcome was a cancellation."""
        return self.failure is not None and self.failure.reason is Reason.CANCELLED


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


def confirmed(life: Life, rank: int) -> Life:
    """The life once a rank that left it unsettled is known to write nothing more, however late; else as it was."""
    return life if rank not in life.unsettled else replace(life, unsettled=life.unsettled - {rank})


def undisturbed(life: Life, rank: int) -> Life:
    """The life once no read of others can write to its blocks on a rank any more; else as it was."""
    return life if rank not in life.disturbed else replace(life, disturbed=life.disturbed - {rank})


def _negotiated(life: Life, event: Event) -> Life:
    assert isinstance(event, Negotiated)
    return _reading(life, State.READING, event.ranks - life.done, life.done, event.ranks)


def _refused(life: Life, event: Event) -> Life:
    assert isinstance(event, Ended)
    return _finish(replace(life, failure=event.failure))


def _rank_succeeded(life: Life, event: Event) -> Life:
    assert isinstance(event, RankSucceeded)
    rank = frozenset((event.rank,))
    pending, done = life.pending - rank, life.done | (life.pending & rank)
    if life.state is State.READING and life.failure is None:
        return _reading(life, life.state if pending else State.SUCCEEDED, pending, done, life.ranks)
    return _without(replace(life, done=done), event.rank)


def _reading(life: Life, state: State, pending: frozenset[int], done: frozenset[int], ranks: frozenset[int]) -> Life:
    """The life of a transfer to which nothing happens: each takes these steps, and ``replace`` is slow."""
    return Life(
        state=state,
        pending=pending,
        failure=life.failure,
        sources_left=life.sources_left,
        given_up=life.given_up,
        done=done,
        ranks=ranks,
        unsettled=life.unsettled,
        disturbed=life.disturbed,
    )


def _rank_failed(life: Life, event: Event) -> Life:
    assert isinstance(event, RankFailed)
    if event.curable and life.sources_left and life.failure is None and event.rank in life.pending:
        return _without(_left(life, event.failure), event.rank)
    failure = _of_all_sources(life, event.failure) if event.curable else event.failure
    return _without(replace(life, failure=life.failure or failure), event.rank)


def _rank_left(life: Life, event: Event) -> Life:
    assert isinstance(event, RankFailed)
    return _without(life, event.rank)


def _source_failed(life: Life, event: Event) -> Life:
    assert isinstance(event, SourceFailed)
    if life.sources_left:
        return _go_on(_left(life, event.failure))
    handler = _refused if life.state is State.NEGOTIATING else _ended
    return handler(life, Ended(_of_all_sources(life, event.failure)))


def _of_all_sources(life: Life, last: Failure) -> Failure:
    """The failure of a transfer whose last source has failed; its message is that of the last."""
    best = min((last, *reversed(life.given_up)), key=lambda failure: ACTED_ON_BEST.index(failure.reason.actor))
    return last if best is last else replace(best, message=f"{last.reason}: {last.message}")


def _left(life: Life, failure: Failure) -> Life:
    return replace(life, state=State.SWITCHING, sources_left=life.sources_left - 1, given_up=(*life.given_up, failure))


def _go_on(life: Life) -> Life:
    if life.pending:
        return life
    # The source may have been given up a moment too early.
    return _finish(life) if life.ranks and life.ranks == life.done else replace(life, state=State.NEGOTIATING)


def _rank_lost(life: Life, event: Event) -> Life:
    assert isinstance(event, RankLost)
    if event.rank not in life.pending:
        return life
    return _without(
        replace(life, failure=life.failure or event.failure, unsettled=life.unsettled | {event.rank}),
        event.rank,
    )


def _ended(life: Life, event: Event) -> Life:
    assert isinstance(event, Ended)
    return replace(life, state=State.SETTLING, failure=life.failure or event.failure)


def _settle_timed_out(life: Life, _event: Event) -> Life:
    return _finish(replace(life, unsettled=life.unsettled | life.pending, pending=frozenset()))


def _unchanged(life: Life, _event: Event) -> Life:
    return life


def _without(life: Life, rank: int) -> Life:
    life = replace(life, pending=life.pending - {rank})
    if life.state is State.SWITCHING and life.failure is None:
        return _go_on(life)
    if not life.pending:
        return _finish(life)
    return life if life.failure is None else replace(life, state=State.SETTLING)


def _finish(life: Life) -> Life:
    if life.failure is None:
        return replace(life, state=State.SUCCEEDED)
    return replace(life, state=State.CANCELLED if life.ends_cancelled else State.FAILED)


_TABLE: dict[tuple[State, type], Callable[[Life, Event], Life]] = {
    (State.NEGOTIATING, Negotiated): _negotiated,
    (State.NEGOTIATING, Ended): _refused,
    (State.NEGOTIATING, SourceFailed): _source_failed,
    (State.READING, RankSucceeded): _rank_succeeded,
    (State.READING, RankFailed): _rank_failed,
    (State.READING, RankLost): _rank_lost,
    (State.READING, Ended): _ended,
    (State.READING, SourceFailed): _source_failed,
    (State.SWITCHING, RankSucceeded): _rank_succeeded,
    (State.SWITCHING, RankFailed): _rank_left,
    (State.SWITCHING, RankLost): _rank_lost,
    (State.SWITCHING, Ended): _ended,
    (State.SWITCHING, SourceFailed): _unchanged,
    (State.SETTLING, RankSucceeded): _rank_succeeded,
    (State.SETTLING, RankFailed): _rank_failed,
    (State.SETTLING, RankLost): _rank_lost,
    (State.SETTLING, Ended): _unchanged,
    (State.SETTLING, SourceFailed): _unchanged,
    (State.SETTLING, SettleTimedOut): _settle_timed_out,
}
