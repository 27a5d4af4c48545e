"""What an engine's client knows: transfers and publications under way, and pools; fed by the link to control."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvferry.core.layouts import WorkerLayout
from kvferry.engine.v1 import engine_pb2
from kvferry.rpc.times import seconds_of
from kvferry.sdk.calls import Caller
from kvferry.sdk.convert import publication_of
from kvferry.sdk.events import EngineEvent, EventHub, PublicationEnded, WorkerDraining
from kvferry.sdk.pools import PoolTable
from kvferry.sdk.publications import PublicationTable
from kvferry.sdk.pull_stream import PullStream
from kvferry.sdk.pulls import PullTable
from kvferry.sdk.results import Publication
from kvferry.transfer.v1 import transfer_pb2

PULL_TIMEOUT_S = 30.0
"""Time of a pull that says none, with a control that says none either."""

if TYPE_CHECKING:
    from kvferry.publication.v1.publication_pb2_grpc import PublicationServiceAsyncStub


class EngineState:
    """The tables of one client. Implements ``LinkListener``."""

    def __init__(
        self,
        layout: WorkerLayout | None,
        pulls: PullStream,
        publications: "PublicationServiceAsyncStub",
        call: Caller,
        tasks: asyncio.TaskGroup,
        on_event: Callable[[EngineEvent], None] | None,
    ) -> None:
        self.hub = EventHub()
        self.pulls = PullTable(pulls, tasks)
        self.publications = PublicationTable(publications, call, self._publication_ended)
        self.pools = PoolTable(layout, self._tell)
        self.worker = ""
        self.incarnation = 0
        self.pull_timeout_s = PULL_TIMEOUT_S
        self.closed = False
        self._on_event = on_event

    def on_opened(self, opened: engine_pb2.OpenEngineResponse) -> None:
        """The engine is declared."""
        self.worker = f"workers/{opened.worker}"
        self.incarnation = opened.incarnation
        if opened.HasField("pull_timeout"):
            self.pull_timeout_s = seconds_of(opened.pull_timeout)
        self.pools.learn(opened.pools)

    def on_up(self, up: bool) -> None:
        """The streams are in place, or broke."""
        self.pulls.control_up = up

    def on_transfer(self, transfer: transfer_pb2.Transfer) -> None:
        """A state of a transfer that nobody waits for as an answer: mostly its end."""
        self.pulls.learn(transfer)

    def on_event(self, event: engine_pb2.WatchEngineResponse) -> None:
        """Something the engine must know."""
        match event.WhichOneof("event"):
            case "publication_ended":
                self.publications.learn(publication_of(event.publication_ended))
            case "pool_lost":
                self.pools.lost(event.pool_lost.rank)
            case "pool_restored":
                self.pools.restored(event.pool_restored)
            case "worker_registered":
                self.incarnation = event.worker_registered.incarnation
            case "worker_draining":
                told = event.worker_draining
                left = seconds_of(told.time_left) if told.HasField("time_left") else None
                self._tell(WorkerDraining(told.draining, left))

    async def repair(self) -> None:
        """Ask for what may have been missed."""
        await self.pulls.repair()
        await self.publications.repair()

    async def close(self) -> None:
        """End everything: pulls are cancelled, waiters told, pools closed."""
        self.closed = True
        try:
            await self.pulls.close()
        finally:
            self.publications.close()
            self.pools.close()
            self.hub.close()

    def _publication_ended(self, publication: Publication) -> None:
        self._tell(PublicationEnded(publication))

    def _tell(self, event: EngineEvent) -> None:
        self.hub.push(event)
        if self._on_event is not None:
            self._on_event(event)
