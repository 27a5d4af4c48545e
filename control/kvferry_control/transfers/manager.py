"""What drives transfers: negotiation, reads on the data planes, deadlines, cancellation, conclusions."""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from kvferry.core.errors import DataPlaneLost, InternalError, InvalidArgument, KvferryError
from kvferry.core.layouts import WorkerLayout
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry.rpc.reasons import reason_from_wire
from kvferry_control.blocks import check_blocks, check_tokens
from kvferry_control.config import LimitsSection
from kvferry_control.metrics import ControlMetrics
from kvferry_control.peers.sources import Source, Sources
from kvferry_control.ranks.link import RankLink
from kvferry_control.records import WorkerRecord
from kvferry_control.tasks import Spawn
from kvferry_control.transfers import machine
from kvferry_control.transfers.attempts import CURABLE, candidates_of, figures_since, live_source, living_first
from kvferry_control.transfers.books import Books
from kvferry_control.transfers.checksums import checksum_scope
from kvferry_control.transfers.machine import Failure, State
from kvferry_control.transfers.read_command import read_command
from kvferry_control.transfers.record import TransferRecord
from kvferry_control.transfers.request import PullRequest, deadline_in
from kvferry_control.transfers.table import TransferTable

SETTLE_BOUND_S = 0.7
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
        self.silent_ranks: set[int] = set()
        """Data planes that did not confirm the end of a read within its bound, and have ended none since."""
        self._log = structlog.get_logger("kvferry.control.transfers")

    def create(self, request: PullRequest, layout: WorkerLayout, incarnation: int) -> TransferRecord:
        """Start a transfer; its request id is not in the table.

        Raises:
            HandleMalformed, BlockError, InvalidArgument: the request is wrong.
            PeerError: the handle's worker is not in the snapshot, and it names no other.
            StaleIncarnation: the handle is of an earlier life of its worker, and it names no other.
            ResourceExhausted: too many transfers are active.
        """
        sources = candidates_of(request.handle)
        shard = request.data_parallel_rank
        check_blocks("destination_blocks", request.blocks, layout, self._limits.blocks_per_request, shard)
        first, *others = living_first(sources, self._worker_record)
        record = TransferRecord(
            id=secrets.token_hex(12),
            request_id=request.request_id,
            fingerprint=request.fingerprint,
            handle=first.handle,
            source_worker=first.worker,
            source_incarnation=first.incarnation,
            publication=first.publication,
            destination_worker=self._worker,
            destination_incarnation=incarnation,
            blocks=request.blocks,
            priority=request.priority,
            first_token=request.first_token,
            ranks=frozenset(rank.rank for rank in layout.ranks_of(shard)),
            deadline=time.monotonic() + request.total_s,
            service_s=request.timeout_s,
            queue_deadline=deadline_in(request.queue_timeout_s),
            life=machine.Life(sources_left=len(others)),
            layout=layout,
            sources=others,
            in_spans=bool(others) or request.resumable,
            compare_every=request.compare_every,
        )
        self._add(record)
        loop = asyncio.get_running_loop()
        record.timers = [
            loop.call_later(request.total_s, self._deadline_passed, record),
            loop.call_later(request.total_s + SETTLE_BOUND_S, self.apply, record, machine.SettleTimedOut()),
        ]
        if request.queue_timeout_s is not None:
            record.timers.append(loop.call_later(request.queue_timeout_s, self._queue_timed_out, record))
        self._ask_source(record, layout)
        return record

    def cancel(self, record: TransferRecord) -> None:
        """Ask for a transfer's end. Its terminal state acknowledges it, at most ``SETTLE_BOUND_S`` later."""
        if record.life.state.terminal or record.life.state is State.SETTLING:
            return
        self._end(record, Failure(Reason.CANCELLED, "cancelled on request"))

    def _end(self, record: TransferRecord, failure: Failure) -> None:
        self.apply(record, machine.Ended(failure))
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
        if isinstance(event, machine.SettleTimedOut):
            self.silent_ranks |= before.pending
        if len(record.life.given_up) > len(record.attempts):
            self._leave_source(record, before.state)
        elif record.life.state is State.SETTLING and before.state is not State.SETTLING:
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
        self.silent_ranks.discard(rank)
        self._confirm(rank, event.transfer)
        record = self.table.find(event.transfer)
        if record is None or rank not in record.life.pending:
            return
        record.figures[rank] = figures_since(record.figures.get(rank), event.figures, len(record.attempts))
        if not event.HasField("failure"):
            self.apply(record, machine.RankSucceeded(rank))
            return
        failure = Failure(reason_from_wire(event.failure.reason), event.failure.message, rank)
        self.apply(record, machine.RankFailed(rank, failure, curable=failure.reason in CURABLE))

    def read_refused(self, rank: int, transfer: str, error: KvferryError) -> None:
        """A data plane did not take a read."""
        record = self.table.find(transfer)
        if record is not None and rank in record.life.pending:
            self._metrics.count_refusal(error)
            # What is exhausted here is so for every source; what is wrong about a source is so for that one alone.
            own = error.reason is Reason.RESOURCE_EXHAUSTED
            curable = not own and (error.reason in CURABLE or error.metadata.get("field", "").startswith("source"))
            self.apply(record, machine.RankFailed(rank, Failure.of(error, rank), curable))

    def link_down(self, rank: int) -> None:
        """A data plane is gone: its reads are unsettled until it is back or known to be dead."""
        self.silent_ranks.discard(rank)
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
        """Nothing that runs can go on. Each is terminal at most ``SETTLE_BOUND_S`` later."""
        for record in self.table.active():
            if record.life.state is not State.SETTLING:
                self._end(record, failure)

    def _add(self, record: TransferRecord) -> None:
        try:
            self.table.add(record)
        except KvferryError as error:
            self._metrics.count_refusal(error)
            raise

    def _ask_source(self, record: TransferRecord, layout: WorkerLayout) -> None:
        record.asked_at = time.monotonic()
        if record.sources:
            share_s = max(record.seconds_left, 0) * self._limits.source_time_share
            loop = asyncio.get_running_loop()
            record.share_timer = loop.call_later(share_s, self._share_over, record, share_s)
        record.negotiated = False
        record.negotiation = self._spawn(self._negotiate(record, layout))

    def _leave_source(self, record: TransferRecord, before: State) -> None:
        """Have a source's reads ended, and once they are, go on with the next."""
        self._drop_share(record)
        if record.life.state is State.SWITCHING and before is State.READING:
            self._cancel_reads(record)
        if record.life.state is not State.NEGOTIATING:
            return
        self._stop_negotiating(record)
        self._conclude(record)
        attempt = record.give_up_source(time.monotonic())
        self._metrics.sources_given_up.labels(attempt.failure.reason.value).inc()
        self._log.warning(
            "source given up",
            transfer=record.name,
            request_id=record.request_id,
            source=str(attempt),
            received_bytes=attempt.received_bytes,
            verified_tokens=attempt.verified_tokens,
            next_source=f"workers/{record.source_worker}",
        )
        assert record.layout is not None
        self._ask_source(record, record.layout)

    async def _negotiate(self, record: TransferRecord, layout: WorkerLayout) -> None:
        try:
            try:
                source, answer = await self._answer(record, layout)
            except KvferryError as error:
                failure = Failure.of(error)
                in_time = record.seconds_left > 0
                self._refuse(record, machine.SourceFailed(failure) if in_time else machine.Ended(failure))
                return
            check_tokens("destination_blocks", record.blocks, layout, answer.token_count, record.first_token)
            record.token_count = answer.token_count
            try:
                sums = await self._checksums(record, source, layout)
                await self._require_floor(record, source)
            except KvferryError as error:
                self._refuse(record, machine.SourceFailed(Failure.of(error)))
                return
            self._send_reads(record, source, answer, sums)
        except KvferryError as error:
            self._refuse(record, machine.Ended(Failure.of(error)))
        except Exception as error:
            self._log.exception("defect while negotiating", transfer=record.name)
            failure = Failure(Reason.INTERNAL, f"{type(error).__name__} while negotiating")
            self._refuse(record, machine.Ended(failure))

    async def _checksums(
        self, record: TransferRecord, source: Source, layout: WorkerLayout
    ) -> dict[int, neg.RankChecksums]:
        """What the source says of its blocks, by rank; nothing unless it is to be compared."""
        if not record.compare_every:
            return {}
        scope = checksum_scope(layout, record)
        # Until they are here the source has not answered: an end of the transfer ends the asking.
        record.negotiated = False
        sums = await self._sources.checksums(source, record.id, record.handle, scope, record.deadline)
        record.negotiated = True
        return sums

    async def _require_floor(self, record: TransferRecord, source: Source) -> None:
        """See to it that the ways to the source are those that are demanded; they may have to be probed first."""
        # As for checksums: an end of the transfer ends the wait.
        record.negotiated = False
        await self._sources.require_floor(source, self._reading(record), record.deadline)
        record.negotiated = True

    async def _answer(self, record: TransferRecord, layout: WorkerLayout) -> tuple[Source, neg.NegotiateResponse]:
        """What the source answers, if it can be used. Whatever is raised here is its own fault."""
        worker = live_source(record.source, self._worker_record)
        self._sources.require_ways(worker, self._worker_record(self._worker))
        source, answer = await self._sources.negotiate(
            worker, record.id, record.handle, record.destination_incarnation, record.deadline
        )
        record.negotiated = True
        record.negotiate_s += time.monotonic() - record.asked_at
        self._sources.require_pairable(source, layout)
        if record.token_count not in (0, answer.token_count):
            raise InvalidArgument.of_field(
                "handle.token_count", answer.token_count, f"an earlier source holds {record.token_count} tokens"
            )
        return source, answer

    def _refuse(self, record: TransferRecord, event: machine.Event) -> None:
        if not record.life.state.terminal:
            self.apply(record, event)

    def _send_reads(
        self,
        record: TransferRecord,
        source: Source,
        answer: neg.NegotiateResponse,
        sums: Mapping[int, neg.RankChecksums],
    ) -> None:
        """Give each reading rank its read. Every source rank is named: the data plane knows which it needs."""
        links = self._reading(record)
        for link in links:
            if not link.up:
                raise DataPlaneLost(f"rank {link.rank}: no session", metadata={"rank": str(link.rank)})
        sources = [
            dp.ReadSource(peer=source.peer(lease.rank), lease=lease, checksums=sums.get(lease.rank))
            for lease in answer.leases
        ]
        if not sources:
            raise InternalError(f"workers/{source.worker} gave no leases")
        self.apply(record, machine.Negotiated(record.ranks))
        for link in links:
            try:
                self._sources.connect(source, link)
                link.post(
                    read_command(record, link.rank, sources, answer, self._limits.span_bytes, self._sources.floor)
                )
            except KvferryError as error:
                self.apply(record, machine.RankFailed(link.rank, Failure.of(error, link.rank)))

    def _reading(self, record: TransferRecord) -> list[RankLink]:
        return [link for link in self._links if link.rank in record.ranks - record.life.done]

    def _queue_timed_out(self, record: TransferRecord) -> None:
        """Reads that wait are the data planes' to end: only they know which have been served."""
        if record.life.state is State.NEGOTIATING and not record.is_served:
            message = f"not served in time, still negotiating with workers/{record.source_worker}"
            self.apply(record, machine.Ended(Failure(Reason.QUEUE_TIMEOUT, message)))

    def _share_over(self, record: TransferRecord, share_s: float) -> None:
        where = f"workers/{record.source_worker} had its share of the time, {share_s:.3g} s"
        failure = Failure(Reason.DEADLINE_EXCEEDED, f"{where}, while {record.life.state.name.lower()}")
        self._refuse(record, machine.SourceFailed(failure))

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
        self._drop_share(record)
        record.name_sources_given_up()
        record.ended_at = time.time()
        record.total_s = time.monotonic() - record.begun
        self._stop_negotiating(record)
        self.table.ended(record)
        self.books.ended(record)

    def _stop_negotiating(self, record: TransferRecord) -> None:
        if record.negotiation is not None and not record.negotiated:
            if record.negotiation is not asyncio.current_task():
                record.negotiation.cancel()
            record.negotiation = None

    def _drop_share(self, record: TransferRecord) -> None:
        if record.share_timer is not None:
            record.share_timer.cancel()
            record.share_timer = None

    def _conclude(self, record: TransferRecord) -> None:
        """Tell the source, also of a negotiation cut short: it may have noted a reader."""
        worker = self._worker_record(record.source_worker)
        if worker is not None and worker.incarnation == record.source_incarnation:
            succeeded = record.life.state is State.SUCCEEDED
            self._sources.conclude(worker, record.id, record.handle, succeeded)
