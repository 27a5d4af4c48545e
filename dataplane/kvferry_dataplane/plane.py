"""What a data plane knows and does on its event loop: whose it is, its leases, its peers, its reads."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from kvferry.core.blocks import checked_blocks
from kvferry.core.errors import InternalError, InvalidArgument, KvferryError, NotReady
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.logs import bind_identity
from kvferry.rpc.block_lists import listed_ids
from kvferry.rpc.times import seconds_of
from kvferry_dataplane.adoption import checked_adoption, is_other_life
from kvferry_dataplane.attestation.findings import Attestation
from kvferry_dataplane.attestation.prober import Prober
from kvferry_dataplane.attestation.wire import peer_attested_of, peer_surveyed_of
from kvferry_dataplane.checksums.desk import Answer, Checksums
from kvferry_dataplane.departure import Departure
from kvferry_dataplane.desk import ReadDesk, held_block_counts
from kvferry_dataplane.leases import Lease, LeaseTable
from kvferry_dataplane.metrics import Metrics
from kvferry_dataplane.outbox import Outbox
from kvferry_dataplane.peers import PeerBook, peer_from_wire
from kvferry_dataplane.plan import Side
from kvferry_dataplane.reads.log import log_read
from kvferry_dataplane.reads.request import ReadOutcome, ReadRequest
from kvferry_dataplane.reads.thread import ReadThread
from kvferry_dataplane.serving import ServingThread
from kvferry_dataplane.wire import lease_state_of, rank_lease_of, read_finished_of, refused

_DRAIN_SECONDS = 5.0
_log = structlog.get_logger("kvferry.dataplane")


class PlaneMemory(NamedTuple):
    """What a data plane owns."""

    words: npt.NDArray[np.uint64]
    """The lease words, in memory that peers read."""
    pool_bytes: int


class Plane:
    """One rank's data plane. Every method runs on the event loop."""

    def __init__(
        self,
        memory: PlaneMemory,
        desk: ReadDesk,
        reads: ReadThread,
        serving: ServingThread,
        metrics: Metrics,
        departure: Departure,
        checksums: Checksums,
        prober: Prober,
    ) -> None:
        self.prober = prober
        prober.on_attested = self._attested
        self._departure = departure
        self._pool_bytes = memory.pool_bytes
        self._checksums = checksums
        self._leases = LeaseTable(memory.words)
        self._leases_changed = asyncio.Event()
        self._desk = desk
        self._reads = reads
        self._serving = serving
        self._metrics = metrics
        self._peers = PeerBook()
        self._side: Side | None = None
        self._adopting = asyncio.Lock()
        self.adoption: pb.Adoption | None = None
        self.outbox = Outbox()
        metrics.reads_outstanding.set_function(lambda: len(desk))
        metrics.events_dropped.set_function(lambda: self.outbox.dropped_count)
        self._commands: dict[str, Callable[[pb.SessionRequest], pb.SessionResponse | None]] = {
            "acquire_lease": self._acquire_lease,
            "renew_lease": self._renew_lease,
            "release_lease": self._release_lease,
            "expect_readers": self._expect_readers,
            "connect_peer": self._connect_peer,
            "disconnect_peer": self._disconnect_peer,
            "read": self._read,
            "cancel_read": self._cancel_read,
            "sum_checksums": self._sum_checksums,
            "survey_peer": self._survey_peer,
            "depart": self._depart,
        }

    @property
    def rank(self) -> int:
        """Index of the rank; 0 before adoption."""
        return 0 if self.adoption is None else self.adoption.rank

    @property
    def threads_rest(self) -> bool:
        """Whether no other thread has reads to do or to serve, which it could not while the event loop is busy."""
        return not (len(self._desk) or self._serving.expecting)

    # Adoption

    async def adopt(self, adoption: pb.Adoption) -> None:
        """Take a worker's identity and layout; another life or layout ends leases and reads of the old one first.

        Raises:
            InvalidArgument: names the field.
            LayoutInvalid: the layout contradicts itself, leaves the pool, or lacks the rank.
        """
        side = checked_adoption(adoption, self._pool_bytes)
        async with self._adopting:
            if is_other_life(self.adoption, adoption) or side != self._side:
                await self._start_over(side, adoption.worker)
            self.adoption = pb.Adoption()
            self.adoption.CopyFrom(adoption)
            bind_identity(worker=adoption.worker, rank=adoption.rank, incarnation=adoption.incarnation)
            _log.info("adopted", has_layout=side is not None)

    async def _start_over(self, side: Side | None, worker: str) -> None:
        self._side = None
        self.end_leases()
        await self.end_reads()
        if side is not None:
            self._leases.reset(held_block_counts(side))
            self._desk.reset(side, worker)
        self._side = side

    async def end_reads(self) -> None:
        """Cancel every read and wait until none can write any more.

        Raises:
            InternalError: one did not end.
        """
        for transfer in self._desk.transfers():
            self._cancel(transfer)
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._desk.wait_until_idle()
        except TimeoutError as error:
            raise InternalError(f"reads did not end within {_DRAIN_SECONDS:g} s of being cancelled") from error

    # Leaving

    @property
    def lease_count(self) -> int:
        """Leases that hold."""
        return len(self._leases)

    @property
    def read_count(self) -> int:
        """Reads that are queued or running."""
        return len(self._desk)

    @property
    def connected(self) -> bool:
        """Whether control's session is in place."""
        return self.outbox.connected

    def say_leaving(self) -> None:
        """Let control know; a session that is made later hears of it first."""
        self.outbox.emit(pb.SessionResponse(leaving=pb.Leaving()))

    def session_ended(self) -> None:
        """Control's session is gone."""
        self._departure.changed()

    def _depart(self, request: pb.SessionRequest) -> pb.SessionResponse:
        if self._departure.begun:
            self._departure.let_go()
        return pb.SessionResponse(command_done=pb.CommandDone())

    # Sessions

    def opened(self) -> pb.SessionOpened:
        """What a new session is told first."""
        now = time.monotonic()
        return pb.SessionOpened(
            leases=[lease_state_of(lease, self.rank, now) for lease in self._leases.leases()],
            transfers=self._desk.transfers(),
            leaving=self._departure.begun,
        )

    def handle(self, request: pb.SessionRequest) -> None:
        """Do a command and emit its answer."""
        name = request.WhichOneof("command")
        try:
            if name is None:
                raise InvalidArgument.of_field("command", "unset", "an unknown command")
            event = self._commands[name](request)
        except KvferryError as error:
            self._metrics.command_refused(error)
            _log.info("command refused", command=name, reason=error.reason.value, message=error.message)
            event = pb.SessionResponse(command_refused=refused(error))
        if event is not None:
            event.command_id = request.command_id
            self.outbox.emit(event)

    # Leases

    async def reap_leases(self) -> None:
        """End leases whose time is over, until cancelled."""
        while True:
            for publication in self._leases.expire(time.monotonic()):
                self._lease_ended(publication, "expired")
                ended = pb.LeaseEnded(publication=publication, end=pb.LEASE_END_EXPIRED)
                self.outbox.emit(pb.SessionResponse(lease_ended=ended))
            self._leases_changed.clear()
            expiry = self._leases.next_expiry()
            try:
                async with asyncio.timeout(None if expiry is None else max(expiry - time.monotonic(), 0)):
                    await self._leases_changed.wait()
            except TimeoutError:
                continue

    def end_leases(self, *, tell: bool = False) -> None:
        """Clear every lease word and unpin every block; ``tell``: control has not asked for it and is to know."""
        for lease in self._leases.leases():
            self._leases.release(lease.publication)
            self._lease_ended(lease.publication, "ended_by_owner")
            if tell:
                ended = pb.LeaseEnded(publication=lease.publication, end=pb.LEASE_END_RELEASED)
                self.outbox.emit(pb.SessionResponse(lease_ended=ended))

    def _acquire_lease(self, request: pb.SessionRequest) -> pb.SessionResponse | None:
        command = request.acquire_lease
        side = self._require_side()
        lists = [(listed.group, listed_ids("blocks", listed)) for listed in command.blocks]
        blocks = checked_blocks(lists, side.block_counts, "blocks")
        self._desk.destinations.refuse_held(blocks, "blocks", "is the destination of a read")
        to_sum = self._checksums.to_sum(command, side, blocks)
        lease = self._leases.acquire(
            command.publication, blocks, seconds_of(command.ttl), command.attributes, time.monotonic()
        )
        self._lease_granted(lease)
        granted = pb.LeaseGranted(publication=lease.publication, lease=rank_lease_of(lease, self.rank))
        if to_sum is None:
            return pb.SessionResponse(lease_granted=granted)
        answer = self._answer_later(request)
        self._checksums.sum_lease(lease.publication, to_sum, partial(self._lease_summed, granted, answer))
        return None

    def _lease_summed(self, granted: pb.LeaseGranted, answer: Answer, error: KvferryError | None) -> None:
        """The blocks of a lease are summed, or could not be: then there is no lease."""
        if error is None:
            answer(pb.SessionResponse(lease_granted=granted))
            return
        if self._leases.release(granted.publication):
            self._lease_ended(granted.publication, "not_summed")
        answer(pb.SessionResponse(command_refused=refused(error)))

    def _renew_lease(self, request: pb.SessionRequest) -> pb.SessionResponse:
        command = request.renew_lease
        self._leases.renew(command.publication, seconds_of(command.ttl), time.monotonic())
        self._leases_changed.set()
        return pb.SessionResponse(command_done=pb.CommandDone())

    def _release_lease(self, request: pb.SessionRequest) -> pb.SessionResponse:
        publication = request.release_lease.publication
        end = pb.LEASE_END_ABSENT
        if self._leases.release(publication):
            end = pb.LEASE_END_RELEASED
            self._lease_ended(publication, "released")
        return pb.SessionResponse(lease_ended=pb.LeaseEnded(publication=publication, end=end))

    def _expect_readers(self, request: pb.SessionRequest) -> pb.SessionResponse:
        self._serving.expect(seconds_of(request.expect_readers.duration))
        return pb.SessionResponse(command_done=pb.CommandDone())

    def _lease_granted(self, lease: Lease) -> None:
        self._leases_changed.set()
        self._metrics.leases_granted.inc()
        self._show_leases()
        _log.debug("lease granted", publication=lease.publication, slot=lease.slot)

    def _sum_checksums(self, request: pb.SessionRequest) -> None:
        self._checksums.answer(request.sum_checksums, self.rank, self._answer_later(request))

    def _answer_later(self, request: pb.SessionRequest) -> Answer:
        """What answers a command once it is done, unless its session is gone by then."""
        command_id, session = request.command_id, self.outbox.session

        def answer(event: pb.SessionResponse) -> None:
            event.command_id = command_id
            # Another session has commands of the same number.
            if self.outbox.is_current(session):
                self.outbox.emit(event)

        return answer

    def _lease_ended(self, publication: str, cause: str) -> None:
        self._checksums.lease_ended(publication)
        self._departure.changed()
        self._metrics.lease_ended(cause)
        self._show_leases()
        _log.debug("lease ended", publication=publication, cause=cause)

    def _show_leases(self) -> None:
        self._metrics.leases_live.set(len(self._leases))
        self._metrics.blocks_pinned.set(self._leases.pins.held_count())

    # Reads

    def _connect_peer(self, request: pb.SessionRequest) -> pb.SessionResponse:
        peer = peer_from_wire(request.connect_peer)
        self._peers.add(peer)
        self._reads.connect(peer)
        self.prober.connect(peer, again=request.connect_peer.probe_again)
        return pb.SessionResponse(command_done=pb.CommandDone())

    def _attested(self, peer: str, attestation: Attestation) -> None:
        self.outbox.emit(pb.SessionResponse(peer_attested=peer_attested_of(peer, attestation)))

    def _survey_peer(self, request: pb.SessionRequest) -> None:
        peer, answer = self._peers.get(request.survey_peer.peer), self._answer_later(request)
        self.prober.survey(
            peer, lambda survey: answer(pb.SessionResponse(peer_surveyed=peer_surveyed_of(peer.name, survey)))
        )

    def _disconnect_peer(self, request: pb.SessionRequest) -> pb.SessionResponse:
        peer = self._peers.remove(request.disconnect_peer.peer)
        if peer is not None:
            self._reads.disconnect(peer)
            self.prober.disconnect(peer)
        return pb.SessionResponse(command_done=pb.CommandDone())

    def _read(self, request: pb.SessionRequest) -> None:
        read, side = request.read, self._require_side()
        comparisons = self._checksums.comparisons(read, self._desk, self._peers, side)
        accepted = self._desk.accept(request.command_id, read, self._peers, side, self._leases.pins)
        if comparisons:
            self._checksums.expect(accepted[0], comparisons)
        if len(accepted) == 1:
            self._reads.read(accepted[0])
        else:
            # Spans follow one another; done here, they would keep everything else waiting.
            self._submit(accepted)

    def _submit(self, requests: Sequence[ReadRequest]) -> None:
        for request in requests:
            self._reads.submit(request)

    def _cancel_read(self, request: pb.SessionRequest) -> pb.SessionResponse:
        self._cancel(request.cancel_read.transfer)
        return pb.SessionResponse(command_done=pb.CommandDone())

    def _cancel(self, transfer: str) -> None:
        for part in self._desk.cancel(transfer):
            self._reads.cancel(part)
        self._checksums.cancel(transfer)

    def read_finished(self, outcome: ReadOutcome) -> None:
        """A read or a span of one is over and settled: compare what it has brought, where that is asked for."""
        if not self._checksums.compare(outcome, self._step):
            self._step(outcome)

    def _step(self, outcome: ReadOutcome) -> None:
        """A read or a span of one is over: read the next span, or give the blocks free and tell control."""
        step = self._desk.step(outcome, self._peers)
        self._submit(step.begin)
        for span in step.cancel:
            self._reads.cancel(span)
        ended = step.end
        if ended is None:
            return
        self._departure.changed()
        self._metrics.read_ended(ended.outcome)
        finished = read_finished_of(ended, self.rank)
        self.outbox.emit(pb.SessionResponse(command_id=ended.command_id, read_finished=finished))
        # Control hears of the end before the books are kept.
        asyncio.get_running_loop().call_soon(self._keep_books, ended.outcome)

    def _keep_books(self, outcome: ReadOutcome) -> None:
        self._metrics.settle()
        log_read(outcome)

    def _require_side(self) -> Side:
        if self._side is None:
            raise NotReady("this data plane has no layout yet")
        return self._side
