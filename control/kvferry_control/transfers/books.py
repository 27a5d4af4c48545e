"""What is written down of transfers that have ended: conclusion at the source, metrics, log line."""

import asyncio
from collections.abc import Callable

import structlog

from kvferry.core.errors import NotReady
from kvferry_control.metrics import ControlMetrics
from kvferry_control.transfers.machine import State
from kvferry_control.transfers.record import TransferRecord

DELAY_S = 0.005
"""Ended transfers wait this long, so that their engines hear of the end first; the books of all are kept together."""


class Books:
    """Kept a moment after the end. ``conclude`` tells a transfer's source."""

    def __init__(self, metrics: ControlMetrics, conclude: Callable[[TransferRecord], None]) -> None:
        self._metrics = metrics
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
            self._measure(record)
            self._report(record)
            # What is kept of ended transfers must stay small, however many blocks they had.
            record.blocks, record.handle, record.negotiation, record.layout = {}, b"", None, None
            record.sources.clear()

    def _measure(self, record: TransferRecord) -> None:
        path = ",".join(record.paths) or "none"
        reason = record.life.failure.reason.value if record.life.failure else ""
        self._metrics.transfers.labels(record.life.state.name.lower(), reason, path).inc()
        self._metrics.received_bytes.labels(path).inc(record.received_bytes)
        self._metrics.descriptors.labels(path).inc(record.descriptor_count)
        if record.life.state is State.SUCCEEDED:
            stages = self._metrics.stage_seconds
            stages.labels("negotiate").observe(record.negotiate_s)
            stages.labels("total").observe(record.total_s)
            for stage in ("queue", "read", "verify"):
                stages.labels(stage).observe(record.slowest(f"{stage}_time"))

    def _report(self, record: TransferRecord) -> None:
        failure = record.life.failure
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
            paths=record.paths,
            received_bytes=record.received_bytes,
            descriptors=record.descriptor_count,
            negotiate_ms=_ms(record.negotiate_s),
            queue_ms=_ms(record.slowest("queue_time")),
            read_ms=_ms(record.slowest("read_time")),
            verify_ms=_ms(record.slowest("verify_time")),
            total_ms=_ms(record.total_s),
            settled=record.life.settled,
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
