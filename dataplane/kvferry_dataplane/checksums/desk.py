"""What commands ask about checksums, from the wire to the threads that sum."""

from collections.abc import Callable

from kvferry.core.blocks import BlockLists
from kvferry.core.checksums.comparisons import Comparison
from kvferry.core.checksums.sums import BlocksToSum, GroupSums
from kvferry.core.errors import InvalidArgument, KvferryError
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry_dataplane.checksums.arrived import ArrivedSums
from kvferry_dataplane.checksums.published import PublishedSums
from kvferry_dataplane.checksums.threads import DigestThreads
from kvferry_dataplane.checksums.wire import comparisons_of_read, rank_checksums_of
from kvferry_dataplane.desk import ReadDesk
from kvferry_dataplane.metrics import Metrics
from kvferry_dataplane.peers import PeerBook
from kvferry_dataplane.plan import Side
from kvferry_dataplane.reads.request import ReadOutcome, ReadRequest
from kvferry_dataplane.wire import refused

Answer = Callable[[pb.SessionResponse], None]


class Checksums:
    """Checksums of one data plane. Every method runs on the event loop."""

    def __init__(self, threads: DigestThreads, metrics: Metrics, *, every: int, bytes_max: int) -> None:
        """Sums one in ``every`` of the blocks that are published, 0 for none; the sums take at most ``bytes_max``."""
        self._published = PublishedSums(threads, every, bytes_max)
        self._arrived = ArrivedSums(threads)
        metrics.checksum_bytes.set_function(lambda: self._published.held_bytes)

    def to_sum(self, command: pb.AcquireLease, side: Side, blocks: BlockLists) -> dict[str, BlocksToSum] | None:
        """What of a lease's blocks is to be summed; None where nothing is.

        Raises:
            BlockError: a list does not hold the tokens.
            ResourceExhausted: the sums would take more memory than they may.
        """
        if not self._published.makes_sums:
            return None
        return self._published.check(command.publication, side, blocks, command.token_count)

    def sum_lease(
        self, publication: str, blocks: dict[str, BlocksToSum], done: Callable[[KvferryError | None], None]
    ) -> None:
        """Sum the blocks of a lease that has begun; ``done`` is called with what went wrong, or None."""
        self._published.begin(publication, blocks, done)

    def lease_ended(self, publication: str) -> None:
        """Drop the sums of a lease."""
        self._published.forget(publication)

    def answer(self, command: pb.SumChecksums, rank: int, answer: Answer) -> None:
        """Give a lease's sums.

        Raises:
            KvferryError: there are none, or the scope is wrong.
        """
        publication = command.publication

        def answered(result: dict[str, GroupSums] | KvferryError) -> None:
            if isinstance(result, KvferryError):
                answer(pb.SessionResponse(command_refused=refused(result)))
                return
            summed = pb.ChecksumsSummed(publication=publication, checksums=rank_checksums_of(rank, result))
            answer(pb.SessionResponse(checksums_summed=summed))

        self._published.answer(publication, command.scope, answered)

    def comparisons(self, read: pb.Read, desk: ReadDesk, peers: PeerBook, side: Side) -> list[Comparison]:
        """What a read is to be compared with; nothing where that is not asked for, or nothing is read.

        Raises:
            InvalidArgument: the sums that it names do not fit, or it is to be read in spans.
            ChecksumsAbsent: all is to be compared, and the sums are not of all.
            KvferryError: why it would be refused anyway.
        """
        if not read.compare_every:
            return []
        if read.span_bytes:
            raise InvalidArgument.of_field("span_bytes", read.span_bytes, "what is compared is read at once")
        return comparisons_of_read(read, desk.plan_of(read, peers, side), peers)

    def expect(self, request: ReadRequest, comparisons: list[Comparison]) -> None:
        """A read was accepted that is to be compared."""
        self._arrived.expect(request, comparisons)

    def compare(self, outcome: ReadOutcome, done: Callable[[ReadOutcome], None]) -> bool:
        """Whether a read that is over is now compared; ``done`` is called with its outcome after that."""
        return self._arrived.begin(outcome, done)

    def cancel(self, transfer: str) -> None:
        """End a read's comparison early."""
        self._arrived.cancel(transfer)
