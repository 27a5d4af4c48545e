"""Reads a span of tokens at a time, each verified by itself, so that what is verified need not be read again.

A read in spans is several reads for the executor. What counts of what they have brought is a prefix of the tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from kvferry.core.blocks import BlockLists
from kvferry.core.errors import KvferryError
from kvferry.core.path_floor import ANY_PATH, PathFloor
from kvferry.core.planning.planner import PairPlan, PlanSize, RequestPlan
from kvferry.core.planning.tokens import TokenRange
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.request import ReadOutcome, ReadPart, ReadRequest, SourceShare

CHUNK_PIECES_MAX = 1 << 18
"""Pieces of a read that are planned at a time."""
SAMPLE_PIECES_MAX = 1 << 12
"""Pieces of a part that are planned to see how long they are."""
SPANS_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class SourceRank:
    """A source rank and where its lease word is."""

    peer: Peer
    slot: int
    word: int = field(repr=False)
    floor: PathFloor = ANY_PATH
    """Which ways to it may be taken."""


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

    def parts(self, request: RequestPlan) -> tuple[tuple[ReadPart, ...], int]:
        """What is to come from each source rank, and a bound on the pieces that are planned at once."""
        # Where nothing is to be read, one lease says that the publication still held.
        wanted = request.sizes or {next(iter(self.sources)): PlanSize(0, 0)}
        chunk_pieces = max(CHUNK_PIECES_MAX // len(wanted), SAMPLE_PIECES_MAX)
        parts = tuple(_part(request, rank, size, chunk_pieces, self.sources[rank]) for rank, size in wanted.items())
        return parts, sum(min(part.pieces_max, chunk_pieces) for part in parts)

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
class Span:
    """A span that the executor has, or had. ``stop`` is the token after its last."""

    name: str
    stop: int
    outcome: ReadOutcome | None = None


@dataclass(slots=True)
class SpannedRead:
    """Where a read in spans stands: ``verified`` tokens are in place, ``stops`` are the ends of the spans not begun.

    ``read`` is the whole read, as the executor would get it; each span is one like it under a name of its own.
    """

    plan: ReadPlan
    read: ReadRequest
    verified: int
    stops: list[int]
    stopped: KvferryError | None = None
    """Why no further span is to be read."""
    spans: list[Span] = field(default_factory=list)

    @property
    def under_way(self) -> list[str]:
        """Names of the spans that the executor has."""
        return [span.name for span in self.spans if span.outcome is None]

    @property
    def is_over(self) -> bool:
        """Whether nothing is under way and nothing is to come."""
        return not self.under_way and (self.stopped is not None or not self.stops)

    def begin_more(self, now: float) -> list[ReadRequest]:
        """The spans to be read next. Two are under way at a time, so that the second begins when the first ends."""
        begun: list[ReadRequest] = []
        while self.stops and self.stopped is None and len(self.under_way) < SPANS_AT_ONCE:
            start = self.spans[-1].stop if self.spans else self.verified
            span = Span(f"{self.read.transfer}#{len(self.spans)}", self.stops.pop(0))
            self.spans.append(span)
            parts, pieces_max = self.plan.parts(self.plan.request((start, span.stop)))
            begun.append(
                replace(
                    self.read,
                    transfer=span.name,
                    parts=parts,
                    total_bytes=sum(part.total_bytes for part in parts),
                    pieces_max=pieces_max,
                    accepted_at=now,
                    # Once the first is served, so is the read.
                    queue_deadline=self.read.queue_deadline if len(self.spans) == 1 else None,
                )
            )
        return begun

    def ended(self, outcome: ReadOutcome) -> None:
        """Take in how a span ended."""
        for span in self.spans:
            if span.name == outcome.transfer:
                span.outcome = outcome
        self.stopped = self.stopped or outcome.failure
        for span in self.spans:
            if span.outcome is None or span.outcome.failure is not None:
                break
            self.verified = span.stop

    def whole(self, now: float) -> ReadOutcome:
        """The outcome of all spans; what is neither waiting for the first nor verifying the last is reading."""
        outcomes = [span.outcome for span in self.spans if span.outcome is not None]
        queue_seconds, verify_seconds = outcomes[0].queue_seconds, outcomes[-1].verify_seconds
        complete = not self.stops and self.verified == self.spans[-1].stop
        return ReadOutcome(
            transfer=self.read.transfer,
            failure=None if complete else self.stopped,
            received_bytes=sum(outcome.received_bytes for outcome in outcomes),
            descriptor_count=sum(outcome.descriptor_count for outcome in outcomes),
            queue_seconds=queue_seconds,
            read_seconds=max(now - self.read.accepted_at - queue_seconds - verify_seconds, 0.0),
            verify_seconds=verify_seconds,
            shares=_summed([share for outcome in outcomes for share in outcome.shares]),
            priority=self.read.priority,
        )


def _part(request: RequestPlan, rank: int, size: PlanSize, chunk_pieces: int, source: SourceRank) -> ReadPart:
    return ReadPart(
        peer=source.peer,
        chunks=partial(request.chunks, rank, chunk_pieces),
        regions=partial(request.strided, rank),
        sample=partial(request.chunks, rank, SAMPLE_PIECES_MAX),
        slot=source.slot,
        word=source.word,
        total_bytes=size.total_bytes,
        pieces_max=size.pieces_max,
        floor=source.floor,
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
