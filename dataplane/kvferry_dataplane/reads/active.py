"""A read whose turn has come. Pure."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvferry.core.errors import KvferryError
from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.reads.batches import cut, split_long
from kvferry_dataplane.reads.request import ReadBounds, ReadOutcome, ReadRequest


@dataclass(eq=False, slots=True)
class ActiveRead:
    """Where a read stands: batches to post, batches in flight, words to verify."""

    request: ReadRequest
    todo: list[deque[CopyPlan]] = field(default_factory=list)
    """Batches that are planned and not in flight, by part; none only where nothing is left to be planned."""
    unplanned: list[Iterator[CopyPlan]] = field(default_factory=list)
    """What is to be planned once those are posted, by part."""
    descriptor_count: int = 0
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
        return self.is_settled and not any(self.todo)

    @property
    def is_verified(self) -> bool:
        """Whether every lease has been seen to hold after the last byte."""
        return len(self.words_verified) == len(self.request.parts)

    @property
    def is_settled(self) -> bool:
        """Whether no byte of it can still arrive."""
        return not self.batches_in_flight and not self.batches_unconfirmed

    def begin(self, bounds: ReadBounds) -> None:
        """Plan the first batches of every part."""
        for part, source in enumerate(self.request.parts):
            self.todo.append(deque())
            self.unplanned.append(source.chunks())
            self._refill(part, bounds)

    def take_batch(self, part: int, bounds: ReadBounds) -> CopyPlan:
        """The next batch of a part that has one, to be posted."""
        batch = self.todo[part].popleft()
        self._refill(part, bounds)
        return batch

    def drop_rest(self) -> None:
        """Forget every batch that is not in flight."""
        self.todo = [deque() for _ in self.request.parts]
        self.unplanned = [iter(()) for _ in self.request.parts]

    def _refill(self, part: int, bounds: ReadBounds) -> None:
        while not self.todo[part] and (chunk := next(self.unplanned[part], None)) is not None:
            plan = split_long(chunk, bounds.batch_bytes_max)
            self.descriptor_count += plan.piece_count
            self.todo[part].extend(cut(plan, bounds.batch_bytes_max, bounds.batch_descriptors_max))

    def next_part(self) -> int | None:
        """The part that has most batches left; None if every batch was posted."""
        best = max(range(len(self.todo)), key=lambda part: len(self.todo[part]), default=None)
        return best if best is not None and self.todo[best] else None

    def outcome(self, now: float) -> ReadOutcome:
        """The figures, however it ended."""
        posted, arrived = self.first_posted_at, self.last_arrived_at
        read_end = arrived if arrived is not None else now
        verify_end = self.verified_at if self.verified_at is not None else now
        return ReadOutcome(
            transfer=self.request.transfer,
            failure=self.failure,
            received_bytes=self.received_bytes,
            descriptor_count=self.descriptor_count,
            queue_seconds=(now if posted is None else posted) - self.request.accepted_at,
            read_seconds=0.0 if posted is None else read_end - posted,
            verify_seconds=verify_end - arrived if arrived is not None and self.has_arrived else 0.0,
            backend="" if posted is None else self.request.parts[0].peer.backend,
        )
