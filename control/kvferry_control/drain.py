"""Taking this worker out of service: no new work, then what is left, then the end.

It is asked for by a caller, by a signal, or by a data plane that was told to end. Whoever asks, the worker is DRAINING
for the cluster at once; what was published stays readable and what runs goes on until nothing is left or the time is
over. Then a data plane that asked is let go, and a control that is to end does.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import structlog

from kvferry.core.errors import Draining, KvferryError
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.rpc.times import duration
from kvferry.worker.v1 import drain_pb2 as pb
from kvferry_control.publications.manager import Publication, Publications
from kvferry_control.ranks.link import RankLink
from kvferry_control.tasks import Spawn
from kvferry_control.transfers.machine import Failure
from kvferry_control.transfers.manager import Transfers
from kvferry_control.worker import LocalWorker

END_BOUND_S = 2.0
"""How long the end of what is left may take: data planes confirm well within this."""


class Drain:
    """The drain of this worker. ``on_exit`` is called when the control is to end; ``tell`` when it begins and ends."""

    def __init__(
        self,
        worker: LocalWorker,
        publications: Publications,
        transfers: Transfers,
        links: Sequence[RankLink],
        spawn: Spawn,
        on_exit: Callable[[], None],
        tell: Callable[[], None],
    ) -> None:
        self._worker = worker
        self._publications = publications
        self._transfers = transfers
        self._links = links
        self._spawn = spawn
        self._on_exit = on_exit
        self._tell = tell
        self._state: pb.DrainState.ValueType = pb.DRAIN_STATE_NONE
        self._asked = False
        self._exits = False
        self._signalled = False
        self._changed = asyncio.Event()
        self._watchers: set[asyncio.Event] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._let_go: set[int] = set()
        self._log = structlog.get_logger("kvferry.control.drain")

    def status(self) -> pb.Drain:
        """As it stands."""
        deadline = self._worker.drain_deadline
        left = duration(max(deadline - time.monotonic(), 0.0)) if deadline is not None else None
        return pb.Drain(
            worker=f"workers/{self._worker.name}",
            state=self._state,
            live_publication_count=self._publications.live_count,
            active_transfer_count=self._transfers.table.active_count,
            time_left=left,
            exits=self._exits,
            leaving_ranks=[link.rank for link in self._links if link.leaving],
        )

    async def changes(self) -> AsyncIterator[pb.Drain]:
        """The status at once and after every change; ends before the control does."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                yield self.status()
                if self._exits and self._state == pb.DRAIN_STATE_DRAINED:
                    return
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def begin(self, timeout_s: float, *, exits: bool, by_signal: bool = False) -> None:
        """Take no new work, and end what is left after ``timeout_s``. ``exits``: then the control ends.

        A drain that a signal began keeps its end; a signal never gives more time than there was.
        """
        deadline = time.monotonic() + timeout_s
        known = self._worker.drain_deadline
        if (by_signal or self._signalled) and known is not None:
            deadline = min(deadline, known)
        self._signalled = self._signalled or by_signal
        self._asked, self._exits = True, exits or self._signalled
        self._worker.drain_deadline = deadline
        self._log.info("drain", timeout_s=timeout_s, exits=self._exits, left=self._left())
        self._start()
        # At once, so that who asked is not told of the state before.
        self._step()

    def undo(self) -> None:
        """Take work again.

        Raises:
            Draining: it is too late, or not for the caller to say.
        """
        if self._signalled or self._state == pb.DRAIN_STATE_ENDING:
            raise Draining(f"workers/{self._worker.name} has been told to end")
        if any(link.leaving for link in self._links):
            raise Draining(f"data planes of workers/{self._worker.name} are to end")
        self._asked = self._exits = False
        self._worker.drain_deadline = None
        self.changed()

    def hurry(self) -> None:
        """End what is left at once."""
        self._worker.drain_deadline = time.monotonic()
        self.changed()

    def leaving(self) -> None:
        """A data plane asks to leave, or is back or gone since it did."""
        self._let_go &= {link.rank for link in self._links if link.leaving}
        if any(link.leaving for link in self._links):
            self._start()
        self.changed()

    def changed(self) -> None:
        """Something may have ended."""
        self._changed.set()
        for watcher in self._watchers:
            watcher.set()

    def close(self) -> None:
        """Stop working at it."""
        for task in self._tasks:
            task.cancel()

    def _start(self) -> None:
        if not self._tasks:
            self._tasks = [self._spawn(self._run()), self._spawn(self._follow_transfers())]
        self.changed()

    def _wanted(self) -> bool:
        return self._asked or any(link.leaving for link in self._links)

    async def _run(self) -> None:
        while self._wanted():
            self._changed.clear()
            self._step()
            deadline, seconds = self._worker.drain_deadline, None
            if deadline is not None and self._state == pb.DRAIN_STATE_DRAINING:
                seconds = max(deadline - time.monotonic(), 0.0)
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                continue
        self._set(pb.DRAIN_STATE_NONE)
        others, self._tasks = self._tasks[1:], []
        for task in others:
            task.cancel()

    async def _follow_transfers(self) -> None:
        async for _ in self._transfers.table.changes(self._transfers.table.revision):
            self.changed()

    def _step(self) -> None:
        if self._state == pb.DRAIN_STATE_ENDING:
            return
        deadline = self._worker.drain_deadline
        if not self._left():
            self._finish()
        elif deadline is not None and time.monotonic() >= deadline:
            self._set(pb.DRAIN_STATE_ENDING)
            self._tasks.append(self._spawn(self._end_all()))
        else:
            self._set(pb.DRAIN_STATE_DRAINING)

    def _finish(self) -> None:
        self._set(pb.DRAIN_STATE_DRAINED)
        for link in self._links:
            if link.leaving and link.up and link.rank not in self._let_go:
                self._let_go.add(link.rank)
                link.post(dp.SessionRequest(depart=dp.Depart()))
        if self._exits:
            self._on_exit()

    async def _end_all(self) -> None:
        """Cancel reads, clear lease words, and wait a while for both to be confirmed."""
        self._log.warning("what is left is ended", left=self._left())
        self._transfers.end_all(Failure(Reason.DRAINING, f"workers/{self._worker.name} was drained"))
        live = [p for p in self._publications.newest_first() if not p.life.state.terminal]
        try:
            async with asyncio.timeout(END_BOUND_S), asyncio.TaskGroup() as group:
                for publication in live:
                    group.create_task(self._release(publication))
                while self._left():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._log.warning("not everything that was left has ended", left=self._left())
        self._finish()

    async def _release(self, publication: Publication) -> None:
        try:
            await self._publications.release(publication)
        except KvferryError as error:
            self._log.warning("lease not cleared", publication=publication.name, error=str(error))

    def _left(self) -> int:
        return self._publications.live_count + self._transfers.table.active_count

    def _set(self, state: pb.DrainState.ValueType) -> None:
        if state == self._state:
            return
        before, self._state = self._state, state
        self._log.info("drain state", state=pb.DrainState.Name(state), left=self._left())
        self._worker.set_draining(state != pb.DRAIN_STATE_NONE)
        if pb.DRAIN_STATE_NONE in (before, state):
            self._tell()
        for watcher in self._watchers:
            watcher.set()
