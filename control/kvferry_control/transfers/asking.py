"""What is asked of a transfer's source before its reads can be sent."""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from kvferry.core.errors import InternalError, InvalidArgument, KvferryError
from kvferry.core.layouts import WorkerLayout
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry_control.blocks import check_tokens
from kvferry_control.peers.negotiation import Negotiation
from kvferry_control.peers.source import Source
from kvferry_control.peers.sources import Sources
from kvferry_control.ranks.link import RankLink
from kvferry_control.records import WorkerRecord
from kvferry_control.tasks import Spawn
from kvferry_control.transfers import machine
from kvferry_control.transfers.attempts import live_source
from kvferry_control.transfers.checksums import checksum_scope
from kvferry_control.transfers.machine import Failure
from kvferry_control.transfers.record import TransferRecord

Sums = Mapping[int, neg.RankChecksums]
"""What a source says of its blocks, by rank; nothing unless it is to be compared."""
SendReads = Callable[[TransferRecord, Source, neg.NegotiateResponse, Sums], None]


class Asking:
    """Asks sources, and has ``send_reads`` called or ``apply`` told why not; both only after :meth:`begin` returned.

    ``reading`` are the links to the ranks that read of a transfer. ``answered_late`` hears of the answer to a question
    whose reads were sent before it.
    """

    def __init__(
        self,
        worker: str,
        sources: Sources,
        worker_record: Callable[[str], WorkerRecord | None],
        spawn: Spawn,
        reading: Callable[[TransferRecord], list[RankLink]],
        send_reads: SendReads,
        apply: Callable[[TransferRecord, machine.Event], None],
        answered_late: Callable[[TransferRecord], None],
    ) -> None:
        self._worker = worker
        self._sources = sources
        self._needs_attestation = sources.floor.needs_attestation
        self._worker_record = worker_record
        self._spawn = spawn
        self._reading = reading
        self._send_reads = send_reads
        self._apply = apply
        self._answered_late = answered_late
        self._log = structlog.get_logger("kvferry.control.transfers")

    def begin(self, record: TransferRecord) -> None:
        """Ask the source of a transfer; nothing is raised. The question is on its way when this returns, or goes in the
        next turn of the event loop where the source has told what :meth:`begin_early` needs.
        """
        record.asked_at = time.monotonic()
        record.negotiated = record.is_early = False
        try:
            worker = live_source(record.source, self._worker_record)
            self._sources.require_ways(worker, self._worker_record(self._worker))
            heard = partial(self._hear, record)
            record.negotiation = self._sources.ask(
                worker, record.id, record.handle, record.destination_incarnation, record.deadline, heard
            )
        except KvferryError as error:
            record.negotiation = asyncio.get_running_loop().call_soon(self._fail_source, record, error)
        except Exception as error:
            record.negotiation = asyncio.get_running_loop().call_soon(self._end, record, self._defect(record, error))

    def begin_early(self, record: TransferRecord) -> bool:
        """Have the reads sent by what the source has told of the publication unasked, while it is being asked; returns
        whether it has.

        Its lease words say at the end of a read whether it was true; what its answer adds is that it knows of its
        reader, and why it refuses one.
        """
        if record.compare_every or self._needs_attestation or not isinstance(record.negotiation, Negotiation):
            return False
        worker = self._worker_record(record.source_worker)
        told = None if worker is None else self._sources.announced(worker, record.handle)
        if told is None:
            return False
        source, answer = told
        if not all(link.up and link.rank in source.connected for link in self._reading(record)):
            return False
        record.is_early = True
        self._use(record, source, answer)
        record.negotiated = False
        return True

    def stop(self, record: TransferRecord) -> None:
        """Have nobody told any more of what was asked for a transfer and is not answered."""
        if record.negotiation is not None and not record.negotiated:
            # Who asks for more than the answer may be the one that has found that there is no use.
            if record.negotiation is not asyncio.current_task():
                record.negotiation.cancel()
            record.negotiation = None

    def _hear(self, record: TransferRecord, source: Source, answer: neg.NegotiateResponse | KvferryError) -> None:
        was_early, record.is_early = record.is_early, False
        if isinstance(answer, KvferryError):
            self._fail_source(record, answer)
        elif was_early:
            record.negotiated = True
        else:
            self._use(record, source, answer)
        if was_early:
            self._answered_late(record)

    def _use(self, record: TransferRecord, source: Source, answer: neg.NegotiateResponse) -> None:
        try:
            if self._is_usable(record, source, answer):
                self._go_on(record, source, answer)
        except KvferryError as error:
            self._end(record, error)
        except Exception as error:
            self._end(record, self._defect(record, error))

    def _is_usable(self, record: TransferRecord, source: Source, answer: neg.NegotiateResponse) -> bool:
        """Whether a source's answer is; if not, that is its own fault."""
        record.negotiated = True
        record.negotiate_s += time.monotonic() - record.asked_at
        try:
            self._sources.require_pairable(source, _layout_of(record))
            if record.token_count not in (0, answer.token_count):
                raise InvalidArgument.of_field(
                    "handle.token_count", answer.token_count, f"an earlier source holds {record.token_count} tokens"
                )
        except KvferryError as error:
            self._fail_source(record, error)
            return False
        return True

    def _go_on(self, record: TransferRecord, source: Source, answer: neg.NegotiateResponse) -> None:
        layout = _layout_of(record)
        check_tokens("destination_blocks", record.blocks, layout, answer.token_count, record.first_token)
        record.token_count = answer.token_count
        if record.compare_every or self._needs_attestation:
            # Until all is known the source has not answered: an end of the transfer ends the asking.
            record.negotiated = False
            record.negotiation = self._spawn(self._ask_more(record, source, answer))
        else:
            self._send_reads(record, source, answer, {})

    async def _ask_more(self, record: TransferRecord, source: Source, answer: neg.NegotiateResponse) -> None:
        """Ask for the checksums, and see to it that the ways are those that are demanded, which may be probed first."""
        try:
            try:
                sums = await self._checksums(record, source)
                await self._sources.require_floor(source, self._reading(record), record.deadline)
            except KvferryError as error:
                self._refuse(record, machine.SourceFailed(Failure.of(error)))
                return
            record.negotiated = True
            self._send_reads(record, source, answer, sums)
        except KvferryError as error:
            self._end(record, error)
        except Exception as error:
            self._end(record, self._defect(record, error))

    async def _checksums(self, record: TransferRecord, source: Source) -> Sums:
        if not record.compare_every:
            return {}
        scope = checksum_scope(_layout_of(record), record)
        return await self._sources.checksums(source, record.id, record.handle, scope, record.deadline)

    def _fail_source(self, record: TransferRecord, error: KvferryError) -> None:
        failure = Failure.of(error)
        self._refuse(record, machine.SourceFailed(failure) if record.seconds_left > 0 else machine.Ended(failure))

    def _end(self, record: TransferRecord, error: KvferryError) -> None:
        self._refuse(record, machine.Ended(Failure.of(error)))

    def _refuse(self, record: TransferRecord, event: machine.Event) -> None:
        if not record.life.state.terminal:
            self._apply(record, event)

    def _defect(self, record: TransferRecord, error: Exception) -> InternalError:
        self._log.error("defect while negotiating", transfer=record.name, exc_info=error)
        return InternalError(f"{type(error).__name__} while negotiating")


def _layout_of(record: TransferRecord) -> WorkerLayout:
    assert record.layout is not None
    return record.layout
