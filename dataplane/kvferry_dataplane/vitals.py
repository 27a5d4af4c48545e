"""What a data plane's health is made of: its event loop, its threads, its device, and that reads end in time."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from kvferry.rpc.health import EVERYTHING, LIVENESS, Check, HealthWatch, Pulse
from kvferry_dataplane.copiers import Copiers
from kvferry_dataplane.desk import ReadDesk
from kvferry_dataplane.reads.thread import ReadThread
from kvferry_dataplane.serving import ServingThread

OVERDUE_SECONDS = 2.0
"""Reads end within a second of their deadline, also where their source is stuck."""
READS = "reads"
SERVING = "serving"


class ServingCheck:
    """Complains while the serving thread makes no turn although readers are expected."""

    def __init__(self, serving: ServingThread) -> None:
        self._serving = serving
        self._last = -1

    def complaint(self) -> str | None:
        """What is wrong."""
        last, self._last = self._last, self._serving.turn_count
        if self._serving.expecting and self._last == last:
            return "the serving thread makes no progress for readers"
        return None


def open_health(
    socket: Path,
    service: str,
    stall_seconds: float,
    parts: tuple[ReadDesk, ReadThread, ServingThread, Copiers],
    on_change: Callable[[Mapping[str, bool]], None],
) -> HealthWatch:
    """The watch over a data plane, to be started and stopped on its event loop; ``service`` is the gRPC one's name."""
    desk, reads, serving, copiers = parts
    loop = asyncio.get_running_loop()

    def overdue() -> str | None:
        count = desk.overdue_count(time.monotonic() - OVERDUE_SECONDS)
        return f"{count} reads have not ended by their deadline" if count else None

    own = frozenset({EVERYTHING, LIVENESS})
    checks = [
        Check(Pulse("the event loop", loop.call_soon_threadsafe).complaint, own | {service}),
        Check(Pulse("the reads' thread", reads.ping).complaint, own | {READS}),
        Check(Pulse("the event loop", loop.call_soon_threadsafe, overdue).complaint, own | {READS}),
        Check(copiers.lost_device, own | {service, READS}, at_once=True),
        Check(ServingCheck(serving).complaint, own | {SERVING}),
    ]
    return HealthWatch(socket, checks, stall_seconds, on_change)
