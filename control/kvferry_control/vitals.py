"""What control's health is made of: its event loop, its data planes, and that transfers end by their deadline."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from kvferry.rpc.health import EVERYTHING, LIVENESS, Check, Complaint, HealthWatch, Pulse
from kvferry_control.transfers.manager import Transfers

OVERDUE_S = 2.0
"""A transfer is terminal within a second of its deadline, whatever dies."""
_OF_THE_CLUSTER = frozenset({"kvferry.worker.v1.WorkerService", "kvferry.worker.v1.DrainService"})
_TRANSFERS = "kvferry.transfer.v1.TransferService"
_WITH_DATA_PLANES = frozenset(
    {
        _TRANSFERS,
        "kvferry.publication.v1.PublicationService",
        "kvferry.negotiation.v1.NegotiationService",
        "kvferry.engine.v1.EngineService",
    }
)


def open_health(
    socket: Path,
    stall_s: float,
    transfers: Transfers,
    missing: Complaint,
    on_change: Callable[[Mapping[str, bool]], None],
) -> HealthWatch:
    """The watch over a control, to be started and stopped on its event loop.

    ``missing`` says which data planes are not there; it may be called on any thread. A worker without them serves the
    cluster's view all the same, and no restart of control brings them back: it is not ready, but it is alive.
    """
    loop, table = asyncio.get_running_loop(), transfers.table

    def silent() -> str | None:
        ranks = sorted(transfers.settling.silent_ranks)
        return f"the data planes of ranks {ranks} do not confirm the end of reads" if ranks else None

    def overdue() -> str | None:
        count = sum(record.seconds_left < -OVERDUE_S for record in table.active()) if table.active_count else 0
        return f"{count} transfers have not ended by their deadline" if count else None

    def turn(inside: Complaint = lambda: None) -> Complaint:
        return Pulse("the event loop", loop.call_soon_threadsafe, inside).complaint

    own = frozenset({EVERYTHING, LIVENESS})
    checks = [
        Check(turn(), own | _OF_THE_CLUSTER | _WITH_DATA_PLANES),
        Check(turn(overdue), own | {_TRANSFERS}),
        Check(turn(silent), frozenset({EVERYTHING, _TRANSFERS})),
        Check(missing, _WITH_DATA_PLANES | {EVERYTHING}, at_once=True),
    ]
    return HealthWatch(socket, checks, stall_s, on_change)
