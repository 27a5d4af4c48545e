"""Accepts reads: refuses at once what is wrong or too much, and remembers what is outstanding."""

import asyncio
import time
from dataclasses import dataclass
from functools import partial

from kvferry.core.errors import DeadlineExceeded, InvalidArgument, LayoutMismatch, ResourceExhausted
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry_dataplane.blocks import BlockCounters, BlockLists, checked_blocks
from kvferry_dataplane.peers import WORD_BYTES, Peer, PeerBook
from kvferry_dataplane.plan import Side, check_plan, make_plan
from kvferry_dataplane.reads.request import ReadPart, ReadRequest

TRANSFER_CHARS_MAX = 256
PRIORITY_MAX = 1_000_000
READ_SECONDS_MAX = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A read that is queued or running."""

    request: ReadRequest
    command_id: int
    destination_blocks: BlockLists


class ReadDesk:
    """The reads that are outstanding, within bounds."""

    def __init__(self, max_reads: int, max_bytes: int) -> None:
        self._max_reads = max_reads
        self._max_bytes = max_bytes
        self._outstanding: dict[str, Outstanding] = {}
        self._bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.destinations = BlockCounters({})

    def __len__(self) -> int:
        return len(self._outstanding)

    def transfers(self) -> list[str]:
        """Ids of the outstanding reads."""
        return list(self._outstanding)

    def reset(self, destination: Side) -> None:
        """Start over with a layout; nothing may be outstanding."""
        self.destinations = BlockCounters(block_counts_of(destination))

    def accept(
        self, command_id: int, read: pb.Read, peers: PeerBook, destination: Side, pins: BlockCounters
    ) -> ReadRequest:
        """Check a read and claim its destination blocks.

        Raises:
            KvferryError: why it is refused; nothing has changed then.
        """
        accepted_at = time.monotonic()
        self._check_bounds(read)
        lists = [(listed.group, listed.block_ids) for listed in read.destination_blocks]
        blocks = checked_blocks(lists, block_counts_of(destination), "destination_blocks")
        pins.refuse_held(blocks, "destination_blocks", "is published")
        self.destinations.refuse_held(blocks, "destination_blocks", "is the destination of another read")
        if len(read.sources) != 1:
            raise LayoutMismatch.of_field("sources", f"{len(read.sources)} ranks", "one source rank is read at a time")
        part, total_bytes, pieces_max = _part(read.sources[0], peers, destination, blocks)
        if self._bytes + total_bytes > self._max_bytes:
            raise ResourceExhausted.of_field(
                "max_outstanding_bytes",
                self._max_bytes,
                f"{self._bytes} bytes are outstanding, {total_bytes} more are asked",
            )
        request = ReadRequest(
            transfer=read.transfer,
            parts=(part,),
            total_bytes=total_bytes,
            pieces_max=pieces_max,
            accepted_at=accepted_at,
            deadline=accepted_at + read.time_left.ToNanoseconds() / 1e9,
            priority=read.priority,
        )
        self.destinations.hold(blocks)
        self._outstanding[read.transfer] = Outstanding(request, command_id, blocks)
        self._bytes += total_bytes
        self._idle.clear()
        return request

    def settle(self, transfer: str) -> Outstanding:
        """Take a read out that is over, and give its destination blocks free."""
        ended = self._outstanding.pop(transfer)
        self.destinations.drop(ended.destination_blocks)
        self._bytes -= ended.request.total_bytes
        if not self._outstanding:
            self._idle.set()
        return ended

    async def wait_until_idle(self) -> None:
        """Wait until nothing is outstanding."""
        await self._idle.wait()

    def _check_bounds(self, read: pb.Read) -> None:
        if not 1 <= len(read.transfer) <= TRANSFER_CHARS_MAX:
            raise InvalidArgument.of_field("transfer", read.transfer, f"must have 1 to {TRANSFER_CHARS_MAX} characters")
        if read.transfer in self._outstanding:
            raise InvalidArgument.of_field("transfer", read.transfer, "is being read already")
        if abs(read.priority) > PRIORITY_MAX:
            raise InvalidArgument.of_field("priority", read.priority, f"must be within ±{PRIORITY_MAX}")
        seconds = read.time_left.ToNanoseconds() / 1e9
        if seconds > READ_SECONDS_MAX:
            raise InvalidArgument.of_field("time_left", seconds, f"at most {READ_SECONDS_MAX:g} seconds")
        if seconds <= 0:
            raise DeadlineExceeded.of_field("time_left", seconds, "no time is left")
        if len(self._outstanding) >= self._max_reads:
            raise ResourceExhausted.of_field("max_reads", self._max_reads, "so many reads are outstanding")


def block_counts_of(side: Side) -> dict[str, int]:
    """Blocks of each layer group that a rank holds."""
    return {placement.group: placement.block_count for placement in side.rank.placements}


def _part(source: pb.ReadSource, peers: PeerBook, destination: Side, blocks: BlockLists) -> tuple[ReadPart, int, int]:
    """What is to come from a source rank; also its bytes and a bound on its pieces."""
    peer = peers.get(source.peer)
    _check_lease(source, peer)
    lists = [(listed.group, listed.block_ids) for listed in source.blocks]
    source_blocks = checked_blocks(lists, block_counts_of(peer.side), "sources[0].blocks")
    size = check_plan(peer.side, destination, source_blocks, blocks)
    planned = partial(make_plan, peer.side, destination, source_blocks, blocks)
    return ReadPart(peer, planned, source.lease.slot, source.lease.word), size.total_bytes, size.pieces_max


def _check_lease(source: pb.ReadSource, peer: Peer) -> None:
    lease = source.lease
    if lease.rank != peer.side.rank.rank:
        raise InvalidArgument.of_field("sources[0].lease.rank", lease.rank, f"the peer is rank {peer.side.rank.rank}")
    if lease.slot * WORD_BYTES >= peer.lease_table.size_bytes:
        raise InvalidArgument.of_field("sources[0].lease.slot", lease.slot, "lies outside the peer's lease table")
    if 0 in lease.word.to_bytes(WORD_BYTES, "little"):
        raise InvalidArgument.of_field("sources[0].lease.word", "(secret)", "a lease word has no zero byte")
