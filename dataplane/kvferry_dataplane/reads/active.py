"""A read whose turn has come. Pure."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvferry.core.errors import KvferryError
from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.paths import Path, Route
from kvferry_dataplane.reads.batches import Batch, Regions, cut, cut_regions, split_long
from kvferry_dataplane.reads.request import BatchLimits, ReadBounds, ReadOutcome, ReadPart, ReadRequest, SourceShare


@dataclass(eq=False, slots=True)
class ActivePart:
    """Where what comes from one source rank stands."""

    source: ReadPart
    route: Route
    limits: BatchLimits
    todo: deque[Batch] = field(default_factory=deque)
    """Batches that are planned and not in flight; none only where nothing is left to be planned."""
    unplanned: Iterator[CopyPlan] = field(default_factory=lambda: iter(()))
    """What is to be planned once those are posted."""
    descriptor_count: int = 0
    received_bytes: int = 0
    device_seconds: float = 0.0
    batches_in_flight: int = 0
    first_posted_at: float | None = None

    def begin(self) -> None:
        """Plan the first batches."""
        if self.route.path is Path.LOCAL:
            regions = Regions(self.source.regions())
            self.descriptor_count = regions.piece_count
            self.todo.extend(cut_regions(regions, self.limits.bytes_max))
        else:
            self.unplanned = self.source.chunks()
            self.refill()

    def take_batch(self) -> Batch:
        """The next batch, to be posted; there is one."""
        batch = self.todo.popleft()
        self.refill()
        return batch

    def drop_rest(self) -> None:
        """Forget every batch that is not in flight."""
        self.todo.clear()
        self.unplanned = iter(())

    def refill(self) -> None:
        """Plan on if nothing is planned."""
        while not self.todo and (chunk := next(self.unplanned, None)) is not None:
            plan = split_long(chunk, self.limits.bytes_max)
            self.descriptor_count += plan.piece_count
            self.todo.extend(cut(plan, self.limits.bytes_max, self.limits.descriptors_max))

    def seconds(self, now: float) -> float | None:
        """How long it took from the first batch to the last; None while it goes on."""
        if self.first_posted_at is None or self.todo or self.batches_in_flight:
            return None
        return now - self.first_posted_at

    @property
    def share(self) -> SourceShare:
        """The figures."""
        rank = self.source.peer.side.rank
        return SourceShare(rank, self.route, self.received_bytes, self.descriptor_count, self.device_seconds)


@dataclass(eq=False, slots=True)
class ActiveRead:
    """Where a read stands: batches to post, batches in flight, words to verify."""

    request: ReadRequest
    parts: list[ActivePart] = field(default_factory=list)
    batches_in_flight: int = 0
    batches_unconfirmed: int = 0
    words_verified: set[int] = field(default_factory=set)
    words_in_flight: set[int] = field(default_factory=set)
    first_posted_at: float | None = None
    last_arrived_at: float | None = None
    verified_at: float | None = None
    turn: int = 0
    is_served: bool = False
    """Whether anything of it was asked for."""
    failure: KvferryError | None = None
    settle_at: float = 0.0

    @property
    def ending(self) -> bool:
        """Whether it ends early."""
        return self.failure is not None

    @property
    def stage(self) -> str:
        """Where it stands, for people."""
        if not self.is_served:
            return "waiting to be served"
        return "verifying" if self.has_arrived else "reading"

    @property
    def has_arrived(self) -> bool:
        """Whether every byte has been confirmed."""
        return self.is_settled and not any(part.todo for part in self.parts)

    @property
    def awaits_words(self) -> bool:
        """Whether every byte has been confirmed, and no lease word is asked for."""
        return self.has_arrived and not self.words_in_flight

    @property
    def is_verified(self) -> bool:
        """Whether every lease has been seen to hold after the last byte."""
        return len(self.words_verified) == len(self.request.parts)

    @property
    def is_settled(self) -> bool:
        """Whether no byte of it can still arrive."""
        return not self.batches_in_flight and not self.batches_unconfirmed

    def begin(self, routes: list[Route], bounds: ReadBounds) -> None:
        """Plan the first batches of every part."""
        for source, route in zip(self.request.parts, routes, strict=True):
            part = ActivePart(source, route, bounds.limits(route))
            self.parts.append(part)
            part.begin()

    def take_batch(self, number: int) -> Batch:
        """The next batch of a part that has one, to be posted."""
        self.batches_in_flight += 1
        self.parts[number].batches_in_flight += 1
        return self.parts[number].take_batch()

    def batch_ended(self, number: int) -> ActivePart:
        """One batch of a part is in flight no more; returns the part."""
        self.batches_in_flight -= 1
        self.parts[number].batches_in_flight -= 1
        return self.parts[number]

    def drop_rest(self) -> None:
        """Forget every batch that is not in flight."""
        for part in self.parts:
            part.drop_rest()

    @property
    def has_claim(self) -> bool:
        """Whether it has a batch to ask for, and may have another one in flight."""
        part = None if self.ending else self.next_part()
        return part is not None and self.batches_in_flight < self.parts[part].limits.in_flight_per_read

    def next_part(self) -> int | None:
        """The part whose batch is to be posted next; None if every batch was posted.

        Copies go first, which go on by themselves; then the part that has most batches left.
        """
        left = {number: part for number, part in enumerate(self.parts) if part.todo}
        return max(
            left, key=lambda number: (left[number].route.path is Path.LOCAL, len(left[number].todo)), default=None
        )

    def outcome(self, now: float) -> ReadOutcome:
        """The figures, however it ended."""
        posted, arrived = self.first_posted_at, self.last_arrived_at
        read_end = arrived if arrived is not None else now
        verify_end = self.verified_at if self.verified_at is not None else now
        return ReadOutcome(
            transfer=self.request.transfer,
            failure=self.failure,
            received_bytes=sum(part.received_bytes for part in self.parts),
            descriptor_count=sum(part.descriptor_count for part in self.parts),
            queue_seconds=(now if posted is None else posted) - self.request.accepted_at,
            read_seconds=0.0 if posted is None else read_end - posted,
            verify_seconds=verify_end - arrived if arrived is not None and self.has_arrived else 0.0,
            shares=() if posted is None else tuple(part.share for part in self.parts),
            priority=self.request.priority,
        )
