"""Product code broken on purpose, to see that the simulation notices."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from kvferry.core.layouts import WorkerLayout
from kvferry_control.publications import machine
from kvferry_control.publications.manager import Publication, Publications
from kvferry_control.ranks.link import RankLink
from kvferry_control.transfers.manager import Transfers
from kvferry_control.transfers.record import TransferRecord
from kvferry_control.transfers.request import PullRequest
from kvferry_dataplane.leases import LeaseTable
from kvferry_dataplane.reads.active import ActiveRead
from kvferry_dataplane.reads.deadlines import Deadlines
from kvferry_dataplane.reads.executor import ReadExecutor

Breakage = Callable[[], Any]


def fence_off() -> Any:
    """Whatever the lease word says, the bytes count as right."""
    real = ReadExecutor._verify

    def believe(self: ReadExecutor, read: ActiveRead, part: int, word: int, now: float) -> None:
        real(self, read, part, read.request.parts[part].word, now)

    return patch.object(ReadExecutor, "_verify", believe)


def rollover_off() -> Any:
    """A read that ends early counts as settled, whatever is still in flight."""
    real = ActiveRead.is_settled.fget  # type: ignore[attr-defined]

    def claim(read: ActiveRead) -> bool:
        return read.ending or bool(real(read))

    return patch.object(ActiveRead, "is_settled", property(claim))


def word_left_set() -> Any:
    """A lease ends without its word being cleared."""
    real = LeaseTable.release

    def release(self: LeaseTable, publication: str) -> bool:
        lease = next((lease for lease in self.leases() if lease.publication == publication), None)
        released = real(self, publication)
        if lease is not None:
            self._words[lease.slot] = lease.word
        return released

    return patch.object(LeaseTable, "release", release)


@contextmanager
def no_deadline() -> Iterator[None]:
    """No timer ends a transfer, and none a read."""
    real = Transfers.create

    def create(self: Transfers, request: PullRequest, layout: WorkerLayout, incarnation: int) -> TransferRecord:
        record = real(self, request, layout, incarnation)
        for timer in record.timers:
            timer.cancel()
        return record

    with patch.object(Transfers, "create", create), patch.object(Deadlines, "passed", lambda *_: iter(())):
        yield


def early_hand_back() -> Any:
    """A publication ends for the engine before the ranks have cleared their words."""
    real = Publications._clear

    async def clear(self: Publications, publication: Publication, link: RankLink) -> None:
        self._apply(publication, machine.RankCleared(link.rank))
        await real(self, publication, link)

    return patch.object(Publications, "_clear", clear)


BREAKAGES: tuple[Breakage, ...] = (
    fence_off,
    rollover_off,
    word_left_set,
    no_deadline,
    early_hand_back,
)
