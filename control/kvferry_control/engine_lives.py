"""Processes of the engine, and what those that are gone were pulling: a new one takes all blocks to be free."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import structlog

from kvferry.core.errors import InvalidArgument, NotReady
from kvferry.core.reasons import Reason
from kvferry_control.ranks.link import RankLink
from kvferry_control.transfers.machine import Failure
from kvferry_control.transfers.manager import Transfers
from kvferry_control.transfers.record import TransferRecord

LIFE_BYTES_MAX = 64
EARLIER_LIVES_S = 1.0
"""How long a new process waits for the reads of the others to end before it is told to come again."""


class EngineLives:
    """Which processes have streams of pulls in place, by their random lives."""

    def __init__(self, transfers: Transfers, links: Sequence[RankLink]) -> None:
        self._transfers = transfers
        self._links = links
        self._connected: Counter[str] = Counter()
        self._log = structlog.get_logger("kvferry.control.engine")

    def connected(self, life: str) -> None:
        """A stream of its pulls is in place."""
        self._connected[life] += 1

    def disconnected(self, life: str) -> None:
        """Such a stream has ended."""
        self._connected[life] -= 1
        if not self._connected[life]:
            del self._connected[life]

    async def begin(self, life: bytes) -> None:
        """A process has come that was not here before: nothing is read any more for those that are gone, and what they
        asked for is forgotten, so that the same request means something new.

        Raises:
            InvalidArgument: the life is too long.
            NotReady: some read has not ended yet.
        """
        if len(life) > LIFE_BYTES_MAX:
            raise InvalidArgument.of_field("life", f"{len(life)} bytes", f"at most {LIFE_BYTES_MAX}")
        new = life.hex()
        table = self._transfers.table
        table.forget_requests(lambda record: self._is_of_others(record, new))
        for record in table.active():
            if self._is_of_others(record, new):
                self._log.warning("pull of an engine that is gone", transfer=record.name, request_id=record.request_id)
                self._transfers.end(record, Failure(Reason.CANCELLED, "the engine that pulled is gone"))
        try:
            async with asyncio.timeout(EARLIER_LIVES_S):
                await self._transfers.settling.wait_until(lambda: not self._left(new))
        except TimeoutError:
            raise NotReady(f"blocks of an earlier life of the engine are still written to: {self._left(new)}") from None

    def _left(self, life: str) -> str:
        """What may still write to blocks that the process takes to be free, in words; nothing if nothing may.

        Of a data plane that has died nothing does: the process attaches the pool of the next one.
        """
        there = frozenset(link.rank for link in self._links if not link.gone)
        settling = self._transfers.settling
        left = [
            record.name
            for record in self._transfers.table.unfinished()
            if self._is_of_others(record, life)
            and there & (record.life.pending | record.life.unsettled | record.life.disturbed)
        ]
        left += [f"reads of an earlier control on rank {rank}" for rank in sorted(there & settling.left.ranks)]
        return ", ".join(left)

    def _is_of_others(self, record: TransferRecord, life: str) -> bool:
        """Whether a transfer is of a process that is gone, or of whoever has not said which it is."""
        return record.engine_life != life and record.engine_life not in self._connected
