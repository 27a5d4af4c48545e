"""Processes of engines, and what those that are gone were pulling: a new one takes all blocks to be free."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Sequence

import structlog

from kvferry.core.errors import InvalidArgument, NotReady
from kvferry.core.reasons import Reason
from kvferry_control.ranks.link import RankLink
from kvferry_control.transfers.machine import Failure
from kvferry_control.transfers.manager import Transfers
from kvferry_control.transfers.record import TransferRecord

LIFE_BYTES_MAX = 64
KNOWN_MAX = 1_024
"""Lives whose engines are remembered."""
EARLIER_LIVES_S = 1.0
"""How long a new process waits for the reads of the others to end before it is told to come again."""


class EngineLives:
    """Which processes of which engines there are, by their random lives.

    Of one engine the newest is there, and no other; of others, those that have streams of pulls in place.
    """

    def __init__(self, transfers: Transfers, links: Sequence[RankLink]) -> None:
        self._transfers = transfers
        self._links = links
        self._connected: Counter[str] = Counter()
        self._engines: OrderedDict[str, str] = OrderedDict()
        """By life."""
        self._newest: OrderedDict[str, str] = OrderedDict()
        """By engine, the life that has declared itself last."""
        self._log = structlog.get_logger("kvferry.control.engine")

    def is_gone(self, life: str) -> bool:
        """Whether another process of the same engine has come since."""
        engine = self._engines.get(life)
        return engine is not None and self._newest.get(engine, life) != life

    def connected(self, life: str) -> None:
        """A stream of its pulls is in place."""
        self._connected[life] += 1

    def disconnected(self, life: str) -> None:
        """Such a stream has ended."""
        self._connected[life] -= 1
        if not self._connected[life]:
            del self._connected[life]

    def know(self, engine: str, life: bytes) -> None:
        """A process has said of which engine it is.

        Raises:
            InvalidArgument: the life is too long.
        """
        if len(life) > LIFE_BYTES_MAX:
            raise InvalidArgument.of_field("life", f"{len(life)} bytes", f"at most {LIFE_BYTES_MAX}")
        _remember(self._engines, life.hex(), engine)

    async def begin(self, engine: str, life: bytes) -> None:
        """A process has come that was not here before: nothing is read any more for those that are gone, and what they
        asked for is forgotten, so that the same request means something new.

        Raises:
            InvalidArgument: the life is too long.
            NotReady: some read has not ended yet.
        """
        self.know(engine, life)
        new = life.hex()
        _remember(self._newest, engine, new)
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
        owner = record.engine_life
        return owner != life and (owner not in self._connected or self.is_gone(owner))


def _remember(known: OrderedDict[str, str], key: str, value: str) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > KNOWN_MAX:
        known.popitem(last=False)
