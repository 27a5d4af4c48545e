"""What drives transfers: negotiation, reads on the data planes, deadlines, cancellation, conclusions."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from kvferry.core.errors import DataPlaneLost, InternalError, KvferryError
from kvferry.core.layouts import WorkerLayout
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry.rpc.reasons import reason_from_wire
from kvferry.transfer.v1 import transfer_pb2 as pb
from kvferry_control.blocks import Shards, check_blocks
from kvferry_control.config import LimitsSection
from kvferry_control.metrics import ControlMetrics
from kvferry_control.peers.source import Source
from kvferry_control.peers.sources import Sources
from kvferry_control.ranks.link import RankLink
from kvferry_control.records import WorkerRecord
from kvferry_control.tasks import Spawn
from kvferry_control.transfers import machine
from kvferry_control.transfers.asking import Asking, Sums
from kvferry_control.transfers.attempts import CURABLE, candidates_of, figures_since, living_first
from kvferry_control.transfers.books import Books
from kvferry_control.transfers.machine import Failure, State
from kvferry_control.transfers.read_command import read_command
from kvferry_control.transfers.record import TransferRecord
from kvferry_control.transfers.request import PullRequest, deadline_in
from kvferry_control.transfers.settling import Settling
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
        self.settling = Settling(self.table)
        self._worker = worker
        self._links = links
        self._shards = Shards()
        self._sources = sources
        self._limits = limits
        self._metrics = metrics
        metrics.active_transfers.set_function(lambda: self.table.active_count)
        self.books = Books(metrics, self._conclude)
        self._asking = Asking(
            worker, sources, worker_record, spawn, self._reading, self._send_reads, self.apply, self._take_held
        )
        self._worker_record = worker_record
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
        shard = self._shards.of(layout, request.data_parallel_rank)
        check_blocks("destination_blocks", request.blocks, shard, self._limits.blocks_per_request)
        first, *others = living_first(sources, self._worker_record)
        now = time.monotonic()
        record = TransferRecord(
            id=secrets.token_hex(12),
            request_id=request.request_id,
            handle=first.handle,
            source_worker=first.worker,
            source_incarnation=first.incarnation,
            publication=first.publication,
            destination_worker=self._worker,
            destination_incarnation=incarnation,
            blocks=request.blocks,
            priority=request.priority,
            first_token=request.first_token,
            ranks=shard.ranks,
            begun=now,
            deadline=now + request.total_s,
            service_s=request.timeout_s,
            queue_deadline=deadline_in(request.queue_timeout_s),
            life=machine.Life(sources_left=len(others), disturbed=shard.ranks & self.settling.left.ranks),
            layout=layout,
            sources=others,
            in_spans=bool(others) or request.resumable,
            compare_every=request.compare_every,
        )
        self._add(record)
        # What the source has to do is under way while the rest is seen to.
        self._ask_source(record)
        loop = asyncio.get_running_loop()
        record.timers.append(loop.call_later(record.seconds_left, self._deadline_passed, record))
        if request.queue_timeout_s is not None:
            record.timers.append(loop.call_later(request.queue_timeout_s, self._queue_timed_out, record))
        if not record.life.disturbed and self._asking.begin_early(record):
            self._metrics.early_reads.inc()
        return record

    def cancel(self, record: TransferRecord) -> None:
        """Ask for a transfer's end. Its terminal state acknowledges it, at most ``SETTLE_BOUND_S`` later."""
        if record.life.state.terminal or record.life.state is State.SETTLING:
            return
        self.end(record, Failure(Reason.CANCELLED, "cancelled on request"))

    def end(self, record: TransferRecord, failure: Failure) -> None:
        """End a transfer that is not terminal. It is at most ``SETTLE_BOUND_S`` later."""
        self.apply(record, machine.Ended(failure))
        if not record.life.state.terminal:
            self._bound_settling(record, SETTLE_BOUND_S)

    def _bound_settling(self, record: TransferRecord, seconds: float) -> None:
        timed_out = machine.SettleTimedOut()
        record.timers.append(asyncio.get_running_loop().call_later(seconds, self.apply, record, timed_out))

    def watch(self, record: TransferRecord, ended: Callable[[TransferRecord], None]) -> None:
        """Have ``ended`` called once an active transfer is terminal."""
        record.watchers.append(ended)

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
            self.settling.silent_ranks |= before.pending
        if len(record.life.given_up) > len(record.attempts):
            self._leave_source(record, before.state)
        elif record.life.state is State.SETTLING and before.state is not State.SETTLING:
            self._cancel_reads(record)
        if record.life.state.terminal:
            self._finish(record)
        self.table.changed(record)
        if record.life.state.terminal:
            self._tell_end(record)

    def _tell_end(self, record: TransferRecord) -> None:
        """Those who wait hear of the end before anything is put away."""
        try:
            for ended in record.watchers:
                ended(record)
        finally:
            record.watchers.clear()
            self._put_away(record)
            self.settling.changed()

    def read_finished(self, rank: int, event: dp.ReadFinished) -> None:
        """A data plane confirmed the end of a read."""
        record = self.settling.read_finished(rank, event.transfer)
        if record is None or rank not in record.life.pending:
            return
        record.take_figures(rank, figures_since(record.figures.get(rank), event.figures, len(record.attempts)))
        if not event.HasField("failure"):
            self.apply(record, machine.RankSucceeded(rank))
        elif record.is_early and record.life.state is State.READING:
            record.held_failures.append((rank, event.failure))
        else:
            self._read_failed(rank, record, event.failure)

    def _take_held(self, record: TransferRecord) -> None:
        held, record.held_failures = record.held_failures, []
        for rank, failure in held:
            if rank in record.life.pending:
                self._read_failed(rank, record, failure)

    def _read_failed(self, rank: int, record: TransferRecord, told: pb.Failure) -> None:
        failure = Failure(reason_from_wire(told.reason), told.message, rank)
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
        self.settling.silent_ranks.discard(rank)
        failure = Failure(Reason.DATA_PLANE_LOST, f"the data plane of rank {rank} was lost", rank)
        for record in self.table.active():
            if rank in record.life.pending:
                self.apply(record, machine.RankLost(rank, failure))

    def link_up(self, link: RankLink, transfers: Sequence[str]) -> None:
        """End reads that nobody waits for any more; reads that it does not know can write nothing."""
        self.settling.found(link.rank, transfers)
        for transfer in transfers:
            record = self.table.find(transfer)
            if record is None or link.rank not in record.life.pending:
                link.post(dp.SessionRequest(cancel_read=dp.CancelRead(transfer=transfer)))

    def end_all(self, failure: Failure) -> None:
        """Nothing that runs can go on. Each is terminal at most ``SETTLE_BOUND_S`` later."""
        for record in self.table.active():
            if record.life.state is not State.SETTLING:
                self.end(record, failure)

    def _add(self, record: TransferRecord) -> None:
        try:
            self.table.add(record)
        except KvferryError as error:
            self._metrics.count_refusal(error)
            raise

    def _ask_source(self, record: TransferRecord) -> None:
        if record.sources:
            share_s = max(record.seconds_left, 0) * self._limits.source_time_share
            loop = asyncio.get_running_loop()
            record.share_timer = loop.call_later(share_s, self._share_over, record, share_s)
        self._asking.begin(record)

    def _leave_source(self, record: TransferRecord, before: State) -> None:
        """Have a source's reads ended, and once they are, go on with the next."""
        self._drop_share(record)
        if record.life.state is State.SWITCHING and before is State.READING:
            self._cancel_reads(record)
        if record.life.state is not State.NEGOTIATING:
            return
        self._asking.stop(record)
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
        self._ask_source(record)

    def _send_reads(
        self,
        record: TransferRecord,
        source: Source,
        answer: neg.NegotiateResponse,
        sums: Sums,
    ) -> None:
        """Give each reading rank its read. Every source rank is named: the data plane knows which it needs."""
        links = self._reading(record)
        for link in links:
            if not link.up:
                raise DataPlaneLost(f"rank {link.rank}: no session", metadata={"rank": str(link.rank)})
        if record.ranks & self.settling.left.ranks:
            # A data plane would refuse blocks that one of those writes to, as it does where a pull has come again.
            held = partial(self._send_held, record, record.asked_at, source, answer, sums)
            self.settling.left.when_clear(record.id, record.ranks, held)
            return
        if not answer.leases:
            raise InternalError(f"workers/{source.worker} gave no leases")
        span_bytes, require_path = self._limits.span_bytes, self._sources.floor.require_path
        self.apply(record, machine.Negotiated(record.ranks))
        for link in links:
            try:
                self._sources.connect(source, link)
                link.post(read_command(record, link.rank, source, answer, sums, span_bytes, require_path))
            except KvferryError as error:
                self.apply(record, machine.RankFailed(link.rank, Failure.of(error, link.rank)))

    def _send_held(
        self, record: TransferRecord, asked_at: float, source: Source, answer: neg.NegotiateResponse, sums: Sums
    ) -> None:
        """As :meth:`_send_reads`, unless it is of no use any more."""
        if record.life.state is not State.NEGOTIATING or record.asked_at != asked_at:
            return
        try:
            self._send_reads(record, source, answer, sums)
        except KvferryError as error:
            self.apply(record, machine.Ended(Failure.of(error)))
        except Exception as error:
            # Others wait for the same.
            self._log.exception("defect in sending reads that were held", transfer=record.name)
            defect = InternalError(f"{type(error).__name__} while sending reads")
            self.apply(record, machine.Ended(Failure.of(defect)))

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
        if not record.life.state.terminal:
            self.apply(record, machine.SourceFailed(failure))

    def _deadline_passed(self, record: TransferRecord) -> None:
        if record.life.state.terminal:
            return
        self._bound_settling(record, record.seconds_left + SETTLE_BOUND_S)
        if record.life.state is State.SETTLING:
            return
        failure = Failure(Reason.DEADLINE_EXCEEDED, f"the deadline passed while {self._doing(record)}")
        self.apply(record, machine.Ended(failure))

    def _doing(self, record: TransferRecord) -> str:
        """What a transfer spends its time with."""
        if record.life.state is State.NEGOTIATING and (held_up := record.ranks & self.settling.left.ranks):
            return f"reads of an earlier control had not ended on ranks {sorted(held_up)}"
        waiting = sorted(record.life.pending)
        where = f" on ranks {waiting}" if waiting else f" with workers/{record.source_worker}"
        return f"{record.life.state.name.lower()}{where}"

    def _cancel_reads(self, record: TransferRecord) -> None:
        if record.held_failures:
            asyncio.get_running_loop().call_soon(self._take_held, record)
        for link in self._links:
            if link.rank in record.life.pending and link.up:
                try:
                    link.post(dp.SessionRequest(cancel_read=dp.CancelRead(transfer=record.id)))
                except KvferryError as error:
                    # The settle timer bounds the wait for a rank that could not be asked.
                    self._log.warning("cancel not sent", transfer=record.name, rank=link.rank, error=str(error))

    def _finish(self, record: TransferRecord) -> None:
        record.name_sources_given_up()
        record.ended_at = time.time()
        record.total_s = time.monotonic() - record.begun

    def _put_away(self, record: TransferRecord) -> None:
        for timer in record.timers:
            timer.cancel()
        record.timers.clear()
        self._drop_share(record)
        self._asking.stop(record)
        self.settling.left.drop(record.id)
        self.table.ended(record)
        self.books.ended(record)

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
