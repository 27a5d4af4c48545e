"""Accepts reads: refuses at once what is wrong or too much, and remembers what is outstanding."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvferry.core.blocks import BlockLists, checked_blocks
from kvferry.core.drain import DrainMeter
from kvferry.core.errors import Cancelled, DeadlineExceeded, InvalidArgument, NotReady, QueueTimeout, ResourceExhausted
from kvferry.core.path_floor import allowed_paths
from kvferry.core.planning.planner import PairPlan
from kvferry.core.planning.tokens import TokenRange
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.rpc.block_lists import listed_ids
from kvferry.rpc.times import seconds_of
from kvferry_dataplane.blocks import BlockCounters
from kvferry_dataplane.leases import WORD_BYTES
from kvferry_dataplane.peers import Peer, PeerBook, peer_lost
from kvferry_dataplane.plan import PairPlans, Side
from kvferry_dataplane.reads.request import ReadOutcome, ReadRequest
from kvferry_dataplane.shared_bound import SharedBound
from kvferry_dataplane.spans import ReadPlan, SourceRank, SpannedRead

TRANSFER_CHARS_MAX = 256
PRIORITY_MAX = 1_000_000
READ_SECONDS_MAX = 24 * 3600.0
SHARE_OF_FREE = 4.0
"""A source may have four times as many reads or bytes outstanding as are free: alone four fifths of the bound."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A read that is queued or running."""

    request: ReadRequest
    """Of all its tokens."""
    command_id: int
    destination_blocks: BlockLists
    tokens: TokenRange | None
    spans: SpannedRead | None
    """None: all its tokens are read at once."""

    def ended(self, outcome: ReadOutcome) -> "EndedRead":
        """How it ended, by the executor's last outcome."""
        if self.spans is not None:
            return EndedRead(self.command_id, self.spans.whole(time.monotonic()), self.spans.verified)
        if self.tokens is None:
            return EndedRead(self.command_id, outcome, 0)
        verified = self.tokens.start if outcome.failure is not None else self.tokens.stop
        return EndedRead(self.command_id, outcome, verified)


@dataclass(frozen=True, slots=True)
class EndedRead:
    """A read that is over. The tokens before ``verified_tokens`` are in place."""

    command_id: int
    outcome: ReadOutcome
    verified_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """What follows an outcome: spans to be read, spans to be ended early, or the end."""

    begin: Sequence[ReadRequest] = ()
    cancel: Sequence[str] = ()
    end: EndedRead | None = None


class ReadDesk:
    """The reads that are outstanding, within bounds."""

    def __init__(self, max_reads: int, max_bytes: int) -> None:
        self._reads = SharedBound(max_reads, SHARE_OF_FREE)
        self._bytes = SharedBound(max_bytes, SHARE_OF_FREE)
        self._drain = DrainMeter()
        self._outstanding: dict[str, Outstanding] = {}
        self._spanned: dict[str, str] = {}
        """The read that a span belongs to, by the span's name."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._pairs: PairPlans | None = None
        self.destinations = BlockCounters({})

    def __len__(self) -> int:
        return len(self._outstanding)

    def overdue_count(self, before: float) -> int:
        """Outstanding reads whose deadline was before that time, on the monotonic clock."""
        return sum(outstanding.request.deadline < before for outstanding in self._outstanding.values())

    def transfers(self) -> list[str]:
        """Ids of the outstanding reads."""
        return list(self._outstanding)

    def reset(self, destination: Side, worker: str) -> None:
        """Start over with a layout; nothing may be outstanding."""
        self._pairs = PairPlans(destination, worker)
        self.destinations = BlockCounters(held_block_counts(destination))

    def accept(
        self, command_id: int, read: pb.Read, peers: PeerBook, destination: Side, pins: BlockCounters
    ) -> Sequence[ReadRequest]:
        """Check a read and claim its destination blocks; what the executor is to begin with.

        Raises:
            KvferryError: why it is refused; nothing has changed then.
        """
        accepted_at = time.monotonic()
        source = read.source_worker or " ".join(sorted(source.peer for source in read.sources))
        time_left_s = self._check_bounds(read)
        queue_left_s = _queue_seconds(read)
        self._check_room("max_reads", self._reads, source, 1)
        lists = [(listed.group, listed_ids("destination_blocks", listed)) for listed in read.destination_blocks]
        blocks = checked_blocks(lists, destination.block_counts, "destination_blocks")
        pins.refuse_held(blocks, "destination_blocks", "is published")
        self.destinations.refuse_held(blocks, "destination_blocks", "is the destination of another read")
        plan = self._plan(read, peers, blocks)
        request = plan.request()
        for rank in request.sizes:
            if rank not in plan.sources:
                raise InvalidArgument.of_field("sources", sorted(plan.sources), f"source rank {rank} is needed")
        total_bytes = sum(size.total_bytes for size in request.sizes.values())
        self._check_room("max_outstanding_bytes", self._bytes, source, total_bytes)
        parts, pieces_max = plan.parts(request)
        accepted = ReadRequest(
            transfer=read.transfer,
            parts=parts,
            total_bytes=total_bytes,
            pieces_max=pieces_max,
            accepted_at=accepted_at,
            deadline=accepted_at + (queue_left_s or 0.0) + time_left_s,
            priority=read.priority,
            source=source,
            queue_deadline=None if queue_left_s is None else accepted_at + queue_left_s,
            service_seconds=time_left_s,
        )
        spans = _spans(plan, accepted, read)
        self.destinations.hold(blocks)
        self._drain.advance(accepted_at, busy=bool(self._outstanding))
        self._outstanding[read.transfer] = Outstanding(accepted, command_id, blocks, plan.tokens, spans)
        self._reads.take(source, 1)
        self._bytes.take(source, total_bytes)
        self._idle.clear()
        return [accepted] if spans is None else self._begin(spans)

    def step(self, outcome: ReadOutcome, peers: PeerBook) -> Step:
        """What follows an outcome. At the end the read is taken out and its destination blocks are free."""
        transfer = self._spanned.pop(outcome.transfer, outcome.transfer)
        spans = self._outstanding[transfer].spans
        self._drain.advance(time.monotonic(), busy=True)
        self._drain.done(outcome.received_bytes)
        if spans is not None:
            spans.ended(outcome)
            gone = next((rank.peer for rank in spans.plan.sources.values() if not peers.has(rank.peer.name)), None)
            if gone is not None:
                spans.stopped = spans.stopped or peer_lost(gone)
            if not spans.is_over:
                return Step(self._begin(spans), spans.under_way if spans.stopped is not None else ())
        return Step(end=self._settle(transfer, outcome))

    def cancel(self, transfer: str) -> Sequence[str]:
        """Have no further span read of a read; what the executor is to end."""
        read = self._outstanding.get(transfer)
        if read is None or read.spans is None:
            return [transfer]
        read.spans.stopped = read.spans.stopped or Cancelled("the read was cancelled")
        return read.spans.under_way

    def _begin(self, spans: SpannedRead) -> Sequence[ReadRequest]:
        begun = spans.begin_more(time.monotonic())
        for request in begun:
            self._spanned[request.transfer] = spans.read.transfer
        return begun

    def _settle(self, transfer: str, outcome: ReadOutcome) -> EndedRead:
        read = self._outstanding.pop(transfer)
        self.destinations.drop(read.destination_blocks)
        self._reads.give_back(read.request.source, 1)
        self._bytes.give_back(read.request.source, read.request.total_bytes)
        if not self._outstanding:
            self._idle.set()
        return read.ended(outcome)

    def plan_of(self, read: pb.Read, peers: PeerBook, destination: Side) -> ReadPlan:
        """What a read is to bring, checked but not accepted.

        Raises:
            KvferryError: why it would be refused.
        """
        lists = [(listed.group, listed_ids("destination_blocks", listed)) for listed in read.destination_blocks]
        return self._plan(read, peers, checked_blocks(lists, destination.block_counts, "destination_blocks"))

    def pair_of(self, source: Side) -> PairPlan:
        """What this rank reads from the worker that a source rank belongs to.

        Raises:
            NotReady: there is no layout yet.
            LayoutMismatch: the workers cannot be paired.
        """
        if self._pairs is None:
            raise NotReady("this data plane has no layout yet")
        return self._pairs.get(source)

    async def wait_until_idle(self) -> None:
        """Wait until nothing is outstanding."""
        await self._idle.wait()

    def _plan(self, read: pb.Read, peers: PeerBook, wanted: BlockLists) -> ReadPlan:
        """What the read is to bring."""
        sources = _sources(read, peers)
        peer, first = next(iter(sources.values()))
        lists = [(listed.group, listed_ids("sources[0].blocks", listed)) for listed in first.blocks]
        held = checked_blocks(lists, peer.side.block_counts, "sources[0].blocks")
        # Equal lists are compared id by id, which takes as long as everything else: the first not with itself.
        for index, source in enumerate(read.sources[1:], start=1):
            if source.blocks and source.blocks != first.blocks:
                raise InvalidArgument.of_field(f"sources[{index}].blocks", "other blocks", "must be those of the first")
        floor = allowed_paths(tuple(read.require_path))
        ranks = {
            rank: SourceRank(peer, source.lease.slot, source.lease.word, floor)
            for rank, (peer, source) in sources.items()
        }
        return ReadPlan(self.pair_of(peer.side), held, wanted, tokens_of(read), ranks)

    def _check_bounds(self, read: pb.Read) -> float:
        """The seconds that are left for the read."""
        if not 1 <= len(read.transfer) <= TRANSFER_CHARS_MAX:
            raise InvalidArgument.of_field("transfer", read.transfer, f"must have 1 to {TRANSFER_CHARS_MAX} characters")
        if read.transfer in self._outstanding or read.transfer in self._spanned:
            raise InvalidArgument.of_field("transfer", read.transfer, "is being read already")
        if abs(read.priority) > PRIORITY_MAX:
            raise InvalidArgument.of_field("priority", read.priority, f"must be within ±{PRIORITY_MAX}")
        seconds = seconds_of(read.time_left)
        if seconds > READ_SECONDS_MAX:
            raise InvalidArgument.of_field("time_left", seconds, f"at most {READ_SECONDS_MAX:g} seconds")
        if seconds <= 0:
            raise DeadlineExceeded.of_field("time_left", seconds, "no time is left")
        return seconds

    def _check_room(self, name: str, bound: SharedBound, source: str, amount: int) -> None:
        """Refuse what goes beyond a bound, or beyond the source's share of it, and say when there may be room."""
        if not amount or bound.has_room(source, amount):
            return
        self._drain.advance(time.monotonic(), busy=bool(self._outstanding))
        why, waits_for = f"{bound.total} are outstanding", self._bytes.total
        if bound.total + amount <= bound.limit:
            why = f"{bound.held(source)} of {source} are outstanding, its share at the moment is {bound.share(source)}"
            waits_for = self._bytes.held(source)
        why += f", {amount} more are asked for"
        raise ResourceExhausted.of_bound(name, bound.limit, why, self._drain.retry_after_s(waits_for))


def _queue_seconds(read: pb.Read) -> float | None:
    """How long the read may wait to be served; None if that has no bound of its own."""
    if not read.HasField("queue_time_left"):
        return None
    seconds = seconds_of(read.queue_time_left)
    if seconds > READ_SECONDS_MAX:
        raise InvalidArgument.of_field("queue_time_left", seconds, f"at most {READ_SECONDS_MAX:g} seconds")
    if seconds <= 0:
        raise QueueTimeout.of_field("queue_time_left", seconds, "no time is left")
    return seconds


def held_block_counts(side: Side) -> dict[str, int]:
    """Blocks of each layer group that a rank holds."""
    return {placement.group: placement.block_count for placement in side.holds.placements}


def _sources(read: pb.Read, peers: PeerBook) -> dict[int, tuple[Peer, pb.ReadSource]]:
    """The source ranks of a read: all of one worker, and of one data-parallel rank."""
    sources: dict[int, tuple[Peer, pb.ReadSource]] = {}
    first: Side | None = None
    for index, source in enumerate(read.sources):
        peer = peers.get(source.peer)
        side = peer.side
        first = first or side
        if side.layout is not first.layout or side.holds.data_parallel_rank != first.holds.data_parallel_rank:
            raise InvalidArgument.of_field(f"sources[{index}].peer", source.peer, "is of another worker than the first")
        if side.rank in sources:
            raise InvalidArgument.of_field(f"sources[{index}].peer", source.peer, "listed twice")
        _check_lease(f"sources[{index}].lease", source, peer)
        sources[side.rank] = peer, source
    if not sources:
        raise InvalidArgument.of_field("sources", "[]", "lists no source rank")
    return sources


def _spans(plan: ReadPlan, accepted: ReadRequest, read: pb.Read) -> SpannedRead | None:
    stops = plan.stops(accepted.total_bytes, read.span_bytes)
    return SpannedRead(plan, accepted, read.first_token, list(stops)) if len(stops) > 1 else None


def tokens_of(read: pb.Read) -> TokenRange | None:
    """The tokens that are read; None for whole blocks."""
    if not read.token_count:
        if read.first_token:
            raise InvalidArgument.of_field("first_token", read.first_token, "token_count is not given")
        return None
    return TokenRange(read.first_token, read.token_count, read.token_count)


def _check_lease(field: str, source: pb.ReadSource, peer: Peer) -> None:
    lease = source.lease
    if lease.rank != peer.side.rank:
        raise InvalidArgument.of_field(f"{field}.rank", lease.rank, f"the peer is rank {peer.side.rank}")
    if lease.slot * WORD_BYTES >= peer.lease_table.size_bytes:
        raise InvalidArgument.of_field(f"{field}.slot", lease.slot, "lies outside the peer's lease table")
    if 0 in lease.word.to_bytes(WORD_BYTES, "little"):
        raise InvalidArgument.of_field(f"{field}.word", "(secret)", "a lease word has no zero byte")
