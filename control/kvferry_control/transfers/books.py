"""What is written down of transfers that have ended: conclusion at the source, metrics, log line."""

import asyncio
from collections.abc import Callable

import structlog

from kvferry.core.errors import NotReady
from kvferry_control.metrics import Children, ControlMetrics
from kvferry_control.transfers.machine import State
from kvferry_control.transfers.record import TransferRecord

DELAY_S = 0.005
"""Ended transfers wait this long, so that their engines hear of the end first; the books of all are kept together."""


class Books:
    """Kept a moment after the end. ``conclude`` tells a transfer's source."""

    def __init__(self, metrics: ControlMetrics, conclude: Callable[[TransferRecord], None]) -> None:
        self._transfers = Children(metrics.transfers)
        self._received_bytes = Children(metrics.received_bytes)
        self._descriptors = Children(metrics.descriptors)
        self._stage_seconds = Children(metrics.stage_seconds)
        self._conclude = conclude
        self._ended: list[TransferRecord] = []
        self._log = structlog.get_logger("kvferry.control.transfers")

    def ended(self, record: TransferRecord) -> None:
        """Note a transfer that is terminal."""
        if not self._ended:
            asyncio.get_running_loop().call_later(DELAY_S, self.keep)
        self._ended.append(record)

    def keep(self) -> None:
        """Write down what has ended since the last time."""
        records, self._ended = self._ended, []
        for record in records:
            try:
                self._conclude(record)
            except NotReady as error:
                # The source's lease ends by itself.
                self._log.info("source not told of the end", transfer=record.name, error=str(error))
        for record in records:
            paths = record.paths
            self._measure(record, paths)
            self._report(record, paths)
            # What is kept of ended transfers must stay small, however many blocks they had.
            record.blocks, record.handle, record.negotiation, record.layout = {}, b"", None, None
            record.sources.clear()

    def _measure(self, record: TransferRecord, paths: list[str]) -> None:
        path, totals, state = ",".join(paths) or "none", record.totals, record.life.state
        reason = record.life.failure.reason.value if record.life.failure else ""
        self._transfers[state.name.lower(), reason, path].inc()
        self._received_bytes[path].inc(totals.received_bytes)
        self._descriptors[path].inc(totals.descriptor_count)
        if state is State.SUCCEEDED:
            stages = self._stage_seconds
            stages["negotiate"].observe(record.negotiate_s)
            stages["total"].observe(record.total_s)
            stages["queue"].observe(totals.queue_s)
            stages["read"].observe(totals.read_s)
            stages["verify"].observe(totals.verify_s)

    def _report(self, record: TransferRecord, paths: list[str]) -> None:
        failure, totals = record.life.failure, record.totals
        log = self._log.info if record.life.state is State.SUCCEEDED else self._log.warning
        log(
            "transfer ended",
            transfer=record.name,
            request_id=record.request_id,
            state=record.life.state.name,
            reason=failure.reason.value if failure else None,
            message=failure.message if failure else None,
            source=f"workers/{record.source_worker}",
            source_incarnation=record.source_incarnation,
            publication=f"publications/{record.publication}",
            sources_given_up=len(record.attempts),
            paths=paths,
            received_bytes=totals.received_bytes,
            descriptors=totals.descriptor_count,
            negotiate_ms=round(record.negotiate_s * 1e3, 3),
            queue_ms=round(totals.queue_s * 1e3, 3),
            read_ms=round(totals.read_s * 1e3, 3),
            verify_ms=round(totals.verify_s * 1e3, 3),
            total_ms=round(record.total_s * 1e3, 3),
            settled=record.life.settled,
        )
