"""Accepts reads: refuses at once what is wrong or too much, and remembers what is outstanding."""

import asyncio
import time
from dataclasses import dataclass
from functools import partial

from kvferry.core.blocks import BlockLists, checked_blocks
from kvferry.core.drain import DrainMeter
from kvferry.core.errors import DeadlineExceeded, InvalidArgument, NotReady, QueueTimeout, ResourceExhausted
from kvferry.core.planning.planner import PlanSize, RequestPlan
from kvferry.core.planning.tokens import TokenRange
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.rpc.block_lists import listed_ids
from kvferry.rpc.times import seconds_of
from kvferry_dataplane.blocks import BlockCounters
from kvferry_dataplane.leases import WORD_BYTES
from kvferry_dataplane.peers import Peer, PeerBook
from kvferry_dataplane.plan import PairPlans, Side
from kvferry_dataplane.reads.request import ReadPart, ReadRequest
from kvferry_dataplane.shared_bound import SharedBound

TRANSFER_CHARS_MAX = 256
PRIORITY_MAX = 1_000_000
CHUNK_PIECES_MAX = 1 << 18
"""Pieces of a read that are planned at a time."""
SAMPLE_PIECES_MAX = 1 << 12
"""Pieces of a part that are planned to see how long they are."""
READ_SECONDS_MAX = 24 * 3600.0
SHARE_OF_FREE = 4.0
"""A source may have four times as many reads or bytes outstanding as are free: alone four fifths of the bound."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A read that is queued or running."""

    request: ReadRequest
    command_id: int
    destination_blocks: BlockLists


class ReadDesk:
    """The reads that are outstanding, within bounds."""

    def __init__(self, max_reads: int, max_bytes: int) -> None:
        self._reads = SharedBound(max_reads, SHARE_OF_FREE)
        self._bytes = SharedBound(max_bytes, SHARE_OF_FREE)
        self._drain = DrainMeter()
        self._outstanding: dict[str, Outstanding] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._pairs: PairPlans | None = None
        self.destinations = BlockCounters({})

    def __len__(self) -> int:
        return len(self._outstanding)

    def transfers(self) -> list[str]:
        """Ids of the outstanding reads."""
        return list(self._outstanding)

    def reset(self, destination: Side, worker: str) -> None:
        """Start over with a layout; nothing may be outstanding."""
        self._pairs = PairPlans(destination, worker)
        self.destinations = BlockCounters(held_block_counts(destination))

    def accept(
        self, command_id: int, read: pb.Read, peers: PeerBook, destination: Side, pins: BlockCounters
    ) -> ReadRequest:
        """Check a read and claim its destination blocks.

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
        parts, total_bytes, pieces_max = self._parts(read, peers, blocks)
        self._check_room("max_outstanding_bytes", self._bytes, source, total_bytes)
        request = ReadRequest(
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
        self.destinations.hold(blocks)
        self._drain.advance(accepted_at, busy=bool(self._outstanding))
        self._outstanding[read.transfer] = Outstanding(request, command_id, blocks)
        self._reads.take(source, 1)
        self._bytes.take(source, total_bytes)
        self._idle.clear()
        return request

    def settle(self, transfer: str, received_bytes: int) -> Outstanding:
        """Take a read out that is over, and give its destination blocks free."""
        self._drain.advance(time.monotonic(), busy=True)
        self._drain.done(received_bytes)
        ended = self._outstanding.pop(transfer)
        self.destinations.drop(ended.destination_blocks)
        self._reads.give_back(ended.request.source, 1)
        self._bytes.give_back(ended.request.source, ended.request.total_bytes)
        if not self._outstanding:
            self._idle.set()
        return ended

    async def wait_until_idle(self) -> None:
        """Wait until nothing is outstanding."""
        await self._idle.wait()

    def _parts(self, read: pb.Read, peers: PeerBook, wanted: BlockLists) -> tuple[tuple[ReadPart, ...], int, int]:
        """What is to come from each source rank; also its bytes and a bound on the pieces that are planned at once."""
        if self._pairs is None:
            raise NotReady("this data plane has no layout yet")
        sources = _sources(read, peers)
        peer, first = next(iter(sources.values()))
        lists = [(listed.group, listed_ids("sources[0].blocks", listed)) for listed in first.blocks]
        held = checked_blocks(lists, peer.side.block_counts, "sources[0].blocks")
        # Equal lists are compared id by id, which takes as long as everything else: the first not with itself.
        for index, source in enumerate(read.sources[1:], start=1):
            if source.blocks and source.blocks != first.blocks:
                raise InvalidArgument.of_field(f"sources[{index}].blocks", "other blocks", "must be those of the first")
        request = self._pairs.get(peer.side).request_checked(held, wanted, _tokens(read))
        sizes = request.sizes
        for rank in sizes:
            if rank not in sources:
                raise InvalidArgument.of_field("sources", sorted(sources), f"source rank {rank} is needed")
        # Where nothing is to be read, one lease says that the publication still held.
        wanted_ranks = sizes or {peer.side.rank: PlanSize(0, 0)}
        chunk_pieces = max(CHUNK_PIECES_MAX // len(wanted_ranks), SAMPLE_PIECES_MAX)
        parts = tuple(_part(request, rank, size, chunk_pieces, *sources[rank]) for rank, size in wanted_ranks.items())
        pieces = sum(min(part.pieces_max, chunk_pieces) for part in parts)
        return parts, sum(size.total_bytes for size in sizes.values()), pieces

    def _check_bounds(self, read: pb.Read) -> float:
        """The seconds that are left for the read."""
        if not 1 <= len(read.transfer) <= TRANSFER_CHARS_MAX:
            raise InvalidArgument.of_field("transfer", read.transfer, f"must have 1 to {TRANSFER_CHARS_MAX} characters")
        if read.transfer in self._outstanding:
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


def _part(
    request: RequestPlan, rank: int, size: PlanSize, chunk_pieces: int, peer: Peer, source: pb.ReadSource
) -> ReadPart:
    return ReadPart(
        peer=peer,
        chunks=partial(request.chunks, rank, chunk_pieces),
        regions=partial(request.strided, rank),
        sample=partial(request.chunks, rank, SAMPLE_PIECES_MAX),
        slot=source.lease.slot,
        word=source.lease.word,
        total_bytes=size.total_bytes,
        pieces_max=size.pieces_max,
    )


def _tokens(read: pb.Read) -> TokenRange | None:
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
