"""What is known of the end of reads: whether a byte can still arrive in a block."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from kvferry_control.transfers import machine
from kvferry_control.transfers.left_behind import LeftBehind
from kvferry_control.transfers.record import TransferRecord
from kvferry_control.transfers.table import TransferTable


class Settling:
    """Follows what the data planes confirm, also of transfers that have ended without."""

    def __init__(self, table: TransferTable) -> None:
        self._table = table
        table.on_forgotten = self._forgotten
        self.left = LeftBehind(self._clear)
        self._waiting: set[asyncio.Event] = set()
        self.silent_ranks: set[int] = set()
        """Data planes that did not confirm the end of a read within its bound, and have ended none since."""
        self._log = structlog.get_logger("kvferry.control.transfers")

    def read_finished(self, rank: int, transfer: str) -> TransferRecord | None:
        """A data plane has confirmed the end of a read; its transfer, if it is known."""
        self.silent_ranks.discard(rank)
        self.left.ended(rank, transfer)
        record = self._table.find(transfer)
        if record is not None:
            # What a data plane has taken writes where no other read of it does.
            record.life = machine.undisturbed(record.life, rank)
            self._confirm(rank, record)
        return record

    def found(self, rank: int, reads: Sequence[str]) -> None:
        """These are all reads that a data plane has; one that it does not have can write nothing."""
        for record in self._table.unsettled(rank):
            if record.id not in reads:
                self._confirm(rank, record)
        unknown = [read for read in reads if self._table.find(read) is None]
        if unknown:
            self._log.warning("reads of an earlier control are ended", rank=rank, reads=len(unknown))
        self.left.found(rank, unknown)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds that is about the ends of transfers, and of reads that are left behind."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            while not condition():
                changed.clear()
                await changed.wait()
        finally:
            self._waiting.discard(changed)

    def changed(self) -> None:
        """Something has ended or settled."""
        for waiting in self._waiting:
            waiting.set()

    def _confirm(self, rank: int, record: TransferRecord) -> None:
        """Settle what ended without this rank's confirmation."""
        if rank in record.life.unsettled:
            record.life = machine.confirmed(record.life, rank)
            self._table.changed(record)
            self.changed()
            self._log.info("late confirmation", transfer=record.name, rank=rank, settled=record.life.settled)

    def _clear(self, rank: int) -> None:
        self._log.info("no reads of an earlier control are left", rank=rank)
        for record in self._table.disturbed(rank):
            record.life = machine.undisturbed(record.life, rank)
            self._table.changed(record)
        self.changed()

    def _forgotten(self, record: TransferRecord) -> None:
        for rank in record.life.unsettled:
            self.left.forgot(rank, record.id)
