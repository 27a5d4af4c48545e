"""What drives transfers: negotiation, reads on the data planes, deadlines, cancellation, conclusions."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence

import structlog

from kvferry.core.errors import DataPlaneLost, InternalError, KvferryError, PeerError, StaleIncarnation
from kvferry.core.handles import payload_of
from kvferry.core.layouts import WorkerLayout
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry.publication.v1 import publication_pb2 as pub
from kvferry.rpc.reasons import reason_from_wire
from kvferry.rpc.times import duration
from kvferry_control.blocks import check_blocks, check_tokens
from kvferry_control.config import LimitsSection
from kvferry_control.handles import parse_payload
from kvferry_control.metrics import ControlMetrics
from kvferry_control.peers.sources import Source, Sources
from kvferry_control.ranks.link import RankLink
from kvferry_control.records import WorkerRecord
from kvferry_control.tasks import Spawn
from kvferry_control.transfers import machine
from kvferry_control.transfers.books import Books
from kvferry_control.transfers.machine import Failure, State
from kvferry_control.transfers.record import TransferRecord
from kvferry_control.transfers.request import PullRequest, deadline_in
from kvferry_control.transfers.table import TransferTable

SETTLE_BOUND_S = 0.9
"""Data planes confirm the end of a read well within this; a transfer ends at most this long after its deadline."""


class Transfers:
    """This worker's pulls. ``worker_record`` finds a live worker by name."""

    def __init__(
        self,
        worker: str,
        links: Sequence[RankLink],
        sources: Sources,
        limits: LimitsSection,
        metrics: ControlMetrics,
        spawn: Spawn,
        worker_record: Callable[[str], WorkerRecord | None],
    ) -> None:
        self.table = TransferTable(limits)
        self._worker = worker
        self._links = links
        self._sources = sources
        self._limits = limits
        self._metrics = metrics
        metrics.active_transfers.set_function(lambda: self.table.active_count)
        self.books = Books(metrics, self._conclude)
        self._spawn = spawn
        self._worker_record = worker_record
        self._log = structlog.get_logger("kvferry.control.transfers")

    def create(self, request: PullRequest, layout: WorkerLayout, incarnation: int) -> TransferRecord:
        """Start a transfer, or give the one that this request started before.

        Raises:
            RequestIdReused, HandleMalformed, BlockError, InvalidArgument: the request is wrong.
            PeerError: the handle's worker is not in the snapshot.
            StaleIncarnation: the handle is of an earlier life of its worker.
            ResourceExhausted: too many transfers are active.
        """
        known = self.table.known(request.request_id, request.fingerprint)
        if known is not None:
            return known
        payload = parse_payload(payload_of(request.handle))
        shard = request.data_parallel_rank
        check_blocks("destination_blocks", request.blocks, layout, self._limits.blocks_per_request, shard)
        source = self._find_source(payload)
        record = TransferRecord(
            id=secrets.token_hex(12),
            request_id=request.request_id,
            fingerprint=request.fingerprint,
            handle=request.handle,
            source_worker=payload.worker,
            source_incarnation=payload.incarnation,
            publication=payload.publication,
            destination_worker=self._worker,
            destination_incarnation=incarnation,
            blocks=request.blocks,
            priority=request.priority,
            first_token=request.first_token,
            ranks=frozenset(rank.rank for rank in layout.ranks_of(shard)),
            deadline=time.monotonic() + request.total_s,
            service_s=request.timeout_s,
            queue_deadline=deadline_in(request.queue_timeout_s),
        )
        self._add(record)
        loop = asyncio.get_running_loop()
        record.timers = [
            loop.call_later(request.total_s, self._deadline_passed, record),
            loop.call_later(request.total_s + SETTLE_BOUND_S, self.apply, record, machine.SettleTimedOut()),
        ]
        if request.queue_timeout_s is not None:
            record.timers.append(loop.call_later(request.queue_timeout_s, self._queue_timed_out, record))
        record.negotiation = self._spawn(self._negotiate(record, source, layout))
        return record

    def cancel(self, record: TransferRecord) -> None:
        """Ask for a transfer's end. Its terminal state acknowledges it, at most ``SETTLE_BOUND_S`` later."""
        if record.life.state.terminal or record.life.state is State.SETTLING:
            return
        self.apply(record, machine.Ended(Failure(Reason.CANCELLED, "cancelled on request")))
        if not record.life.state.terminal:
            loop = asyncio.get_running_loop()
            record.timers.append(loop.call_later(SETTLE_BOUND_S, self.apply, record, machine.SettleTimedOut()))

    def watch(self, transfer: str, ended: Callable[[TransferRecord], None]) -> None:
        """Have ``ended`` called once an active transfer is terminal."""
        self.table.get(transfer).watchers.append(ended)

    def unwatch(self, transfer: str, ended: Callable[[TransferRecord], None]) -> None:
        """Take back :meth:`watch`."""
        record = self.table.find(transfer)
        if record is not None and ended in record.watchers:
            record.watchers.remove(ended)

    def apply(self, record: TransferRecord, event: machine.Event) -> None:
        """Advance a transfer, and do what its new state asks for."""
        before, record.life = record.life, machine.advance(record.life, event)
        if record.life == before:
            return
        if record.life.state is State.SETTLING and before.state is not State.SETTLING:
            self._cancel_reads(record)
        if record.life.state.terminal:
            self._finish(record)
        self.table.changed(record)
        if record.life.state.terminal:
            for ended in record.watchers:
                ended(record)
            record.watchers.clear()

    def read_finished(self, rank: int, event: dp.ReadFinished) -> None:
        """A data plane confirmed the end of a read."""
        self._confirm(rank, event.transfer)
        record = self.table.find(event.transfer)
        if record is None or rank not in record.life.pending:
            return
        record.figures[rank] = event.figures
        if not event.HasField("failure"):
            self.apply(record, machine.RankSucceeded(rank))
            return
        failure = Failure(reason_from_wire(event.failure.reason), event.failure.message, rank)
        self.apply(record, machine.RankFailed(rank, failure))

    def read_refused(self, rank: int, transfer: str, error: KvferryError) -> None:
        """A data plane did not take a read."""
        record = self.table.find(transfer)
        if record is not None and rank in record.life.pending:
            self._metrics.count_refusal(error)
            self.apply(record, machine.RankFailed(rank, Failure.of(error, rank)))

    def link_down(self, rank: int) -> None:
        """A data plane is gone: its reads are unsettled until it is back or known to be dead."""
        failure = Failure(Reason.DATA_PLANE_LOST, f"the data plane of rank {rank} was lost", rank)
        for record in self.table.active():
            if rank in record.life.pending:
                self.apply(record, machine.RankLost(rank, failure))

    def link_up(self, link: RankLink, transfers: Sequence[str]) -> None:
        """End reads that nobody waits for any more; reads that it does not know can write nothing."""
        for known in self.table.unsettled(link.rank):
            if known.id not in transfers:
                self._confirm(link.rank, known.id)
        for transfer in transfers:
            record = self.table.find(transfer)
            if record is None or link.rank not in record.life.pending:
                link.post(dp.SessionRequest(cancel_read=dp.CancelRead(transfer=transfer)))

    def _confirm(self, rank: int, transfer: str) -> None:
        """Settle what ended without this rank's confirmation."""
        record = self.table.find(transfer)
        if record is not None and rank in record.life.unsettled:
            record.life = machine.confirmed(record.life, rank)
            self.table.changed(record)
            self._log.info("late confirmation", transfer=record.name, rank=rank, settled=record.life.settled)

    def end_all(self, failure: Failure) -> None:
        """The worker begins a new life: nothing that runs can go on."""
        for record in self.table.active():
            if record.life.state is not State.SETTLING:
                self.apply(record, machine.Ended(failure))

    def _add(self, record: TransferRecord) -> None:
        try:
            self.table.add(record)
        except KvferryError as error:
            self._metrics.count_refusal(error)
            raise

    def _find_source(self, payload: pub.HandlePayload) -> WorkerRecord:
        source = self._worker_record(payload.worker)
        if source is None:
            raise PeerError.of_field(
                "handle.worker", payload.worker, "no live worker of that name", reason=Reason.WORKER_UNKNOWN
            )
        if payload.incarnation < source.incarnation:
            raise StaleIncarnation.of_field(
                "handle.incarnation",
                payload.incarnation,
                f"workers/{payload.worker} has since begun incarnation {source.incarnation}",
            )
        return source

    async def _negotiate(self, record: TransferRecord, worker: WorkerRecord, layout: WorkerLayout) -> None:
        try:
            source, answer = await self._sources.negotiate(
                worker, record.id, record.handle, record.destination_incarnation, record.deadline
            )
            record.negotiated = True
            record.negotiate_s = time.monotonic() - record.begun
            self._sources.require_pairable(source, layout)
            check_tokens("destination_blocks", record.blocks, layout, answer.token_count, record.first_token)
            record.token_count = answer.token_count
            self._send_reads(record, source, answer)
        except KvferryError as error:
            self._refuse(record, Failure.of(error))
        except Exception as error:
            self._log.exception("defect while negotiating", transfer=record.name)
            self._refuse(record, Failure(Reason.INTERNAL, f"{type(error).__name__} while negotiating"))

    def _refuse(self, record: TransferRecord, failure: Failure) -> None:
        if not record.life.state.terminal:
            self.apply(record, machine.Ended(failure))

    def _send_reads(self, record: TransferRecord, source: Source, answer: neg.NegotiateResponse) -> None:
        """Give each reading rank its read. Every source rank is named: the data plane knows which it needs."""
        links = [link for link in self._links if link.rank in record.ranks]
        for link in links:
            if not link.up:
                raise DataPlaneLost(f"rank {link.rank}: no session", metadata={"rank": str(link.rank)})
        sources = [dp.ReadSource(peer=source.peer(lease.rank), lease=lease) for lease in answer.leases]
        if not sources:
            raise InternalError(f"workers/{source.worker} gave no leases")
        self.apply(record, machine.Negotiated(record.ranks))
        for link in links:
            try:
                self._sources.connect(source, link)
                link.post(_read_command(record, sources, answer))
            except KvferryError as error:
                self.apply(record, machine.RankFailed(link.rank, Failure.of(error, link.rank)))

    def _queue_timed_out(self, record: TransferRecord) -> None:
        """Reads that wait are the data planes' to end: only they know which have been served."""
        if record.life.state is State.NEGOTIATING:
            message = f"not served in time, still negotiating with workers/{record.source_worker}"
            self.apply(record, machine.Ended(Failure(Reason.QUEUE_TIMEOUT, message)))

    def _deadline_passed(self, record: TransferRecord) -> None:
        if record.life.state.terminal or record.life.state is State.SETTLING:
            return
        stage = record.life.state.name.lower()
        waiting = sorted(record.life.pending)
        where = f" on ranks {waiting}" if waiting else f" with workers/{record.source_worker}"
        failure = Failure(Reason.DEADLINE_EXCEEDED, f"the deadline passed while {stage}{where}")
        self.apply(record, machine.Ended(failure))

    def _cancel_reads(self, record: TransferRecord) -> None:
        for link in self._links:
            if link.rank in record.life.pending and link.up:
                try:
                    link.post(dp.SessionRequest(cancel_read=dp.CancelRead(transfer=record.id)))
                except KvferryError as error:
                    # The settle timer bounds the wait for a rank that could not be asked.
                    self._log.warning("cancel not sent", transfer=record.name, rank=link.rank, error=str(error))

    def _finish(self, record: TransferRecord) -> None:
        for timer in record.timers:
            timer.cancel()
        record.timers.clear()
        record.ended_at = time.time()
        record.total_s = time.monotonic() - record.begun
        if record.negotiation is not None and not record.negotiated:
            record.negotiation.cancel()
        self.table.ended(record)
        self.books.ended(record)

    def _conclude(self, record: TransferRecord) -> None:
        """Tell the source, also of a negotiation cut short: it may have noted a reader."""
        worker = self._worker_record(record.source_worker)
        if worker is not None and worker.incarnation == record.source_incarnation:
            succeeded = record.life.state is State.SUCCEEDED
            self._sources.conclude(worker, record.id, record.handle, succeeded)


def _read_command(
    record: TransferRecord, sources: list[dp.ReadSource], answer: neg.NegotiateResponse
) -> dp.SessionRequest:
    """The read of a transfer, written where it is sent from: each level of messages would copy the block lists anew."""
    command = dp.SessionRequest()
    read = command.read
    read.transfer = record.id
    read.sources.extend(sources)
    # All ranks of a worker have the same block ids: it is enough that the first names them.
    read.sources[0].blocks.extend(answer.blocks)
    read.destination_blocks.extend(record.blocks.values())
    read.source_worker = record.source_worker
    if record.queue_deadline is None:
        read.time_left.CopyFrom(duration(record.seconds_left))
    else:
        read.time_left.CopyFrom(duration(record.service_s))
        read.queue_time_left.CopyFrom(duration(record.queue_deadline - time.monotonic()))
    read.priority = record.priority
    read.token_count = answer.token_count
    read.first_token = record.first_token
    return command
