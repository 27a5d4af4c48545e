"""Reads a span of tokens at a time, each verified by itself, so that what is verified need not be read again.

A read in spans is a sequence of reads for the executor, one after another under the same transfer id. What they have
brought by the end is a prefix of the tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from kvferry.core.blocks import BlockLists
from kvferry.core.errors import KvferryError
from kvferry.core.planning.planner import PairPlan, PlanSize, RequestPlan
from kvferry.core.planning.tokens import TokenRange
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.request import ReadOutcome, ReadPart, ReadRequest, SourceShare

CHUNK_PIECES_MAX = 1 << 18
"""Pieces of a part that are planned at a time."""
SAMPLE_PIECES_MAX = 1 << 12
"""Pieces of a part that are planned to see how long they are."""


@dataclass(frozen=True, slots=True)
class SourceRank:
    """A source rank and where its lease word is."""

    peer: Peer
    slot: int
    word: int = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What a read is to bring. ``tokens`` None: the source's blocks whole. ``sources`` are by rank; one at least."""

    pair: PairPlan
    held: BlockLists
    wanted: BlockLists
    tokens: TokenRange | None
    sources: Mapping[int, SourceRank]

    def request(self, span: tuple[int, int] | None = None) -> RequestPlan:
        """The copies of all tokens, or of a span of them.

        Raises:
            InvalidArgument, BlockError: as ``PairPlan.request``.
        """
        tokens = self.tokens if span is None or self.tokens is None else replace(self.tokens, span=span)
        return self.pair.request_checked(self.held, self.wanted, tokens)

    def parts(self, request: RequestPlan) -> tuple[ReadPart, ...]:
        """What is to come from each source rank."""
        # Where nothing is to be read, one lease says that the publication still held.
        wanted = request.sizes or {next(iter(self.sources)): PlanSize(0, 0)}
        return tuple(_part(request, rank, size, self.sources[rank]) for rank, size in wanted.items())

    def stops(self, total_bytes: int, span_bytes: int) -> tuple[int, ...]:
        """The ends of spans of about ``span_bytes`` each, where blocks of both sides end if that is often enough."""
        if self.tokens is None or not 0 < span_bytes < total_bytes:
            return ()
        first, last = self.tokens.start, self.tokens.stop
        wanted = max((last - first) * span_bytes // total_bytes, 1)
        groups = [*self.pair.source.groups, *self.pair.destination.groups]
        granule = math.lcm(*(group.tokens_per_block for group in groups if not group.per_sequence))
        step = wanted // granule * granule or wanted
        begin = first // granule * granule if step >= granule else first
        return (*(stop for stop in range(begin + step, last, step)), last)


@dataclass(slots=True)
class SpannedRead:
    """Where a read in spans stands: ``verified`` tokens are in place, and ``stops`` are the ends of the spans left."""

    plan: ReadPlan
    verified: int
    stops: list[int]
    outcomes: list[ReadOutcome] = field(default_factory=list)
    stopped: KvferryError | None = None
    """Why no further span is to be read."""

    @property
    def goes_on(self) -> bool:
        """Whether another span is to be read after the last outcome."""
        return bool(self.stops) and self.stopped is None and self.outcomes[-1].failure is None

    def peers(self) -> list[Peer]:
        """The source ranks."""
        return [source.peer for source in self.plan.sources.values()]

    def next_parts(self) -> tuple[tuple[ReadPart, ...], int]:
        """The parts of the next span, and a bound on the pieces that are planned at once."""
        parts = self.plan.parts(self.plan.request((self.verified, self.stops[0])))
        return parts, pieces_at_once(parts)

    def ended(self, outcome: ReadOutcome) -> None:
        """Take in how the span under way ended."""
        self.outcomes.append(outcome)
        if outcome.failure is None:
            self.verified = self.stops.pop(0)

    def whole(self) -> ReadOutcome:
        """The outcome of all spans."""
        last = self.outcomes[-1]
        return ReadOutcome(
            transfer=last.transfer,
            failure=last.failure or (self.stopped if self.stops else None),
            received_bytes=sum(outcome.received_bytes for outcome in self.outcomes),
            descriptor_count=sum(outcome.descriptor_count for outcome in self.outcomes),
            queue_seconds=sum(outcome.queue_seconds for outcome in self.outcomes),
            read_seconds=sum(outcome.read_seconds for outcome in self.outcomes),
            verify_seconds=sum(outcome.verify_seconds for outcome in self.outcomes),
            shares=_summed([share for outcome in self.outcomes for share in outcome.shares]),
        )


def pieces_at_once(parts: Sequence[ReadPart]) -> int:
    """A bound on the pieces of these parts that are planned at once."""
    return sum(min(part.pieces_max, CHUNK_PIECES_MAX) for part in parts)


def next_request(read: ReadRequest, spans: SpannedRead, now: float) -> ReadRequest:
    """The read of the next span; the time between spans counts as waiting."""
    parts, pieces = spans.next_parts()
    total_bytes = sum(part.total_bytes for part in parts)
    return replace(read, parts=parts, total_bytes=total_bytes, pieces_max=pieces, accepted_at=now)


def _part(request: RequestPlan, rank: int, size: PlanSize, source: SourceRank) -> ReadPart:
    return ReadPart(
        peer=source.peer,
        chunks=partial(request.chunks, rank, CHUNK_PIECES_MAX),
        regions=partial(request.strided, rank),
        sample=partial(request.chunks, rank, SAMPLE_PIECES_MAX),
        slot=source.slot,
        word=source.word,
        total_bytes=size.total_bytes,
        pieces_max=size.pieces_max,
    )


def _summed(shares: Sequence[SourceShare]) -> tuple[SourceShare, ...]:
    """One share for each source rank and way; the reasons are those of the last."""
    found: dict[tuple[int, str, str], SourceShare] = {}
    for share in shares:
        key = share.source_rank, share.route.path.value, share.route.backend
        before = found.get(key)
        found[key] = share if before is None else _added(before, share)
    return tuple(found.values())


def _added(before: SourceShare, share: SourceShare) -> SourceShare:
    return SourceShare(
        share.source_rank,
        share.route,
        before.received_bytes + share.received_bytes,
        before.descriptor_count + share.descriptor_count,
        before.device_seconds + share.device_seconds,
    )
