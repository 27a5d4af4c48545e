"""A read whose turn has come. Pure."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kvferry.core.errors import KvferryError
from kvferry.core.planning.copies import NOTHING, CopyPlan
from kvferry_dataplane.paths import Route
from kvferry_dataplane.reads.batches import cut, split_long
from kvferry_dataplane.reads.request import PathOutcome, ReadOutcome, ReadPart, ReadRequest


@dataclass(eq=False, slots=True)
class ActivePart:
    """What comes from one source rank."""

    source: ReadPart
    route: Route
    todo: deque[CopyPlan]
    """Batches that are planned and not in flight; none only where nothing is left to be planned."""
    unplanned: Iterator[CopyPlan]
    """What is to be planned once those are posted."""
    piece_count: int = 0
    received_bytes: int = 0
    batches_in_flight: int = 0
    first_posted_at: float | None = None

    def outcome(self) -> PathOutcome:
        """What it has carried."""
        return PathOutcome(self.source.peer.side.rank, self.route, self.received_bytes, self.piece_count)

    def refill(self) -> None:
        """Plan and cut more, if nothing is left to be posted."""
        while not self.todo and (chunk := next(self.unplanned, None)) is not None:
            self.cut(chunk)

    def cut(self, chunk: CopyPlan) -> None:
        """Cut a chunk of the plan as the route wants it."""
        limits = self.route.limits
        plan = split_long(chunk, limits.bytes_max)
        self.piece_count += plan.piece_count
        self.todo.extend(cut(plan, limits.bytes_max, limits.pieces_max))


@dataclass(eq=False, slots=True)
class ActiveRead:
    """Where a read stands: batches to post, batches in flight, words to verify."""

    request: ReadRequest
    parts: list[ActivePart] = field(default_factory=list)
    batches_in_flight: int = 0
    batches_unconfirmed: int = 0
    received_bytes: int = 0
    words_verified: set[int] = field(default_factory=set)
    words_in_flight: set[int] = field(default_factory=set)
    first_posted_at: float | None = None
    last_arrived_at: float | None = None
    verified_at: float | None = None
    turn: int = 0
    failure: KvferryError | None = None
    settle_at: float = 0.0

    @property
    def ending(self) -> bool:
        """Whether it ends early."""
        return self.failure is not None

    @property
    def has_arrived(self) -> bool:
        """Whether every byte has been confirmed."""
        return self.is_settled and not any(part.todo for part in self.parts)

    @property
    def is_verified(self) -> bool:
        """Whether every lease has been seen to hold after the last byte."""
        return len(self.words_verified) == len(self.request.parts)

    @property
    def is_settled(self) -> bool:
        """Whether no byte of it can still arrive."""
        return not self.batches_in_flight and not self.batches_unconfirmed

    def begin(self, route: Callable[[ReadPart, int], Route]) -> None:
        """Choose the paths and plan the first batches of every part."""
        for source in self.request.parts:
            unplanned = source.chunks()
            first = next(unplanned, NOTHING)
            part = ActivePart(source, route(source, _estimated_pieces(source, first)), deque(), unplanned)
            part.cut(first)
            part.refill()
            self.parts.append(part)

    def take_batch(self, part: ActivePart) -> CopyPlan:
        """The next batch of a part that has one, to be posted."""
        batch = part.todo.popleft()
        part.batches_in_flight += 1
        self.batches_in_flight += 1
        part.refill()
        return batch

    def drop_rest(self) -> None:
        """Forget every batch that is not in flight."""
        for part in self.parts:
            part.todo.clear()
            part.unplanned = iter(())

    def next_part(self) -> int | None:
        """The part that has most batches left and room for one more in flight."""
        ready = [
            i for i, part in enumerate(self.parts) if part.todo and part.batches_in_flight < part.route.limits.in_flight
        ]
        return max(ready, key=lambda index: len(self.parts[index].todo), default=None)

    def outcome(self, now: float) -> ReadOutcome:
        """The figures, however it ended."""
        posted, arrived = self.first_posted_at, self.last_arrived_at
        read_end = arrived if arrived is not None else now
        verify_end = self.verified_at if self.verified_at is not None else now
        return ReadOutcome(
            transfer=self.request.transfer,
            failure=self.failure,
            received_bytes=self.received_bytes,
            descriptor_count=sum(part.piece_count for part in self.parts),
            queue_seconds=(now if posted is None else posted) - self.request.accepted_at,
            read_seconds=0.0 if posted is None else read_end - posted,
            verify_seconds=verify_end - arrived if arrived is not None and self.has_arrived else 0.0,
            paths=() if posted is None else tuple(part.outcome() for part in self.parts),
        )


def _estimated_pieces(source: ReadPart, first: CopyPlan) -> int:
    """Pieces of a part, going by its first chunk."""
    first_bytes = first.total_bytes
    return first.piece_count if not first_bytes else max(first.piece_count * source.total_bytes // first_bytes, 1)
